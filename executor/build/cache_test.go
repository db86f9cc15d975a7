package build_test

import (
	"context"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/repo"
)

// A spyRepo is a repository in memory whose answers tests can spoil, and that counts what is asked for.
type spyRepo struct {
	repo.Memory
	name string

	mu        sync.Mutex
	blobs     []digest.Digest             // that were read
	manifests int                         // that were written
	spoil     func(d digest.Digest) error // of a read of a blob; nil: none
	refuse    error                       // of every write
	hold      <-chan struct{}             // of every write of a blob: until it is closed
}

func (r *spyRepo) Name() string {
	if r.name != "" {
		return r.name
	}
	return "cache"
}

func (r *spyRepo) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	r.mu.Lock()
	r.blobs = append(r.blobs, desc.Digest)
	spoil := r.spoil
	r.mu.Unlock()
	if spoil != nil {
		if err := spoil(desc.Digest); err != nil {
			return nil, err
		}
	}
	return r.Memory.Blob(ctx, desc)
}

func (r *spyRepo) PutBlob(ctx context.Context, desc ocispec.Descriptor, from string, open func() (io.ReadCloser, error)) error {
	if r.refuse != nil {
		return r.refuse
	}
	if r.hold != nil {
		<-r.hold
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return r.Memory.PutBlob(ctx, desc, from, open)
}

func (r *spyRepo) PutManifest(ctx context.Context, tag, mediaType string, data []byte) (ocispec.Descriptor, error) {
	if r.refuse != nil {
		return ocispec.Descriptor{}, r.refuse
	}
	r.mu.Lock()
	r.manifests++
	r.mu.Unlock()
	return r.Memory.PutManifest(ctx, tag, mediaType, data)
}

// forget empties the counts, and gives what they were.
func (r *spyRepo) forget() (blobs []digest.Digest, manifests, requests int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	blobs, manifests = r.blobs, r.manifests
	r.blobs, r.manifests = nil, 0
	return blobs, manifests, r.Requests()
}

// share makes a machine use repositories as caches.
func (m *machine) share(repos ...*spyRepo) *machine {
	m.Caches = nil
	for _, r := range repos {
		m.Caches = append(m.Caches, &registry.Cache{
			Repo: r, Store: m.Store, Platform: m.exec.Platform(), Warn: m.told.add,
		})
	}
	return m
}

// A warningList collects what caches warn of.
type warningList struct {
	mu  sync.Mutex
	all []string
}

func (l *warningList) add(msg string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, msg)
}

// What one machine has built, another has: it runs nothing, fetches no layer, and shows all logs, also those of the builds that
// were copied from.
func TestCacheFullHit(t *testing.T) {
	t.Parallel()
	r := &spyRepo{}
	first := newMachine(t).share(r).run(project)
	first.want("rrrrrrrr")
	if first.rep.PushedBytes <= 0 || first.rep.PulledBytes != 0 {
		t.Errorf("the report is %+v", first.rep)
	}
	r.forget()

	b := newMachine(t).share(r)
	for range 2 {
		o := b.run(project)
		o.want("cccccccc")
		o.wantLogs(first)
		if o.rep.Key != first.rep.Key || o.opens != 0 || o.rep.PulledBytes != 0 || o.rep.PushedBytes != 0 || o.rep.Saved <= 0 {
			t.Errorf("%d roots were opened, the report is %+v", o.opens, o.rep)
		}
		if w := slices.Concat(o.warnings(), b.told.all); len(w) > 0 {
			t.Errorf("warnings: %q", w)
		}
		blobs, manifests, requests := r.forget()
		if len(blobs) > 0 || manifests > 0 || requests > 4 { // two stages, each through an alias or not
			t.Errorf("%d blobs were read, %d manifests written, %d requests made", len(blobs), manifests, requests)
		}
	}

	// With the files.
	b.NeedFiles = true
	o := b.run(project)
	o.want("cccccccc")
	o.wantLogs(first)
	o.wantFiles(projectFiles)
	if o.rep.PulledBytes <= 0 {
		t.Errorf("the report is %+v", o.rep)
	}
	// Now they are here, whether the cache answers or not.
	b.Caches = nil
	o = b.another().run(strings.Replace(project, `(run (shell "echo checked"))`, "", 1))
	o.want("sssssss")
	for n, log := range map[int]string{1: "tools\n", 3: "dev C\n", 5: "let a = 1\n", 7: "dev\n"} {
		if o.logs[n] != log {
			t.Errorf("step %d showed %q, want %q", n, o.logs[n], log)
		}
	}
}

