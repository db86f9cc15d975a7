package keys

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/keys/spec"
)

// A Base is a base image, resolved to bytes.
type Base struct {
	Ref      string           // normalised name: docker.io/library/busybox:latest
	Digest   digest.Digest    // of the platform's manifest; "" only for scratch
	Platform ocispec.Platform // of the image
}

// A Resolver turns the name of a base image into bytes that do not change. New calls it once for each distinct
// spelling, concurrently. The platform must be the image's own, or the one asked for if the image does not tell: it
// is in the key, and must not depend on how the image was found.
type Resolver interface {
	Resolve(ctx context.Context, ref string, p ocispec.Platform) (Base, error)
}

// Options of New.
type Options struct {
	Platform ocispec.Platform
	Context  fs.FS // the source directory of copies, an fs.ReadLinkFS such as os.Root's FS; nil: copies from it fail
	Resolver Resolver
	Hasher   FileHasher // nil: read each file
	Salt     string     // makes a separate key space
	Jobs     int        // files hashed at once; 0: the number of processors

	ContextName string // for messages: what Context is; "" is "the source directory"
}

// A Plan is a build, with all its keys. It does not change any more.
type Plan struct {
	Platform ocispec.Platform
	Salt     string
	Stages   []*Stage // in the order of the log: nested builds before the stage that holds them; the last is the outermost
	Steps    []*Step  // all steps of all stages in that order
}

// Key is that of the build's result.
func (p *Plan) Key() ID { return p.Stages[len(p.Stages)-1].Key() }

// A Stage is one chain of steps on a base.
type Stage struct {
	Name     string // of the build; "" for the outermost
	Spec     *spec.Stage
	Base     Base
	BaseKey  ID
	Preimage []byte // of BaseKey
	Steps    []*Step
	Contexts []Context // before each of Spec.Ops, and one more: after the last
	Parent   *Stage    // the stage whose spec holds this one; nil for the outermost
	Users    int       // how many copy steps take files from it
}

// Key is the input key of the stage's last step, or of its base if it has none.
func (s *Stage) Key() ID {
	if len(s.Steps) == 0 {
		return s.BaseKey
	}
	return s.Steps[len(s.Steps)-1].Key
}

// A Step is a run or a copy: what has a key and may change files.
type Step struct {
	Stage    *Stage
	Number   int      // in the whole build, from 1, in the order of Plan.Steps
	Index    int      // in its stage, from 0
	OpIndex  int      // of Op in Stage.Spec.Ops
	Op       spec.Op  // *spec.Run or *spec.Copy
	Env      Context  // what workdir, env, user and shell before it have set
	From     *Stage   // copy from a build; else nil
	Dst      string   // of a copy: absolute, as the key has it, with its trailing slash if it has one
	Sources  []Source // copy from the context: what was hashed; nil otherwise
	Key      ID       // input key
	Preimage []byte   // of Key, with all directories expanded
}

// New makes the plan of a checked spec: resolves each distinct base once, hashes the sources of copies from the
// context, computes all input keys. Errors about sources are spec.ErrorList (missing source, "..", special file), with
// the position of the copy, and so is a Resolver's BaseError, with that of the from. Any other error is not the spec's fault.
func New(ctx context.Context, s *spec.Spec, o Options) (*Plan, error) {
	p := &planner{
		spec:     s,
		windows:  isWindows(o.Platform),
		defaults: DefaultContext(o.Platform),
		plan:     &Plan{Platform: o.Platform, Salt: o.Salt},
	}
	p.stage("", &s.Stage, nil, nil)
	if len(p.errs) > 0 {
		return nil, p.errs
	}
	if err := p.load(ctx, o); err != nil {
		return nil, err
	}
	for _, st := range p.plan.Stages {
		st.Preimage = st.Base.preimage(o.Salt)
		st.BaseKey = sha256.Sum256(st.Preimage)
		parent := st.BaseKey
		for _, step := range st.Steps {
			step.Key, step.Preimage = step.key(parent, step.Sources, false)
			parent = step.Key
		}
	}
	return p.plan, nil
}

type planner struct {
	spec     *spec.Spec
	windows  bool
	defaults Context
	plan     *Plan
	errs     spec.ErrorList
}

func (p *planner) fail(pos spec.Pos, format string, args ...any) {
	p.errs = append(p.errs, &spec.Error{File: p.spec.File, Pos: pos, Msg: fmt.Sprintf(format, args...)})
}

