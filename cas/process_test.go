package cas

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"
)

// helpers are what a test has other processes do.
func helpers() map[string]func(args []string) error {
	return map[string]func([]string) error{
		"hold":   holdHelper,
		"lock":   lockHelper,
		"count":  countHelper,
		"churn":  churnHelper,
		"layers": layersHelper,
		"inside": insideHelper,
	}
}

// holdHelper opens a store and has things in tmp until it is killed.
func holdHelper(args []string) error {
	s, err := Open(args[0])
	if err != nil {
		return err
	}
	if _, err := newLayer(s, "unfinished"); err != nil {
		return err
	}
	if err := s.Hold("default", args[1:]...); err != nil {
		return err
	}
	fmt.Println(s.RunID())
	select {}
}

// lockHelper locks a key until it is killed.
func lockHelper(args []string) error {
	s, err := Open(args[0])
	if err != nil {
		return err
	}
	l, err := s.Lock(context.Background(), "default", args[1])
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.LogPath(), []byte("half a line"), 0o644); err != nil {
		return err
	}
	fmt.Println("locked")
	select {}
}

// countHelper adds to a counter in a file, under a lock.
func countHelper(args []string) error {
	s, err := Open(args[0])
	if err != nil {
		return err
	}
	defer s.Close()
	for range 20 {
		l, err := s.Lock(context.Background(), "default", "counter")
		if err != nil {
			return err
		}
		b, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(string(b))
		if err != nil {
			return err
		}
		if err := os.WriteFile(args[1], []byte(strconv.Itoa(n+1)), 0o644); err != nil {
			return err
		}
		l.Unlock()
	}
	return nil
}

// layersHelper commits the same layers as others do, and uses each.
func layersHelper(args []string) error {
	s, err := Open(args[0])
	if err != nil {
		return err
	}
	defer s.Close()
	for i := range 50 {
		dir, err := newLayer(s, "same")
		if err != nil {
			return err
		}
		name, err := s.CommitLayer(dir, "d-"+strconv.Itoa(i))
		if err != nil {
			return err
		}
		if _, err := readFile(filepath.Join(s.LayerPath(name), "file")); err != nil {
			return err
		}
		if exists(dir) {
			return errors.New(dir + " is still there")
		}
	}
	return nil
}

// churnHelper builds chains as a run does, until it is killed or has done some.
func churnHelper(args []string) error {
	rounds, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	s, err := Open(args[0])
	if err != nil {
		return err
	}
	defer s.Close()
	fmt.Println("open")
	for range rounds {
		if err := churn(s); err != nil {
			return err
		}
	}
	return nil
}

// churn looks up a chain of five steps, makes what is missing, and sees that all of it is there.
func churn(s *Store) error {
	ctx := context.Background()
	chain := rand.IntN(6)
	var keys []string
	for i := range 5 {
		keys = append(keys, fmt.Sprintf("%02x-chain-%d", i, chain))
	}
	if err := s.Hold("default", keys...); err != nil {
		return err
	}
	for i, key := range keys {
		if _, err := s.Result("default", key); err == nil {
			continue
		}
		l, err := s.Lock(ctx, "default", key)
		if err != nil {
			return err
		}
		err = makeResult(s, chain, keys, i)
		l.Unlock()
		if err != nil {
			return err
		}
	}
	if rand.IntN(4) == 0 {
		if err := s.Sync(ctx); err != nil {
			return err
		}
	}
	for _, key := range keys {
		if err := checkResult(s, key); err != nil {
			return err
		}
	}
	c, err := s.OpenCache(ctx, "default", "cache", "")
	if err != nil {
		return err
	}
	defer c.Close()
	for _, dir := range c.Lower {
		if _, err := readFile(filepath.Join(dir, "file")); err != nil {
			return err
		}
	}
	upper := s.temp("upper")
	if err := os.Mkdir(upper, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(upper, "file"), []byte("cached"), 0o644); err != nil {
		return err
	}
	return c.Commit(upper, flattenForTest)
}