// resume is a spec whose last step can be changed.
const resume = `((build b ((from scratch) (run (shell "echo b; echo b > /b"))))
	(from scratch)
	(run (shell "echo one; echo 1 > /one"))
	(copy (from (build b)) (src /b) (dst /))
	(copy (src src/a.ml) (dst /))
	(run (shell "echo last %s; echo %[1]s > /last")))`

func resumeFiles(last string) map[string]string {
	return map[string]string{"one": "1\n", "b": "b\n", "a.ml": "let a = 1\n", "last": last + "\n"}
}

// An executor that reads layers' bytes gets those, and nothing is unpacked for it.
func TestBytesReader(t *testing.T) {
	t.Parallel()
	r := &spyRepo{}
	newMachine(t).share(r).run(fmt.Sprintf(resume, "A"))
	for _, bytes := range []bool{false, true} {
		b := newMachine(t).share(r)
		b.exec.readsBytes, b.Push = bytes, build.PushNever
		o := b.run(fmt.Sprintf(resume, "B"))
		o.want("ccccr")
		o.wantFiles(resumeFiles("B"))
		rec, err := b.Record(o.key(4))
		if err != nil {
			t.Fatal(err)
		}
		for i, l := range rec.Layers {
			if unpacked := l.Dir != ""; unpacked == bytes {
				t.Errorf("reads bytes: %v, layer %d was unpacked: %v", bytes, i, unpacked)
			}
		}
		if len(rec.Layers) != 3 {
			t.Errorf("the result has %d layers", len(rec.Layers))
		}
	}
}

// After a changed last step, another machine goes on from the step before: it fetches what that needs, once.
func TestCacheResume(t *testing.T) {
	t.Parallel()
	r := &spyRepo{}
	first := newMachine(t).share(r).run(fmt.Sprintf(resume, "A"))
	r.forget()
	b := newMachine(t).share(r)
	o := b.run(fmt.Sprintf(resume, "B"))
	o.want("ccccr")
	o.wantRan("echo last B; echo B > /last")
	o.wantFiles(resumeFiles("B"))
	blobs, _, _ := r.forget()
	unique := slices.Compact(slices.Sorted(slices.Values(blobs)))
	if len(blobs) != 2 || len(unique) != 2 { // a config and the one of three layers that is too large for the record
		t.Errorf("%d blobs were read, %d different ones", len(blobs), len(unique))
	}
	if o.rep.PulledBytes <= 0 || o.rep.PushedBytes <= 0 {
		t.Errorf("the report is %+v", o.rep)
	}
	for n := 1; n < 5; n++ {
		if o.logs[n] != first.logs[n] {
			t.Errorf("step %d showed %q, want %q", n, o.logs[n], first.logs[n])
		}
	}

	// Without the cache this machine goes on from what it has fetched, and has all logs.
	b.Caches = nil
	for _, p := range []*machine{b, b.another()} {
		again := p.run(fmt.Sprintf(resume, "B"))
		again.want("sssss")
		again.wantLogs(o)
		again.wantFiles(resumeFiles("B"))
		next := p.run(fmt.Sprintf(resume, "C"))
		next.want(strings.Repeat("s", 4) + next.steps()[4:])
		next.wantFiles(resumeFiles("C"))
	}

	// And what it has pushed is whole: a third machine has nothing to do.
	third := newMachine(t).share(r)
	last := third.run(fmt.Sprintf(resume, "B"))
	last.want("ccccc")
	last.wantLogs(o)
}

