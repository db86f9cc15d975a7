package build

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build/publish"
	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/images"
)

// A Builder runs plans. Its fields are not changed while it works.
type Builder struct {
	Store    *cas.Store
	Executor executor.Executor // not needed by Status, Explain and Log
	Images   *images.Resolver
	Source   fs.FS // the source directory: the same as keys.Options.Context

	Domains     []string            // all are read, the first is written; empty: "default"
	Jobs        int                 // steps that run at once; 0: the larger of 4 and twice the processors
	NoCache     bool                // every step runs
	Rebuild     map[*keys.Step]bool // steps that run again, with all that follow in their stages
	Secrets     map[string]Secret
	Limits      executor.Limits
	FastSync    bool
	LogLimit    int64              // bytes of a step's log, whether it runs or not; 0: DefaultLogLimit
	Compression layers.Compression // what layers are packed as, and what outputs have; zero: zstd, for type=docker gzip, and base images as they are
	NeedFiles   bool               // the files of the result will be used: by Write or Shell

	Caches        []*registry.Cache         // where results are shared; all are asked in order, the first is pushed to
	Push          PushMode                  // whether and how
	Travels       map[string]publish.Travel // cache mounts that travel through the caches, by name
	CacheFailures bool                      // push a command's failure too
	Trust         []registry.PublicKey      // not empty: results of the store count only if they were made here, or are signed so

	Events func(Event) // called by one goroutine at a time; nil: nobody listens
}

// DefaultDomain is the domain of a Builder that names none.
const DefaultDomain = "default"

// A Secret gives the bytes of a secret when a step needs them.
type Secret func() ([]byte, error)

// A StepError is a step that failed: the fault of the spec or of its command, not of the infrastructure.
type StepError struct {
	Step *keys.Step
	Err  error // *executor.ExitError, *executor.StartError, *layers.CopyError, ...
}

func (e *StepError) Error() string { return fmt.Sprintf("step %d: %v", e.Step.Number, e.Err) }
func (e *StepError) Unwrap() error { return e.Err }

func (b *Builder) domains() []string {
	if len(b.Domains) == 0 {
		return []string{DefaultDomain}
	}
	return b.Domains
}

// places are where one call looks results up. It has warn told of those that are not used; nil: nobody is told.
func (b *Builder) places(warn func(msg string)) *results.Places {
	return &results.Places{
		Store: b.Store, Caches: b.Caches, Domains: b.domains(), Trust: b.Trust, LogLimit: b.LogLimit, Warned: warn,
	}
}

// A run is one call of Run.
type run struct {
	*Builder
	places *results.Places
	files  bool // those of the result will be used
	plan   *keys.Plan
	group  *errgroup.Group
	slots  *semaphore.Weighted
	stages map[*keys.Stage]*stage
	queue  *publish.Queue // nil: nothing is pushed
	mounts *publish.Mounts
	bases  cas.Once[keys.ID, *results.Result]

	repeated  *results.LogTotal // of the logs of steps that need not run
	localOnce sync.Once         // tells that a result is not for others

	mu     sync.Mutex // guards Events and what follows
	report Report
	pulled map[string]int64
	made   map[keys.ID]*results.Result // what steps of this run have given
}

// Run builds a plan. The error is a *StepError for a failed step, ctx's for a cancelled build, and otherwise the
// infrastructure's. The Report is never nil: what it counts is saved, whatever the error.
func (b *Builder) Run(ctx context.Context, p *keys.Plan) (*Report, error) {
	return b.run(ctx, p, b.NeedFiles)
}