func makeResult(s *Store, chain int, keys []string, i int) error {
	if _, err := s.Result("default", keys[i]); err == nil {
		return nil // made by who had the lock before
	}
	r := Result{Key: keys[i]}
	if i > 0 {
		r.Parents = keys[i-1 : i]
	}
	dir, err := newLayer(s, "own")
	if err != nil {
		return err
	}
	own, err := s.CommitLayer(dir, "")
	if err != nil {
		return err
	}
	shared := "d-" + strconv.Itoa(chain)
	if !s.HasLayer(shared) {
		if dir, err = newLayer(s, "shared"); err != nil {
			return err
		}
		if _, err = s.CommitLayer(dir, shared); err != nil {
			return err
		}
	}
	r.Layers = []string{shared, own}
	d, err := s.PutBlob([]byte("log of " + keys[i]))
	if err != nil {
		return err
	}
	r.Blobs = append(r.Blobs, d)
	return s.PutResult("default", &r)
}

// checkResult sees that a held result has all that it refers to.
func checkResult(s *Store, key string) error {
	r, err := s.Result("default", key)
	if err != nil {
		return err
	}
	for _, l := range r.Layers {
		if !s.HasLayer(l) {
			return fmt.Errorf("key %s: layer %s is missing", key, l)
		}
		if b, err := readFile(filepath.Join(s.LayerPath(l), "file")); err != nil || len(b) == 0 {
			return fmt.Errorf("key %s: layer %s: %q, %v", key, l, b, err)
		}
	}
	for _, d := range r.Blobs {
		f, err := s.Blob(d)
		if err != nil {
			return err
		}
		_ = f.Close()
	}
	return nil
}