// A stage whose input keys miss is found by content in a cache.
func TestCacheByContent(t *testing.T) {
	t.Parallel()
	const text = `((build b ((from scratch) (run (shell "echo b > /b; echo %s > /other"))))
		(from scratch) (copy (from (build b)) (src /b) (dst /)) (run (shell "cat /b")) (run (shell "echo x > /x")))`
	r := &spyRepo{}
	first := newMachine(t).share(r).run(fmt.Sprintf(text, "1"))
	b := newMachine(t).share(r)
	b.NeedFiles = true
	o := b.run(fmt.Sprintf(text, "2"))
	o.want("rccc")
	o.wantFiles(map[string]string{"b": "b\n", "x": "x\n"})
	if o.rep.Key != first.rep.Key {
		t.Errorf("the result is %s, was %s", o.rep.Key, first.rep.Key)
	}
	o = b.run(fmt.Sprintf(text, "2"))
	o.want("ssss")
	if o.opens != 0 {
		t.Errorf("%d roots were opened", o.opens)
	}
	// The new input keys lead there on other machines, too.
	newMachine(t).share(r).run(fmt.Sprintf(text, "2")).want("cccc")
}

// Results that the cache lacks are pushed, though they were made before; what it has is not.
func TestCachePushesLocalHits(t *testing.T) {
	t.Parallel()
	r := &spyRepo{}
	a := newMachine(t)
	first := a.run(project)
	plain := listStore(t, a)
	o := a.share(r).run(project)
	o.want("ssssssss")
	if o.rep.PushedBytes <= 0 {
		t.Errorf("the report is %+v", o.rep)
	}
	third := newMachine(t).share(r).run(project)
	third.want("cccccccc")
	third.wantLogs(first)

	// Each step of it is there.
	short := strings.Replace(project, `(run (shell "cat /dev-result; echo done >> out"))`, "", 1)
	newMachine(t).share(r).run(short).want("ccccccc")

	// What is there is neither pushed nor packed again.
	for _, packed := range changes(plain, listStore(t, a)) {
		remove(t, packed[1:])
	}
	r.forget()
	o = a.another().share(r).run(project)
	if _, manifests, requests := r.forget(); o.rep.PushedBytes != 0 || manifests != 0 || requests > 4 {
		t.Errorf("pushed %d bytes in %d manifests, %d requests", o.rep.PushedBytes, manifests, requests)
	}
	if changed := changes(plain, listStore(t, a)); len(changed) > 0 {
		t.Errorf("it has changed %q", changed)
	}
}

// A step that another process on this machine did, without a cache, is pushed by the one that waited for it.
func TestCachePushesWhatOthersMade(t *testing.T) {
	t.Parallel()
	r := &spyRepo{}
	holder := newMachine(t)
	holder.exec.before = func(command *string, _ executor.Process) { *command = strings.Replace(*command, "sleep 60", "true", 1) }
	waiter := holder.another().share(r)
	waiter.exec.before = holder.exec.before
	begun := make(chan struct{})
	release := make(chan struct{})
	holder.Events = func(e build.Event) {
		if e.Kind == build.Started {
			close(begun)
			<-release
		}
	}
	waiter.Events = func(e build.Event) {
		if e.Kind == build.Waiting {
			close(release)
		}
	}
	plan, waiterPlan := holder.plan(lockedStep), waiter.plan(lockedStep)
	var wg sync.WaitGroup
	wg.Go(func() { _ = holder.try(t.Context(), plan) })
	<-begun
	waiter.try(t.Context(), waiterPlan).want("s")
	wg.Wait()
	third := newMachine(t).share(r)
	third.exec.before = holder.exec.before
	third.run(lockedStep).want("c")
}

