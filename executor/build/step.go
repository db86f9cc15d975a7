package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/layers"
)

// maxPreimage is how large a preimage is kept whole, in bytes: some 3,000 files of a copy. Of a larger one, whole
// directories are kept as digests, so explain names those instead of files.
const maxPreimage = 256 << 10

// hostname is what steps see as the name of their machine, as in OBuilder.
const hostname = "builder"

// A work is one step to do.
type work struct {
	step     *keys.Step
	parent   *results.Result
	forced   bool // not to be looked up
	id       keys.ID
	preimage []byte

	sources []keys.Source // of a copy from a build
	from    root          // that build's files

	refused []string // what its command could not make; see executor.Process.Refused
}

func (w *work) close() error { return w.from.close() }

// readSources waits for the build that a step copies from, and hashes what it takes.
func (s *stage) readSources(ctx context.Context, w *work) error {
	from := s.stages[w.step.From]
	final, err := from.wait(ctx)
	if err != nil {
		return err
	}
	if err := s.open(ctx, &w.from, final); err != nil {
		return err
	}
	tree, err := w.from.Files(ctx)
	if err != nil {
		return fmt.Errorf("read the files of build %s: %w", from.Name, err)
	}
	w.sources, err = keys.HashSources(ctx, tree, w.step.Op.(*spec.Copy), keys.Options{Platform: s.plan.Platform})
	if err != nil && ctx.Err() == nil {
		return &StepError{Step: w.step, Err: err}
	}
	return err
}

// step does one step, unless another process or stage does it first. The key's lock is held only meanwhile, and a waiter
// for it holds no job slot.
func (s *stage) step(ctx context.Context, w *work, root *root) (*results.Result, error) {
	if w.id != w.step.Key {
		if err := s.places.Hold(w.id); err != nil {
			return nil, err
		}
	}
	lock, seen, err := s.lock(ctx, w)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	if found := s.found(w); found != nil {
		known := found.Steps()
		s.replayed(ctx, w.step, known[len(known)-1], seen)
		return found, errors.Join(s.places.Alias(w.step.Key, w.id), root.close())
	}
	if err := s.slots.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	defer s.slots.Release(1)

	s.Store.MakeRoom(ctx)
	s.emit(Event{Kind: Started, Stage: s.Stage, Step: w.step})
	log, err := s.newLog(w.step, lock.LogPath())
	if err != nil {
		return nil, err
	}
	defer log.file.Close()
	layer, err := s.do(ctx, w, root, log)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		s.publishFailure(w, log, err)
		return nil, err
	}
	made, err := s.keep(ctx, w, layer, log)
	if err != nil {
		return nil, err
	}
	s.emit(Event{Kind: Finished, Stage: s.Stage, Step: w.step, Key: w.id.String(), Took: made.Record.Took})
	return made, nil
}

// do makes the layer of a step.
func (s *stage) do(ctx context.Context, w *work, root *root, log io.Writer) (layers.Layer, error) {
	if err := s.open(ctx, root, w.parent); err != nil {
		return layers.Layer{}, err
	}
	if op, ok := w.step.Op.(*spec.Run); ok {
		return s.runStep(ctx, w, op, root, log)
	}
	return s.copyStep(ctx, w, root)
}