// flattenForTest puts the files of directories into one.
func flattenForTest(dst string, dirs []string) error {
	if err := os.Mkdir(dst, 0o755); err != nil {
		return err
	}
	for _, d := range dirs {
		entries, err := readDir(d)
		if err != nil {
			return err
		}
		for _, e := range entries {
			to := filepath.Join(dst, e.Name())
			// On Windows, a file that somebody has open is there for a moment after it was removed.
			for try := 0; ; try++ {
				if err := whileBusy(func() error { return os.Remove(to) }); err != nil && !errors.Is(err, os.ErrNotExist) {
					return err
				}
				if err := os.Link(filepath.Join(d, e.Name()), to); err == nil {
					break
				} else if try == 100 || !errors.Is(err, os.ErrExist) {
					return err
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
	return nil
}

func TestDeadRunIsCleanedAway(t *testing.T) {
	if durableAtOnce {
		t.Skip("dead runs are told of where boots are told apart")
	}
	dir := filepath.Join(t.TempDir(), "store")
	cmd, run := startHelper(t, "hold", dir)
	s := openStore(t, dir)
	if len(s.DeadRuns()) != 0 || !exists(s.path(tmpDir, run)) {
		t.Fatalf("a living run was taken for dead: %v", s.DeadRuns())
	}
	kill(t, cmd)
	for range 2 { // told until it is forgotten
		again := openStore(t, dir)
		if got := again.DeadRuns(); len(got) != 1 || got[0] != run {
			t.Fatalf("dead runs %v, want %s", got, run)
		}
		if exists(s.path(tmpDir, run)) || exists(s.path(leasesDir, run)) {
			t.Error("it left something")
		}
	}
	if err := s.ForgetRun(run); err != nil {
		t.Fatal(err)
	}
	if got := openStore(t, dir).DeadRuns(); len(got) != 0 {
		t.Errorf("dead runs %v after ForgetRun", got)
	}
}

func TestLockIsHandedOverByKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	cmd, _ := startHelper(t, "lock", dir, "key")
	s := openStore(t, dir)
	if l, err := s.TryLock("default", "key"); l != nil || err != nil {
		t.Fatalf("TryLock: %v, %v", l, err)
	}
	log, err := os.Open(s.RunningLog("default", "key"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Lock(ctx, "default", "key"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Lock: %v", err)
	}
	time.AfterFunc(50*time.Millisecond, func() { _ = cmd.Process.Kill() })
	start := time.Now()
	l, err := s.Lock(t.Context(), "default", "key")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Unlock()
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("the hand-over took %v", d)
	}
	if b, err := os.ReadFile(l.LogPath()); err != nil || len(b) > 0 {
		t.Errorf("log %q, %v", b, err)
	}
	var b [64]byte
	if n, _ := log.Read(b[:]); string(b[:n]) != "half a line" && runtime.GOOS != "windows" { // where an open file is not removed, but emptied
		t.Errorf("a follower of the old log reads %q", b[:n])
	}
}

func TestLockExcludesProcesses(t *testing.T) {
	dir := t.TempDir()
	counter := filepath.Join(dir, "counter")
	if err := os.WriteFile(counter, []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, "store")
	together(t, 4, func() *exec.Cmd { return helperCmd(t, "count", store, counter) })
	if b, _ := os.ReadFile(counter); string(b) != "80" {
		t.Errorf("counted %s, want 80", b)
	}
	left, _ := filepath.Glob(filepath.Join(store, locksDir, "*", "*"))
	if len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestSameLayerFromSeveralProcesses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := openStore(t, dir)
	// Half of them are there, spoiled by a power cut.
	asEpoch(s, "before")
	for i := range 25 {
		commitLayer(t, s, "d-"+strconv.Itoa(i), "spoiled")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	together(t, 3, func() *exec.Cmd { return helperCmd(t, "layers", dir) })
	now := openStore(t, dir)
	for i := range 50 {
		name := "d-" + strconv.Itoa(i)
		b, err := readFile(filepath.Join(now.LayerPath(name), "file"))
		if !now.HasLayer(name) || err != nil || string(b) != "same" {
			t.Errorf("layer %s: %q, %v", name, b, err)
		}
	}
}

func together(t *testing.T, n int, cmd func() *exec.Cmd) {
	t.Helper()
	var wg sync.WaitGroup
	for range n {
		c := cmd()
		wg.Go(func() {
			if err := c.Run(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// Runs that hold what they use, prunes of everything, and kills, all at once: nobody ever misses what it holds, and
// what is left is sound.
func TestChurnPruneKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 { // these must succeed
		c := helperCmd(t, "churn", dir, "60")
		wg.Go(func() {
			if err := c.Run(); err != nil {
				t.Errorf("churn: %v", err)
			}
		})
	}
	var others sync.WaitGroup
	others.Go(func() { // these are killed
		for running(stop) {
			cmd := helperCmd(t, "churn", dir, "1000")
			cmd.Stderr = nil
			if err := cmd.Start(); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	others.Go(func() {
		for running(stop) {
			s, err := Open(dir)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := s.Prune(t.Context(), PruneOptions{All: rand.IntN(2) == 0, KeepBytes: 1 << 14}); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Millisecond)
		}
	})
	wg.Wait()
	close(stop)
	others.Wait()

	s := openStore(t, dir)
	for _, p := range problems(t, s) {
		t.Errorf("%+v", p)
	}
	for i := range 10 {
		if err := churn(s); err != nil {
			t.Errorf("churn %d: %v", i, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s = openStore(t, dir)
	prune(t, s, PruneOptions{All: true})
	for _, d := range []string{blobsDir + "/sha256", layersDir, tmpDir, trashDir, locksDir + "/default", cachesDir + "/default"} {
		entries, err := readDir(s.path(d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != s.RunID() {
				t.Errorf("%s is left in %s", e.Name(), d)
			}
		}
	}
}

func running(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return false
	default:
		return true
	}
}