// A failed build has published its finished steps.
func TestCacheAfterFailure(t *testing.T) {
	t.Parallel()
	r := &spyRepo{}
	a := newMachine(t).share(r)
	o := a.try(t.Context(), a.plan(`((from scratch) (run (shell "echo 1 > /one")) (run (shell "false")))`))
	o.want("r-")
	b := newMachine(t).share(r)
	o = b.run(`((from scratch) (run (shell "echo 1 > /one")) (run (shell "cat /one")))`)
	o.want("cr")
	if o.logs[2] != "1\n" {
		t.Errorf("step 2 printed %q", o.logs[2])
	}
}

// A result whose bytes are gone counts as lost, at whichever read: the build goes on from the deepest one that is whole, and is
// right; the next machine finds the cache healed.
func TestCacheGone(t *testing.T) {
	t.Parallel()
	counter := &spyRepo{}
	newMachine(t).share(counter).run(fmt.Sprintf(resume, "A"))
	counter.forget()
	newMachine(t).share(counter).run(fmt.Sprintf(resume, "B"))
	reads, _, _ := counter.forget()
	for k := range reads {
		t.Run(fmt.Sprint(k), func(t *testing.T) {
			t.Parallel()
			r := &spyRepo{}
			newMachine(t).share(r).run(fmt.Sprintf(resume, "A"))
			r.forget()
			n := 0
			var gone digest.Digest
			r.spoil = func(d digest.Digest) error {
				r.mu.Lock()
				defer r.mu.Unlock()
				if n++; n == k+1 {
					gone = d
				}
				if d == gone {
					return fmt.Errorf("blob %s: %w", d, repo.ErrNotFound)
				}
				return nil
			}
			b := newMachine(t).share(r)
			o := b.run(fmt.Sprintf(resume, "B"))
			o.wantFiles(resumeFiles("B"))
			if len(b.told.all) == 0 {
				t.Error("no warning")
			}
			if steps := o.steps(); steps[4] != 'r' || !strings.Contains(steps[:4], "r") {
				t.Errorf("the steps were %s", steps)
			}
			again := b.run(fmt.Sprintf(resume, "B"))
			again.wantFiles(resumeFiles("B"))
			if steps := again.steps(); strings.Contains(steps, "r") {
				t.Errorf("the next build's steps were %s", steps)
			}
		})
	}
}

// A cache that cannot be reached, in any way, is as good as none.
func TestCacheUnreachable(t *testing.T) {
	t.Parallel()
	down := errors.New("connection refused")
	m := newMachine(t)
	m.Caches = []*registry.Cache{{Repo: deadRepo{down}, Store: m.Store}}
	o := m.run(project)
	o.want("rrrrrrrr")
	o.wantFiles(projectFiles)
	m.run(project).want("ssssssss")
}

// A deadRepo answers nothing.
type deadRepo struct{ err error }

func (d deadRepo) Name() string { return "dead" }
func (d deadRepo) Head(context.Context, string) (desc ocispec.Descriptor, err error) {
	return desc, d.err
}
func (d deadRepo) Manifest(context.Context, string) (desc ocispec.Descriptor, b []byte, err error) {
	return desc, nil, d.err
}
func (d deadRepo) Blob(context.Context, ocispec.Descriptor) (io.ReadCloser, error) { return nil, d.err }
func (d deadRepo) HasBlob(context.Context, ocispec.Descriptor) (bool, error)       { return false, d.err }
func (d deadRepo) PutBlob(context.Context, ocispec.Descriptor, string, func() (io.ReadCloser, error)) error {
	return d.err
}
func (d deadRepo) PutManifest(context.Context, string, string, []byte) (desc ocispec.Descriptor, err error) {
	return desc, d.err
}
func (d deadRepo) Tags(context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) { yield("", d.err) }
}
func (d deadRepo) Delete(context.Context, string) error { return d.err }

