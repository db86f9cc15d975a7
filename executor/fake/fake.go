// Package fake is an executor for tests of what is above executors: it needs no root, no kernel features and no image with
// programs in it, and a step takes less than a millisecond. Its layers are real ones in a real store.
//
// Nothing is run. Of a process only the last word of Argv counts, a script of commands separated by new lines or
// semicolons, each like the shell's command of that name:
//
//	echo [WORD...] [> FILE | >> FILE]
//	cat FILE...
//	mkdir [-p] DIRECTORY...
//	rm [-r] [-f] PATH...
//	ln -s TARGET LINK
//	chmod OCTAL PATH...
//	sleep SECONDS
//	exit STATUS
//	true
//	false
//
// Words may be quoted, $NAME is a variable of Env, relative paths are below Dir. No path leads through a link. A
// failing command prints why and does not end the script, save exit. Beyond the shell's:
//
//	fail MESSAGE...         the infrastructure fails: Run returns an error that is no *executor.ExitError
//	refuse MESSAGE...       the process cannot start: Run returns an *executor.StartError
//	kill SIGNAL             the process is killed by a signal
//	hog                     the process is killed because it uses too much memory
//
// Secrets can be read, caches keep what is written to them, in memory, until Close; the time-out is the only
// limit. Files belong to root, and their modification time is 1970.
package fake

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// An Executor pretends to run processes.
type Executor struct {
	Store *cas.Store

	// Started, if set, is called with each process before it runs.
	Started func(executor.Process)

	mu     sync.Mutex
	caches map[executor.Cache]tree
	closed bool
}

// New makes an executor on a store.
func New(st *cas.Store) *Executor { return &Executor{Store: st} }

// Platform is Linux on this machine's processor.
func (e *Executor) Platform() ocispec.Platform {
	return ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
}

// Open begins a root file system.
func (e *Executor) Open(_ context.Context, chain []layers.Layer) (executor.Root, error) {
	return &root{e: e, pending: chain, frozen: tree{}, now: tree{}}, nil
}

// Close makes every later Run fail.
func (e *Executor) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	return nil
}

// start begins a process: it lends it the content of its caches.
func (e *Executor) start(p executor.Process) (tree, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errors.New("the executor is closed")
	}
	mounted := tree{}
	for _, m := range p.Mounts {
		target := clean(m.Target)
		if m.Secret != nil {
			mounted[target] = newFile(m.Secret.Data, 0o644)
			continue
		}
		mounted[target] = newDir()
		for name, n := range e.caches[*m.Cache] {
			mounted[path.Join(target, name)] = n
		}
	}
	return mounted, nil
}

// finish takes the caches back.
func (e *Executor) finish(p executor.Process, mounted tree) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range p.Mounts {
		if m.Cache == nil {
			continue
		}
		kept := tree{}
		for name, n := range mounted {
			if below, ok := strings.CutPrefix(name, clean(m.Target)+"/"); ok {
				kept[below] = n
			}
		}
		if e.caches == nil {
			e.caches = map[executor.Cache]tree{}
		}
		e.caches[*m.Cache] = kept
	}
}

// A root is a file system in memory.
type root struct {
	e       *Executor
	pending []layers.Layer // not applied yet
	frozen  tree
	now     tree
}

func (r *root) load(ctx context.Context) error {
	for len(r.pending) > 0 {
		if l := r.pending[0]; !l.IsZero() {
			if err := r.apply(ctx, l); err != nil {
				return err
			}
		}
		r.pending = r.pending[1:]
		r.now = r.frozen.clone()
	}
	return nil
}

func (r *root) apply(ctx context.Context, l layers.Layer) error {
	rc, err := open(ctx, r.e.Store, l)
	if err != nil {
		return fmt.Errorf("read a layer: %w", err)
	}
	defer rc.Close()
	if err := r.frozen.apply(tar.NewReader(rc)); err != nil {
		return fmt.Errorf("read a layer: %w", err)
	}
	return nil
}

