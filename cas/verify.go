package cas

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// A Problem is one broken thing, and what is lost with it.
type Problem struct{ What, Path, Detail string }

// Verify reads everything: digests of blobs, readable results, references that lead nowhere. One Problem each, as it
// is found. What did not survive a power cut is no problem, since nobody sees it.
func (s *Store) Verify(ctx context.Context) iter.Seq2[Problem, error] {
	return func(yield func(Problem, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		// Work goes on in goroutines; yield is called only here, and not again when it has said no.
		found := make(chan Problem)
		v := verifier{store: s, users: map[string]int{}, report: func(p Problem) error {
			select {
			case found <- p:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}}
		done := make(chan error, 1)
		go func() {
			defer close(found)
			done <- v.verify(ctx)
		}()
		for p := range found {
			if !yield(p, nil) {
				cancel()
				for range found {
				}
				return
			}
		}
		if err := <-done; err != nil {
			yield(Problem{}, fmt.Errorf("verify %s: %w", s.dir, err))
		}
	}
}

type verifier struct {
	store  *Store
	users  map[string]int // results that refer to a blob, by its hex
	report func(Problem) error
}

func (v *verifier) verify(ctx context.Context) error {
	for path, err := range filesBelow(v.store.path(resultsDir), 3) {
		if err != nil {
			err = v.cannotList(path, err)
		} else {
			err = v.verifyResult(path)
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
	if err := v.verifyCaches(); err != nil {
		return err
	}
	return v.verifyBlobs(ctx)
}

// cannotList reports a directory of the store that cannot be read. What else there is, is looked at.
func (v *verifier) cannotList(path string, err error) error {
	return v.report(Problem{What: "directory", Path: path, Detail: fmt.Sprintf("cannot be listed: %v", err)})
}

// verifyResult looks at a result and what it refers to, all at one moment for prunes.
func (v *verifier) verifyResult(path string) error {
	s := v.store
	var problems []Problem
	err := s.commit(nil, func() error {
		f, err := s.readIfChanged(path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			f.err = err
		}
		domain := filepath.Base(filepath.Dir(filepath.Dir(path)))
		add := func(format string, args ...any) {
			problems = append(problems, Problem{What: "result", Path: path, Detail: fmt.Sprintf(format, args...)})
		}
		if f.err != nil {
			add("cannot be read, its step will run again: %v", f.err)
			return nil
		}
		if !s.isValid(f.durable, f.res.Epoch) {
			return nil
		}
		for _, l := range f.res.Layers {
			if !s.layerIsValid(l) {
				add("the layer directory %s of key %s is missing", l, f.res.Key)
			} else if info, err := os.Lstat(s.LayerPath(l)); err != nil || !info.IsDir() {
				add("the layer directory %s of key %s has no files", l, f.res.Key)
			}
		}
		for _, d := range f.res.Blobs {
			v.users[hexOf(d)]++
			if p, err := s.blobPath(d); err != nil {
				add("key %s refers to a digest that cannot be: %v", f.res.Key, err)
			} else if _, err := os.Lstat(p); err != nil {
				add("the blob %s of key %s is missing", d, f.res.Key)
			}
		}
		for _, key := range f.res.needs() {
			if !s.hasValidHolder(domain, key) {
				add("key %s needs key %s, which is missing", f.res.Key, key)
			}
		}
		return nil
	})
	for _, p := range problems {
		if err == nil {
			err = v.report(p)
		}
	}
	return err
}

// hasValidHolder reports whether a reference from domain to key leads to a result.
func (s *Store) hasValidHolder(domain, key string) bool {
	for _, p := range s.holdersOf(domain, key) {
		if r, err := s.readResultAt(p); err == nil && r.err == nil && s.isValid(r.durable, r.res.Epoch) {
			return true
		}
	}
	return false
}

// verifyCaches looks for generations that cannot be used although they should be.
func (v *verifier) verifyCaches() error {
	s := v.store
	for dir, err := range filesBelow(s.path(cachesDir), 2) {
		if err != nil {
			if err := v.cannotList(dir, err); err != nil {
				return err
			}
			continue
		}
		c := CacheMount{store: s, dir: dir}
		gens, err := c.generations()
		if err != nil {
			if err := v.report(Problem{What: "cache", Path: dir, Detail: err.Error()}); err != nil {
				return err
			}
		}
		for _, g := range gens {
			if g.valid || !g.durable && g.Epoch != s.epoch {
				continue
			}
			if _, err := os.Lstat(g.path); err != nil {
				continue // tidied up meanwhile
			}
			const detail = "it lists directories that are missing; an older generation, or an empty cache, is used"
			if err := v.report(Problem{What: "cache", Path: g.path, Detail: detail}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *verifier) verifyBlobs(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for path, err := range filesBelow(v.store.path(blobsDir, "sha256"), 1) {
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			g.Go(func() error { return v.cannotList(path, err) })
			continue
		}
		g.Go(func() error { return v.verifyBlob(ctx, path) })
	}
	return g.Wait()
}

func (v *verifier) verifyBlob(ctx context.Context, path string) error {
	hex := filepath.Base(path)
	bad := func(detail string) error {
		detail = fmt.Sprintf("%s; %d results refer to it", detail, v.users[hex])
		return v.report(Problem{What: "blob", Path: path, Detail: detail})
	}
	want := digest.NewDigestFromEncoded(digest.SHA256, hex)
	if want.Validate() != nil {
		return bad("its name is no digest")
	}
	f, err := openFile(path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // pruned meanwhile
	}
	if err != nil {
		return bad(err.Error())
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return bad(err.Error())
	}
	if !isMarked(info) {
		return nil // nobody sees it unless it is right
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(h, Reader(ctx, f), make([]byte, 1<<20)); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return bad(err.Error())
	}
	if got := digest.NewDigest(digest.SHA256, h); got != want {
		return bad("its bytes have the digest " + got.String())
	}
	return nil
}