// Push says whether results are pushed, whether steps wait for that, and what a failure is.
func TestPushModes(t *testing.T) {
	t.Parallel()
	full := errors.New("quota exceeded")
	for _, test := range []struct {
		mode     build.PushMode
		refuse   error
		pushed   bool
		warnings int
		fails    bool
	}{
		{"", nil, true, 0, false},
		{"", full, false, 1, false},
		{build.PushBackground, nil, true, 0, false},
		{build.PushBackground, full, false, 1, false},
		{build.PushWait, nil, true, 0, false},
		{build.PushWait, full, false, 1, false},
		{build.PushNever, nil, false, 0, false},
		{build.PushNever, full, false, 0, false},
		{build.PushRequire, nil, true, 0, false},
		{build.PushRequire, full, false, 1, true},
	} {
		t.Run(fmt.Sprintf("%s %v", test.mode, test.refuse), func(t *testing.T) {
			t.Parallel()
			r := &spyRepo{refuse: test.refuse}
			m := newMachine(t).share(r)
			m.Push = test.mode
			if test.mode == build.PushWait && test.pushed {
				// Each step is there before the next begins.
				m.Events = func(e build.Event) {
					if e.Kind == build.Started && e.Step.Index > 0 {
						r.mu.Lock()
						defer r.mu.Unlock()
						if r.manifests < 2*e.Step.Index { // an image and a record each
							t.Errorf("step %d begins after %d manifests were pushed", e.Step.Number, r.manifests)
						}
					}
				}
			}
			o := m.try(t.Context(), m.plan(fmt.Sprintf(resume, "A")))
			if failed := o.err != nil; failed != test.fails || failed && !errors.Is(o.err, full) {
				t.Errorf("the error is %v", o.err)
			}
			o.want("rrrrr")
			if w := o.warnings(); len(w) != test.warnings || test.warnings > 0 && !strings.Contains(w[0], "quota exceeded") {
				t.Errorf("warnings: %q", w)
			}
			if (o.rep.PushedBytes > 0) != test.pushed {
				t.Errorf("the report is %+v", o.rep)
			}
			r.refuse = nil
			want := map[bool]string{true: "ccccc", false: "rrrrr"}[test.pushed]
			newMachine(t).share(r).run(fmt.Sprintf(resume, "A")).want(want)
		})
	}
}

// A build that is interrupted while only pushes are waited for has not done what it was to do, and says so.
func TestPushInterrupted(t *testing.T) {
	t.Parallel()
	for _, mode := range []build.PushMode{build.PushBackground, build.PushRequire} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancelCause(t.Context())
			cause := errors.New("interrupted")
			r := &spyRepo{hold: ctx.Done()}
			m := newMachine(t).share(r)
			m.Push = mode
			m.Events = func(e build.Event) {
				if e.Kind == build.Pushing {
					cancel(cause)
				}
			}
			o := m.try(ctx, m.plan(fmt.Sprintf(resume, "A")))
			o.want("rrrrr")
			if !errors.Is(o.err, cause) {
				t.Errorf("the error is %v", o.err)
			}
			if w := o.warnings(); len(w) != 1 || !strings.Contains(w[0], "results were pushed") {
				t.Errorf("warnings: %q", w)
			}
			m.Events, m.Push = nil, ""
			m.run(fmt.Sprintf(resume, "A")).want("sssss")
			newMachine(t).share(r).run(fmt.Sprintf(resume, "A")).want("ccccc")
		})
	}
}

// The same where nothing but copies of what another cache has are waited for.
func TestCopyInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("interrupted")
	near, far := &spyRepo{name: "near", hold: ctx.Done()}, &spyRepo{name: "far"}
	newMachine(t).share(far).run(fmt.Sprintf(resume, "A"))
	m := newMachine(t).share(near, far)
	m.Events = func(e build.Event) {
		if e.Kind == build.Pushing {
			cancel(cause)
		}
	}
	o := m.try(ctx, m.plan(fmt.Sprintf(resume, "A")))
	o.want("ccccc")
	if !errors.Is(o.err, cause) {
		t.Errorf("the error is %v", o.err)
	}
	if w := o.warnings(); len(w) != 1 || !strings.Contains(w[0], "results were pushed") {
		t.Errorf("warnings: %q", w)
	}
}