// open gives the tar of a layer.
func open(ctx context.Context, st *cas.Store, l layers.Layer) (io.ReadCloser, error) {
	if l.Dir == "" || !st.HasLayer(l.Dir) {
		switch l.Blob.MediaType {
		case ocispec.MediaTypeImageLayer:
			return st.Blob(l.Blob.Digest)
		case ocispec.MediaTypeImageLayerGzip:
			f, err := st.Blob(l.Blob.Digest)
			if err != nil {
				return nil, err
			}
			z, err := gzip.NewReader(f)
			if err != nil {
				f.Close()
				return nil, err
			}
			return struct {
				io.Reader
				io.Closer
			}{z, f}, nil
		}
		var err error
		if l, err = layers.Unpack(ctx, st, l); err != nil {
			return nil, err
		}
	}
	var buf bytes.Buffer
	if err := layers.WriteChange(ctx, &buf, st.LayerPath(l.Dir)); err != nil {
		return nil, err
	}
	return io.NopCloser(&buf), nil
}

// Run interprets a script.
func (r *root) Run(ctx context.Context, p executor.Process, out io.Writer) error {
	err := r.run(ctx, p, out)
	if err != nil {
		r.now = r.frozen.clone()
	}
	return err
}

func (r *root) run(ctx context.Context, p executor.Process, out io.Writer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := r.load(ctx); err != nil {
		return err
	}
	if len(p.Argv) == 0 {
		return &executor.StartError{Msg: "no command"}
	}
	if n := r.now[clean(p.Dir)]; n != nil && n.header.Typeflag != tar.TypeDir {
		return &executor.StartError{Msg: p.Dir + " is not a directory"}
	}
	mounted, err := r.e.start(p)
	if err != nil {
		return err
	}
	if r.e.Started != nil {
		r.e.Started(p)
	}
	limited := ctx
	if p.Limits.Timeout > 0 {
		var stop context.CancelFunc
		limited, stop = context.WithTimeout(ctx, p.Limits.Timeout)
		defer stop()
	}
	r.now.mkdirAll(clean(p.Dir))
	sh := shell{ctx: limited, p: p, out: out, files: r.now, mounted: mounted}
	err = sh.run(p.Argv[len(p.Argv)-1])
	r.e.finish(p, mounted)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return &executor.ExitError{Reason: executor.TimedOut, Limit: p.Limits.Timeout.String()}
	}
	return err
}

// Freeze packs what has changed.
func (r *root) Freeze(ctx context.Context) (executor.Change, error) {
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	empty, err := writeDiff(&buf, r.frozen, r.now)
	if err != nil || empty {
		return change{}, err
	}
	w, err := r.e.Store.NewBlob()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if _, err := w.Write(buf.Bytes()); err != nil {
		return nil, err
	}
	d, size, err := w.Commit("")
	if err != nil {
		return nil, err
	}
	r.frozen = r.now.clone()
	blob := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: size}
	return change{layers.Layer{DiffID: d, Blob: blob, Size: size}}, nil
}

// Add puts a layer on top.
func (r *root) Add(ctx context.Context, l layers.Layer) error {
	if err := r.load(ctx); err != nil {
		return err
	}
	if empty, err := writeDiff(io.Discard, r.frozen, r.now); err != nil || !empty {
		return errors.Join(errors.New("a layer was added to a root with changes that were not frozen"), err)
	}
	r.pending = append(r.pending, l)
	return nil
}

// Files gives the present files.
func (r *root) Files(ctx context.Context) (layers.Tree, error) {
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	return r.now.clone(), nil
}

// Close does nothing.
func (r *root) Close() error { return nil }

type change struct{ layer layers.Layer }

func (c change) Layer(context.Context) (layers.Layer, error) { return c.layer, nil }
func (c change) Close() error                                { return nil }