// keep makes what a step has done a result.
func (s *stage) keep(ctx context.Context, w *work, layer layers.Layer, log *stepLog) (*results.Result, error) {
	preimage, err := keys.Collapse(w.preimage, maxPreimage)
	if err != nil {
		return nil, fmt.Errorf("shorten the preimage of step %d: %w", w.step.Number, err)
	}
	rec := results.Record{
		Op:       spec.HeadingIn(w.step.Env.Workdir, w.step.Op),
		Preimage: string(preimage),
		Env:      w.step.Env,
		Took:     time.Since(log.start),
	}
	if w.id != w.step.Key {
		rec.Input = string(w.step.Preimage)
	}
	if op, ok := w.step.Op.(*spec.Run); ok && len(op.Caches) > 0 {
		rec.Mounts = s.places.MountTrust()
	}
	if len(w.refused) > 0 {
		rec.Local = fmt.Sprintf("%s could not make %s, which root of the machine can: elsewhere, its result may be another",
			spec.Heading(w.step.Op), strings.Join(w.refused, ", "))
	}
	if w.step.From != nil {
		from := s.stages[w.step.From].final
		rec.Uses, rec.Local = []keys.ID{from.Key}, from.Local()
	}
	var made *results.Result
	err = s.Store.WithRoom(ctx, func() (err error) {
		if rec.Log, rec.LogBlob, err = log.finish(s.Store); err != nil {
			return err
		}
		made = w.parent.Next(w.id, layer, rec)
		return s.places.Save(made, w.step.Key)
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.made[w.id] = made
	s.mu.Unlock()
	return made, nil
}

// found looks for the result of a step while its key is locked. What another stage of this run has made just now is
// not made again, even if nothing else is believed.
func (s *stage) found(w *work) *results.Result {
	s.mu.Lock()
	made := s.made[w.id]
	s.mu.Unlock()
	if made != nil || w.forced {
		return made
	}
	return s.places.Above(w.parent, w.id)
}

// lock takes the lock of a step's key. While another has it, the output of the step that it runs is followed; seen is
// how much of it was shown.
func (s *stage) lock(ctx context.Context, w *work) (l *cas.Lock, seen int64, err error) {
	domain, key := s.domains()[0], w.id.String()
	if l, err = s.Store.TryLock(domain, key); err != nil || l != nil {
		return l, 0, err
	}
	s.emit(Event{Kind: Waiting, Stage: s.Stage, Step: w.step})
	stop, done := make(chan struct{}), make(chan int64)
	go func() { done <- s.follow(w.step, s.Store.RunningLog(domain, key), stop) }()
	l, err = s.Store.Lock(ctx, domain, key)
	close(stop)
	return l, <-done, err
}

// runStep runs a command and freezes what it has changed.
func (s *stage) runStep(ctx context.Context, w *work, op *spec.Run, root *root, log io.Writer) (layers.Layer, error) {
	p, err := s.process(w, op)
	if err != nil {
		return layers.Layer{}, err
	}
	p.Refused = func(wanted []string) { w.refused = wanted }
	if err := s.bringMounts(ctx, op); err != nil {
		return layers.Layer{}, err
	}
	if err := root.Run(ctx, p, log); err != nil {
		var exit *executor.ExitError
		var start *executor.StartError
		if errors.As(err, &exit) || errors.As(err, &start) {
			return layers.Layer{}, &StepError{Step: w.step, Err: s.withoutShell(w.step, err)}
		}
		return layers.Layer{}, fmt.Errorf("step %d: %w", w.step.Number, err)
	}
	return s.freeze(ctx, w.step, root)
}

// withoutShell adds to a command that could not be started what a spec says of its shell, if it says nothing yet: not every image has bash.
func (s *stage) withoutShell(step *keys.Step, err error) error {
	var start *executor.StartError
	if s.plan.Platform.OS == "windows" || !errors.As(err, &start) || !strings.HasPrefix(start.Msg, "cannot run ") ||
		!slices.Equal(step.Env.Shell, keys.DefaultContext(s.plan.Platform).Shell) {
		return err
	}
	return fmt.Errorf("%w: commands are run by %s unless the spec says otherwise, as (shell /bin/sh -c) before this step",
		err, strings.Join(step.Env.Shell, " "))
}

func (s *stage) freeze(ctx context.Context, step *keys.Step, root *root) (layers.Layer, error) {
	change, err := root.Freeze(ctx)
	if err != nil {
		if errors.Is(err, layers.ErrReservedName) || errors.Is(err, layers.ErrTooDeep) {
			return layers.Layer{}, &StepError{Step: step, Err: err}
		}
		return layers.Layer{}, fmt.Errorf("freeze the result of step %d: %w", step.Number, err)
	}
	layer, err := change.Layer(ctx)
	if err := errors.Join(err, change.Close()); err != nil {
		return layers.Layer{}, fmt.Errorf("keep the result of step %d: %w", step.Number, err)
	}
	return layer, nil
}

// process is what a run operation asks for.
func (s *stage) process(w *work, op *spec.Run) (executor.Process, error) {
	env := w.step.Env
	p := executor.Process{
		Argv:     append(slices.Clone(env.Shell), op.Command),
		Env:      results.Environ(w.parent.BaseConfig(), env),
		Dir:      env.Workdir,
		UID:      env.User.UID,
		GID:      env.User.GID,
		User:     env.User.Name,
		Hostname: hostname,
		Limits:   s.Limits,
		FastSync: s.FastSync,
	}
	if base := w.parent.BaseConfig(); base != nil {
		p.OSVersion = base.OSVersion
	}
	if slices.Contains(op.Network, "host") {
		p.Network = executor.NetworkHost
	}
	for _, m := range op.Caches {
		c := &executor.Cache{Domain: s.domains()[0], Name: s.places.MountName(m.ID), Sharing: sharing(m)}
		p.Mounts = append(p.Mounts, executor.Mount{Target: m.Target, Cache: c})
	}
	for _, m := range op.Secrets {
		read, ok := s.Secrets[m.ID]
		if !ok {
			return p, &StepError{Step: w.step, Err: fmt.Errorf("secret %q has no value: give it with --secret %s=FILE", m.ID, m.ID)}
		}
		data, err := read()
		if err != nil {
			return p, fmt.Errorf("read secret %s: %w", m.ID, err)
		}
		p.Mounts = append(p.Mounts, executor.Mount{Target: m.Target, Secret: &executor.Secret{Data: data}})
	}
	return p, nil
}

// copyStep makes the layer of a copy, and goes on from it.
func (s *stage) copyStep(ctx context.Context, w *work, root *root) (layers.Layer, error) {
	parent, err := root.Files(ctx)
	if err != nil {
		return layers.Layer{}, fmt.Errorf("read the files that step %d copies into: %w", w.step.Number, err)
	}
	c := layers.Copy{
		From:    s.Source,
		Parent:  parent,
		Dst:     w.step.Dst,
		Windows: s.plan.Platform.OS == "windows",
		UID:     w.step.Env.User.UID,
		GID:     w.step.Env.User.GID,
		User:    w.step.Env.User.Name,
	}
	sources := w.step.Sources
	if w.step.From != nil {
		sources = w.sources
		if c.From, err = w.from.Files(ctx); err != nil {
			return layers.Layer{}, fmt.Errorf("read the files of build %s: %w", w.step.From.Name, err)
		}
	}
	for _, src := range sources {
		item := copyItem(src.Node)
		item.Src = src.Src
		c.Items = append(c.Items, item)
	}
	layer, err := layers.MakeCopy(ctx, s.Store, c)
	if err != nil {
		var bad *layers.CopyError
		if errors.As(err, &bad) {
			return layers.Layer{}, &StepError{Step: w.step, Err: err}
		}
		return layers.Layer{}, fmt.Errorf("step %d: copy: %w", w.step.Number, err)
	}
	if err := root.Add(ctx, layer); err != nil {
		return layers.Layer{}, fmt.Errorf("step %d: go on from the copy: %w", w.step.Number, err)
	}
	return layer, nil
}

func copyItem(n keys.Node) layers.Item {
	item := layers.Item{Name: n.Name, Mode: n.Kind, Exec: n.Exec, Digest: n.Digest, Link: n.Link}
	for _, c := range n.Children {
		item.Children = append(item.Children, copyItem(c))
	}
	return item
}