// Caches are asked in order, and the first is pushed to.
func TestTwoCaches(t *testing.T) {
	t.Parallel()
	near, far := &spyRepo{name: "near"}, &spyRepo{name: "far"}
	newMachine(t).share(far).run(fmt.Sprintf(resume, "A"))
	far.forget()
	b := newMachine(t).share(near, far)
	o := b.run(fmt.Sprintf(resume, "B"))
	o.want("ccccr")
	o.wantFiles(resumeFiles("B"))
	for _, e := range o.kind(build.Finished)[:4] {
		if e.Where != "far" {
			t.Errorf("step %d is from %q", e.Step.Number, e.Where)
		}
	}
	if _, manifests, _ := far.forget(); manifests != 0 {
		t.Errorf("%d manifests were pushed to the second cache", manifests)
	}
	far.forget()
	c := newMachine(t).share(near)
	o = c.run(fmt.Sprintf(resume, "B"))
	o.want("ccccc")
	c.run(fmt.Sprintf(resume, "C")).want("ccccr") // the hits were copied forward
	earlier := strings.Replace(fmt.Sprintf(resume, "B"), "(src src/a.ml) (dst /)", "(src src/a.ml) (dst /other)", 1)
	newMachine(t).share(near).run(earlier).want("cccrr") // with all that they were made from
	if e := o.kind(build.Finished)[0]; e.Where != "near" {
		t.Errorf("step %d is from %q", e.Step.Number, e.Where)
	}
}

// Large logs travel as well.
func TestCacheLargeLog(t *testing.T) {
	t.Parallel()
	r := &spyRepo{}
	var b strings.Builder
	for i := range 200 { // lines that do not compress well
		fmt.Fprintf(&b, "echo %x;", sha512.Sum512([]byte{byte(i)}))
		fmt.Fprintf(&b, "echo %x;", sha512.Sum512([]byte{byte(i), 1}))
		fmt.Fprintf(&b, "echo %x;", sha512.Sum512([]byte{byte(i), 2}))
	}
	text := `((from scratch) (run (shell "` + b.String() + `")) (run (shell "echo %s")))`
	first := newMachine(t).share(r).run(fmt.Sprintf(text, "A"))
	if len(first.logs[1]) < 64<<10 {
		t.Fatalf("the log has %d bytes", len(first.logs[1]))
	}
	other := newMachine(t).share(r)
	full := other.run(fmt.Sprintf(text, "A"))
	full.want("cc")
	full.wantLogs(first)
	o := other.run(fmt.Sprintf(text, "B"))
	o.want("cr")
	other.Caches = nil
	again := other.another().run(fmt.Sprintf(text, "B"))
	again.want("ss")
	if again.logs[1] != first.logs[1] {
		t.Errorf("the log has %d bytes, had %d", len(again.logs[1]), len(first.logs[1]))
	}
}

// The base image is fetched only when a step runs on it, and then its layers are not taken twice.
func TestCacheWithBase(t *testing.T) {
	t.Parallel()
	base := makeBase(t)
	r := &spyRepo{}
	text := `((from ` + base + `) (run (shell "cat /etc/base; echo one > /one")) (run (shell "echo %s > /two; echo $FROM_BASE")))`
	newMachine(t).share(r).run(fmt.Sprintf(text, "A"))
	b := newMachine(t).share(r)
	o := b.run(fmt.Sprintf(text, "A"))
	o.want("cc")
	if o.rep.PulledBytes != 0 {
		t.Errorf("the report is %+v", o.rep)
	}
	o = b.run(fmt.Sprintf(text, "B"))
	o.want("cr")
	o.wantFiles(map[string]string{"etc/base": "base\n", "one": "one\n", "two": "B\n"})
	if o.logs[2] != "yes\n" {
		t.Errorf("step 2 printed %q", o.logs[2])
	}
	if len(o.kind(build.Pulling)) == 0 {
		t.Error("no progress was told")
	}
}