// stage lays out a stage after the builds that it holds. A nested build sees what the stage around it sees, and the
// builds before it; a later build of a name shadows an earlier one.
func (p *planner) stage(name string, s *spec.Stage, parent *Stage, scope map[string]*Stage) *Stage {
	st := &Stage{Name: name, Spec: s, Parent: parent}
	if len(s.Builds) > 0 {
		scope = maps.Clone(scope)
		if scope == nil {
			scope = make(map[string]*Stage)
		}
		for _, b := range s.Builds {
			scope[b.Name] = p.stage(b.Name, b.Stage, st, scope)
		}
	}
	p.plan.Stages = append(p.plan.Stages, st)

	c := p.defaults
	for i, op := range s.Ops {
		st.Contexts = append(st.Contexts, c)
		c = c.after(op, p.windows)
		switch op := op.(type) {
		case *spec.Run:
			p.step(st, i)
		case *spec.Copy:
			step := p.step(st, i)
			step.Dst = destination(step.Env.Workdir, op.Dst, p.windows)
			if op.From == "" {
				break
			}
			if step.From = scope[op.From]; step.From == nil {
				p.fail(op.Pos, "unknown build %q", op.From)
				break
			}
			step.From.Users++
		}
	}
	st.Contexts = append(st.Contexts, c)
	return st
}

func (p *planner) step(st *Stage, op int) *Step {
	step := &Step{
		Stage:   st,
		Number:  len(p.plan.Steps) + 1,
		Index:   len(st.Steps),
		OpIndex: op,
		Op:      st.Spec.Ops[op],
		Env:     st.Contexts[op],
	}
	st.Steps = append(st.Steps, step)
	p.plan.Steps = append(p.plan.Steps, step)
	return step
}

// load does all that waits, at once: the registry answers while files are hashed. Mistakes in the spec come before
// what a registry says.
func (p *planner) load(ctx context.Context, o Options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, gctx := errgroup.WithContext(ctx)
	bases, refused := make(map[string]*Base), make(map[string]*BaseError)
	for _, st := range p.plan.Stages {
		image := st.Spec.From.Image
		if bases[image] != nil {
			continue
		}
		b, bad := new(Base), new(BaseError)
		bases[image], refused[image] = b, bad
		group.Go(func() (err error) {
			*b, err = resolve(gctx, o, image)
			if e := new(BaseError); errors.As(err, &e) { // the others may be the spec's fault too
				*bad, err = *e, nil
			}
			return err
		})
	}
	if err := p.hash(ctx, o); err != nil {
		cancel() // and wait: nobody needs the bases any more
		_ = group.Wait()
		return err
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, st := range p.plan.Stages {
		image := st.Spec.From.Image
		st.Base = *bases[image]
		if err := refused[image].Err; err != nil {
			p.fail(st.Spec.From.Pos, "base image %s: %v", image, err)
		}
	}
	if len(p.errs) > 0 {
		return p.errs
	}
	return nil
}

// A BaseError is a base image that a spec may not start from: a Resolver's way to say that this is the spec's fault.
type BaseError struct{ Err error }

func (e *BaseError) Error() string { return e.Err.Error() }
func (e *BaseError) Unwrap() error { return e.Err }

func resolve(ctx context.Context, o Options, image string) (Base, error) {
	b, err := o.Resolver.Resolve(ctx, image, o.Platform)
	if err != nil {
		return Base{}, fmt.Errorf("resolve base image %s: %w", image, err)
	}
	if b.Platform.OS == "" {
		b.Platform = o.Platform
	}
	if b.Digest != "" {
		if err := b.Digest.Validate(); err != nil {
			return Base{}, fmt.Errorf("resolve base image %s: digest %q: %w", image, b.Digest, err)
		}
	} else if b.Ref != "scratch" {
		return Base{}, fmt.Errorf("resolve base image %s: it has no digest", image)
	}
	if got, want := normalPlatform(b.Platform).OS, normalPlatform(o.Platform).OS; got != want {
		return Base{}, fmt.Errorf("base image %s is for %s, and this build is for %s", image, got, want)
	}
	return b, nil
}

// hash hashes the sources of all copies from the context. Copies of the same sources share the work.
func (p *planner) hash(ctx context.Context, o Options) error {
	h := newHasher(ctx, o.Context, o)
	walks := make(map[string]*walk)
	name := func(c *spec.Copy) string { return fmt.Sprintf("%q %q", cleanSources(c, p.windows), exclusions(c)) }
	copies := func(yield func(*Step, *spec.Copy) bool) {
		for _, step := range p.plan.Steps {
			if c, ok := step.Op.(*spec.Copy); ok && c.From == "" && !yield(step, c) {
				return
			}
		}
	}
	for _, c := range copies {
		if o.Context == nil {
			p.fail(c.Pos, "there is no source directory to copy from")
		} else if n := name(c); walks[n] == nil {
			walks[n] = h.start(c)
		}
	}
	h.wait()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("hash the sources of copies: %w", err)
	}
	for step, c := range copies {
		w := walks[name(c)]
		if w == nil {
			continue
		}
		for _, err := range w.problems() {
			p.fail(c.Pos, "%v", err)
		}
		step.Sources = w.sources
	}
	if len(p.errs) > 0 {
		return p.errs
	}
	return nil
}