func (b *Builder) run(ctx context.Context, p *keys.Plan, needFiles bool) (*Report, error) {
	start := time.Now()
	jobs := b.Jobs
	if jobs <= 0 {
		jobs = max(4, 2*runtime.GOMAXPROCS(0))
	}
	r := &run{
		Builder:  b,
		files:    needFiles,
		plan:     p,
		slots:    semaphore.NewWeighted(int64(jobs)),
		stages:   map[*keys.Stage]*stage{},
		pulled:   map[string]int64{},
		made:     map[keys.ID]*results.Result{},
		repeated: results.NewLogTotal(b.LogLimit),
	}
	r.places = b.places(func(msg string) { r.warn(nil, "%s", msg) })
	r.mounts = publish.NewMounts(r.places, b.Travels, b.Compression, r.pulling(nil))
	r.report.Results = map[*keys.Stage]string{}
	r.emit(Event{Kind: Planned, Plan: p})
	r.checkTravels()
	err := holdPlan(r.places, p)
	if err == nil {
		err = r.walk(ctx)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	err = r.full(err)
	r.report.Took = time.Since(start)
	for _, n := range r.pulled {
		r.report.PulledBytes += n
	}
	if err != nil {
		var failed *StepError
		ev := Event{Kind: Failed, Err: err}
		if errors.As(err, &failed) {
			ev.Step, ev.Stage = failed.Step, failed.Step.Stage
		}
		r.emit(ev)
	}
	r.emit(Event{Kind: Done, Report: &r.report, Err: err})
	return &r.report, err
}

// walk builds the stages that something needs, and publishes what they give.
func (r *run) walk(ctx context.Context) error {
	group, gctx := errgroup.WithContext(ctx)
	r.group = group
	sure := r.firstUnsure(r.plan)
	for _, s := range r.plan.Stages {
		r.stages[s] = &stage{run: r, Stage: s, done: make(chan struct{}), pending: s.Users, forced: r.firstForced(s), sure: sure[s]}
	}
	r.openQueue(ctx)
	for _, s := range r.plan.Stages {
		if s.Users == 0 {
			r.stages[s].start(gctx)
		}
	}
	err := group.Wait()
	return cmp.Or(err, r.closeQueue(ctx))
}

// full says of an error that it is for want of room in the store, or may be.
func (r *run) full(err error) error {
	if failed := new(StepError); errors.As(err, &failed) && r.Store.IsFull() {
		r.warn(failed.Step.Stage, "%v", &cas.FullError{Store: r.Store.Dir()})
	}
	return r.Store.Full(err)
}

// holdPlan leases all keys of a plan, before the first is looked up.
func holdPlan(places *results.Places, p *keys.Plan) error {
	ids := make([]keys.ID, 0, len(p.Steps)+len(p.Stages))
	for _, s := range p.Stages {
		ids = append(ids, s.BaseKey)
	}
	for _, s := range p.Steps {
		ids = append(ids, s.Key)
	}
	return places.Hold(ids...)
}

// emit tells the listener. Events of one stage are emitted by one goroutine, so their order is that of the stage.
func (r *run) emit(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e.Kind {
	case Finished:
		if e.Cached {
			r.report.Hits++
			r.report.Saved += e.Took
		} else {
			r.report.Runs++
		}
	case Pulling:
		r.pulled[e.Blob] = max(r.pulled[e.Blob], e.Bytes)
	}
	if r.Events == nil {
		return
	}
	e.Time = time.Now()
	r.Events(e)
}

// warn tells of something that does not stop the build.
func (r *run) warn(s *keys.Stage, format string, args ...any) {
	r.emit(Event{Kind: Warned, Stage: s, Message: fmt.Sprintf(format, args...)})
}

// base makes the image that a stage starts from available: from the store, or pulled, once for all stages on it.
func (r *run) base(ctx context.Context, s *keys.Stage) (*results.Result, error) {
	return r.bases.Do(ctx, s.BaseKey, func(ctx context.Context) (*results.Result, error) { return r.makeBase(ctx, s) })
}

func (r *run) makeBase(ctx context.Context, s *keys.Stage) (*results.Result, error) {
	if found, _ := r.places.Load(s.BaseKey); found != nil {
		return found, nil
	}
	lock, err := r.Store.Lock(ctx, r.domains()[0], s.BaseKey.String())
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	if found, _ := r.places.Load(s.BaseKey); found != nil {
		return found, nil
	}
	start := time.Now()
	var img *images.Image
	err = r.Store.WithRoom(ctx, func() (err error) {
		img, err = r.Images.Pull(ctx, s.Base, r.unpacks(), r.pulling(s))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pull base image %s: %w", s.Spec.From.Image, err)
	}
	base := &results.Result{Key: s.BaseKey, Record: &results.Record{
		Op:       spec.HeadingFrom(s.Spec.From),
		Preimage: string(s.Preimage),
		ID:       s.BaseKey.String(),
		Ref:      s.Base.Ref + "@" + s.Base.Digest.String(),
		Layers:   img.Layers,
		Config:   &img.Config,
		Took:     time.Since(start),
	}}
	if err := r.places.Save(base, base.Key); err != nil {
		return nil, err
	}
	return base, nil
}

// pulling tells of what is fetched for a stage, or for nil for none.
func (r *run) pulling(s *keys.Stage) layers.Progress {
	return func(d digest.Digest, done, total int64) {
		r.emit(Event{Kind: Pulling, Stage: s, Blob: d.String(), Bytes: done, Total: total})
	}
}

// unpacks reports whether the executor wants files of what is pulled.
func (b *Builder) unpacks() bool {
	e, ok := b.Executor.(executor.BytesReader)
	return !ok || !e.ReadsBytes()
}