// A shell before a step of a build that only a cache has brings the files here.
func TestStateBeforeFromCache(t *testing.T) {
	t.Parallel()
	r := &spyRepo{}
	newMachine(t).share(r).run(fmt.Sprintf(resume, "A"))
	b := newMachine(t).share(r)
	plan := b.plan(fmt.Sprintf(resume, "A"))
	key, err := b.StateBefore(t.Context(), plan, plan.Steps[4])
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	s := build.Session{Context: plan.Steps[4].Env, Argv: []string{"sh", "-c", "cat /a.ml"}, Output: &out}
	if err := b.Shell(t.Context(), key, s); err != nil || out.String() != "let a = 1\n" {
		t.Errorf("it printed %q, %v", out.String(), err)
	}
	if len(b.exec.ran) != 1 { // the shell
		t.Errorf("ran %q", b.exec.ran)
	}
}

// Explain compares with results that came from a cache, too.
func TestExplainFromCache(t *testing.T) {
	t.Parallel()
	r := &spyRepo{}
	newMachine(t).share(r).run(`((from scratch) (env A 1) (run (shell "echo a")))`)
	b := newMachine(t).share(r)
	b.NeedFiles = true
	b.run(`((from scratch) (env A 1) (run (shell "echo a")))`).want("c")
	ex, err := b.Explain(t.Context(), b.plan(`((from scratch) (env A 2) (run (shell "echo a")))`))
	if err != nil || ex == nil || len(ex.Reasons) != 1 || !strings.Contains(ex.Reasons[0], "env A") {
		t.Errorf("it says %+v, %v", ex, err)
	}
}

// Ten machines with one cache build overlapping specs at once: all results are right.
func TestManyMachinesOneCache(t *testing.T) {
	t.Parallel()
	r := &spyRepo{}
	var wg sync.WaitGroup
	for i := range 6 {
		m := newMachine(t).share(r)
		m.NeedFiles = true
		last := fmt.Sprint(i % 3)
		plan := m.plan(fmt.Sprintf(resume, last))
		wg.Go(func() {
			o := m.try(t.Context(), plan)
			if w := slices.Concat(o.warnings(), m.told.all); o.err != nil || len(w) > 0 {
				t.Errorf("%v, warnings %q", o.err, w)
				return
			}
			o.wantFiles(resumeFiles(last))
		})
	}
	wg.Wait()
	o := newMachine(t).share(r).run(fmt.Sprintf(resume, "1"))
	o.want("ccccc")
	for n, want := range map[int]string{1: "b\n", 2: "one\n", 5: "last 1\n"} {
		if o.logs[n] != want {
			t.Errorf("step %d showed %q", n, o.logs[n])
		}
	}
}

// The logs of a build that two others copy from travel with each of them, whichever is pushed first.
func TestCacheLogsOfSharedBuilds(t *testing.T) {
	t.Parallel()
	const text = `((build b ((from scratch) (run (shell "echo shared; echo b > /b"))))
		(build c ((from scratch) (copy (from (build b)) (src /b) (dst /)) (run (shell "echo c; echo c > /c"))))
		(from scratch) (copy (from (build b)) (src /b) (dst /)) (copy (from (build c)) (src /c) (dst /)) (run (shell "echo %s")))`
	for range 2 {
		r := &spyRepo{}
		a := newMachine(t)
		first := a.run(fmt.Sprintf(text, "last"))
		a.share(r).run(fmt.Sprintf(text, "last")).want("ssssss")
		b := newMachine(t).share(r)
		o := b.run(fmt.Sprintf(text, "last"))
		o.want("cccccc")
		o.wantLogs(first)
		b.run(fmt.Sprintf(text, "another")).want("cccccr")
		b.Caches = nil
		o = b.another().run(fmt.Sprintf(text, "another"))
		o.want("ssssss")
		if o.logs[1] != "shared\n" || o.logs[3] != "c\n" {
			t.Errorf("the logs are %v", o.logs)
		}
	}
}

// Where a copy is found by content, the log is that of the build that the spec names now, on other machines too.
func TestCacheLogsOfNewBuild(t *testing.T) {
	t.Parallel()
	const text = `((build b ((from scratch) (run (shell "echo %s; echo b > /b"))))
		(from scratch) (copy (from (build b)) (src /b) (dst /)) (run (shell "echo last")))`
	r := &spyRepo{}
	a := newMachine(t).share(r)
	a.run(fmt.Sprintf(text, "old"))
	second := a.run(fmt.Sprintf(text, "new"))
	second.want("rss")
	a.run(fmt.Sprintf(text, "new")).wantLogs(second)
	o := newMachine(t).share(r).run(fmt.Sprintf(text, "new"))
	o.want("ccc")
	o.wantLogs(second)
}

// A build of which a cache has everything needs no base image, even on a machine that has had it.
func TestCacheWithoutBase(t *testing.T) {
	t.Parallel()
	base := makeBase(t)
	r := &spyRepo{}
	text := `((from ` + base + `) (run (shell "echo one")) (run (shell "echo two")))`
	a := newMachine(t).share(r)
	first := a.run(text)
	plan := a.plan(text)
	loseBases(t, first)
	remove(t, strings.TrimPrefix(base, "oci:")+"/blobs")
	for _, p := range []*machine{newMachine(t).share(r), a.another().share(r)} {
		o := p.try(t.Context(), plan)
		if o.err != nil {
			t.Error(o.err)
		}
	}
}

// slowRecords is a repository that answers who asks for a record of it late.
type slowRecords struct {
	*spyRepo
	late func()
}

func (r *slowRecords) Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	r.late()
	return r.spyRepo.Manifest(ctx, ref)
}

// A machine that has all results itself notes in the cache that they are used, and tells of pushes only if there are any.
func TestCacheUsedFromStore(t *testing.T) {
	t.Parallel()
	const text = `((from scratch) (run (shell "echo one")) (run (shell "echo two")))`
	r := &spyRepo{}
	a := newMachine(t).share(r)
	first := a.run(text)
	tag := first.rep.Key + ".rec"
	record := func() (m map[string]any, notes map[string]any) {
		t.Helper()
		_, b, err := r.Memory.Manifest(t.Context(), tag)
		if err == nil {
			err = json.Unmarshal(b, &m)
		}
		if err != nil {
			t.Fatal(err)
		}
		return m, m["annotations"].(map[string]any)
	}
	m, notes := record()
	old := time.Now().Add(-48 * time.Hour).UTC().Format(time.RFC3339)
	notes["dev.obx.used"] = old
	b, err := json.Marshal(m)
	if err == nil {
		_, err = r.Memory.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, b)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.forget()

	again := a.another().share(r)
	told := make(chan struct{})
	again.Caches[0].Repo = &slowRecords{r, func() {
		select {
		case <-told:
		case <-time.After(300 * time.Millisecond):
		}
	}}
	again.Events = func(e build.Event) {
		if e.Kind == build.Pushing && e.Left > 0 {
			close(told)
		}
	}
	o := again.run(text)
	o.want("ss")
	if pushing := o.kind(build.Pushing); len(pushing) > 0 {
		t.Errorf("it tells of %d pushes", pushing[0].Left)
	}
	if _, notes = record(); notes["dev.obx.used"] == old {
		t.Error("the result's last use is not noted")
	}
	if _, manifests, _ := r.forget(); manifests != 1 {
		t.Errorf("%d manifests were written", manifests)
	}
	// Another cache gets what the store has, and that is told.
	empty := &spyRepo{}
	other := a.another().share(empty)
	other.Caches[0].Repo = &slowRecords{empty, func() { time.Sleep(100 * time.Millisecond) }}
	o = other.run(text)
	if pushing := o.kind(build.Pushing); len(pushing) == 0 || pushing[0].Left != 1 {
		t.Errorf("it tells of the pushes %+v", pushing)
	}
}
