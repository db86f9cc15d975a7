package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/cgroup"
)

// inMountNamespace runs a test on a thread with mounts of its own, which vanish with it.
func inMountNamespace(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		test(t)
	}()
	<-done
}

// TestAttach makes images and caches at random, in which any name may be a link to anywhere, and mounts at random places
// of them. Wherever that succeeds, each mount is where the process looks for it, the system's directories are the root's own, and
// nothing outside has changed.
func TestAttach(t *testing.T) {
	inMountNamespace(t, func(t *testing.T) {
		const cases = 60
		attached := 0
		for seed := range uint64(cases) {
			a := newAttacher(t, seed)
			if a.try() {
				attached++
			}
			a.close()
			if t.Failed() {
				t.Logf("seed %d", seed)
				return
			}
		}
		if attached < cases/10 {
			t.Errorf("only %d of %d could be attached: the test tries too little", attached, cases)
		}
	})
}

// TestAttachMeanwhile is TestAttach while another step changes the caches.
func TestAttachMeanwhile(t *testing.T) {
	inMountNamespace(t, func(t *testing.T) {
		for seed := range uint64(20) {
			a := newAttacher(t, seed)
			stop := a.disturb(seed)
			a.try()
			stop()
			a.close()
			if t.Failed() {
				t.Logf("seed %d", seed)
				return
			}
		}
	})
}

// An attacher is one random case.
type attacher struct {
	t          *testing.T
	r          *rand.Rand
	dir        string // has root, cache0..., host, box
	caches     []*cacheMount
	process    executor.Process
	root       *os.File
	disturbed  bool
	before     []string // of host
	rootBefore []string
}

var (
	someNames   = []string{"a", "b", "c", "etc", "dev", "proc", "sys", "hosts"}
	someTargets = []string{"/dev", "/proc", "/sys", "/a", "/b", "a", "../b", "/a/b", "../../../..", "/c/a", ".", "/etc", "/proc/self/root", "loop"}
)

func newAttacher(t *testing.T, seed uint64) *attacher {
	a := &attacher{t: t, r: rand.New(rand.NewPCG(seed, 1)), dir: t.TempDir()}
	host := filepath.Join(a.dir, "host")
	a.make(host, 2, nil)
	for _, d := range append([]string{"root/dev", "root/proc", "root/sys"}, "root/etc") {
		if a.r.IntN(8) > 0 { // mostly as in an ordinary image
			a.must(os.MkdirAll(filepath.Join(a.dir, d), 0o755))
		}
	}
	links := append(slices.Clone(someTargets), host, filepath.Join(host, "a"))
	a.make(filepath.Join(a.dir, "root"), 3, links)
	var err error
	a.root, err = cloneMount(filepath.Join(a.dir, "root"))
	a.must(err)
	for i := range a.r.IntN(4) {
		dir := filepath.Join(a.dir, fmt.Sprintf("cache%d", i))
		a.make(dir, 2, links)
		m, err := cloneMount(dir)
		a.must(err)
		a.caches = append(a.caches, &cacheMount{target: a.target(), shared: dir, mount: m, points: points{root: RootDir{FD: int(m.Fd())}}})
	}
	slices.SortStableFunc(a.caches, func(x, y *cacheMount) int { return strings.Count(x.target, "/") - strings.Count(y.target, "/") })
	a.process = executor.Process{Dir: "/"}
	for range a.r.IntN(3) {
		a.process.Mounts = append(a.process.Mounts, executor.Mount{Target: a.target(), Secret: &executor.Secret{Data: []byte("x")}})
	}
	a.must(os.Mkdir(filepath.Join(a.dir, "box"), 0o700))
	a.must(unix.Mount("box", filepath.Join(a.dir, "box"), "tmpfs", 0, ""))
	a.before, a.rootBefore = listing(t, host), listing(t, filepath.Join(a.dir, "root"))
	return a
}

func (a *attacher) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Error(err)
		runtime.Goexit()
	}
}

// target is a path to mount on.
func (a *attacher) target() string {
	p := ""
	for range 1 + a.r.IntN(3) {
		p += "/" + someNames[a.r.IntN(len(someNames))]
	}
	return p
}

// make fills a directory with what does not exist there yet.
func (a *attacher) make(dir string, depth int, links []string) {
	a.must(os.MkdirAll(dir, 0o755))
	for _, name := range someNames {
		file := filepath.Join(dir, name)
		switch n := a.r.IntN(12); {
		case n < 2 && len(links) > 0:
			_ = os.Symlink(links[a.r.IntN(len(links))], file)
		case n < 3:
			if f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL, 0o644); err == nil {
				f.Close()
			}
		case n < 8 && depth > 0:
			if err := os.Mkdir(file, 0o700); err == nil || a.isDir(file) {
				a.make(file, depth-1, links)
			}
		}
	}
}

func (a *attacher) isDir(name string) bool {
	st, err := os.Lstat(name)
	return err == nil && st.IsDir()
}

// disturb does to the caches what a step could do.
func (a *attacher) disturb(seed uint64) (stop func()) {
	a.disturbed = true
	r := rand.New(rand.NewPCG(seed, 2))
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			default:
			}
			for _, c := range a.caches {
				name := filepath.Join(c.shared, someNames[r.IntN(len(someNames))])
				aside := filepath.Join(c.shared, fmt.Sprintf("aside%d", n))
				_ = os.Rename(name, aside)
				switch r.IntN(3) {
				case 0:
					_ = os.Symlink(filepath.Join(a.dir, "host", "a"), name)
				case 1:
					_ = os.Symlink([]string{"/proc", "/dev", "/sys"}[r.IntN(3)], name)
				case 2:
					_ = os.Mkdir(name, 0o755)
				}
			}
		}
	})
	return func() { close(done); running.Wait() }
}

// try reports whether all could be attached.
func (a *attacher) try() bool {
	box := filepath.Join(a.dir, "box")
	pl, err := NewPlan(RootDir{FD: int(a.root.Fd())}, a.process, box, "", cgroup.System{}, a.caches)
	if err == nil {
		mounts := []*os.File{a.root}
		for _, c := range a.caches {
			mounts = append(mounts, c.mount)
		}
		err = Attach(box, Attachment{Mounts: mounts, Files: pl.Files, Binds: pl.Binds})
		if err == nil {
			a.check(pl)
		} else if !a.disturbed {
			a.t.Errorf("attach: %v", err)
		}
		a.must(Detach(box))
	}
	var start *executor.StartError
	if err != nil && !errors.As(err, &start) && !a.disturbed {
		a.t.Errorf("plan: %v", err)
	}
	a.must(pl.Remove())
	for _, c := range a.caches {
		a.must(c.points.remove())
	}
	if got := listing(a.t, filepath.Join(a.dir, "root")); !slices.Equal(got, a.rootBefore) {
		a.t.Errorf("the image was\n%s\nand is\n%s", strings.Join(a.rootBefore, "\n"), strings.Join(got, "\n"))
	}
	return err == nil
}

func (a *attacher) check(pl *Plan) {
	t := a.t
	rootfs := filepath.Join(a.dir, "box", RootName)
	var want []string
	for _, b := range pl.Binds {
		want = append(want, b.Target)
	}
	info, err := os.ReadFile("/proc/thread-self/mountinfo")
	a.must(err)
	var got []string
	for line := range strings.Lines(string(info)) {
		if at, ok := strings.CutPrefix(strings.Fields(line)[4], rootfs+"/"); ok {
			got = append(got, "/"+at)
			if below(at, systemDirs...) {
				t.Errorf("something is mounted on /%s", at)
			}
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !a.disturbed && !slices.Equal(got, want) {
		t.Errorf("mounted on %q, want %q", got, want)
	}
	for _, d := range systemDirs {
		if st, err := os.Lstat(filepath.Join(rootfs, d)); err != nil || !st.IsDir() {
			t.Errorf("%s is %v, %v", d, st, err)
		}
	}
	if a.disturbed {
		return
	}
	// The process's view: links are followed by the kernel, in the root.
	var targets []string
	for _, c := range a.caches {
		targets = append(targets, c.target)
	}
	for _, m := range a.process.Mounts {
		targets = append(targets, m.Target)
	}
	for _, target := range targets {
		fd, err := unix.Openat2(int(a.root.Fd()), target, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
		if err != nil {
			t.Errorf("the process finds %s: %v", target, err)
			continue
		}
		at, err := os.Readlink(ProcFD(fd))
		unix.Close(fd)
		a.must(err)
		if at = strings.TrimPrefix(at, rootfs); !slices.Contains(want, at) {
			t.Errorf("the process finds %s at %s, but there is something on %q only", target, at, want)
		}
	}
}

func (a *attacher) close() {
	if got := listing(a.t, filepath.Join(a.dir, "host")); !slices.Equal(got, a.before) {
		a.t.Errorf("the host had\n%s\nand has\n%s", strings.Join(a.before, "\n"), strings.Join(got, "\n"))
	}
	for _, c := range a.caches {
		c.mount.Close()
	}
	a.root.Close()
	_ = unix.Unmount(filepath.Join(a.dir, "box"), unix.MNT_DETACH)
}

// listing is what a directory has: names, modes, times of change.
func listing(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		link, _ := os.Readlink(name)
		all = append(all, path.Join("/", strings.TrimPrefix(name, dir))+fmt.Sprintf(" %v %d %v %s", i.Mode(), i.Size(), i.ModTime(), link))
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return all
}

// TestMakePoint: another step that shares a cache swaps a mount point that was just made for a link to a file of the host.
func TestMakePoint(t *testing.T) {
	host := filepath.Join(t.TempDir(), "host")
	if err := os.Mkdir(host, 0o700); err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	fd, err := unix.Open(cache, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	point, link := filepath.Join(cache, "point"), filepath.Join(cache, "link")
	if err := os.Symlink(host, link); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, point, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
	})
	for range 2000 {
		_ = makePoint(fd, "point", true)
		var st unix.Stat_t
		if err := unix.Stat(host, &st); err != nil || st.Mode&0o777 != 0o700 {
			t.Errorf("the host's directory has mode %o, %v", st.Mode, err)
			break
		}
		if unix.Rmdir(point) != nil {
			_ = unix.Rmdir(link)
			_ = unix.Rename(point, link)
		}
	}
	close(done)
	running.Wait()
}

// TestAttachShared: where the host's mounts are shared, as systemd makes them, what is mounted in a cache is mounted nowhere else: not on the host,
// nor in another step that has the same cache.
func TestAttachShared(t *testing.T) {
	inMountNamespace(t, func(t *testing.T) {
		a := &attacher{t: t, dir: t.TempDir()}
		a.must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""))
		for _, d := range []string{"root", "cache", "box"} {
			a.must(os.Mkdir(filepath.Join(a.dir, d), 0o755))
		}
		box := filepath.Join(a.dir, "box")
		a.must(unix.Mount("box", box, "tmpfs", 0, ""))
		a.must(unix.Mount("", box, "", unix.MS_PRIVATE, ""))
		var err error
		a.root, err = cloneMount(filepath.Join(a.dir, "root"))
		a.must(err)
		m, err := cloneMount(filepath.Join(a.dir, "cache"))
		a.must(err)
		caches := []*cacheMount{{target: "/c", mount: m, points: points{root: RootDir{FD: int(m.Fd())}}}}
		p := executor.Process{Dir: "/", Mounts: []executor.Mount{{Target: "/c/token", Secret: &executor.Secret{Data: []byte("secret")}}}}
		pl, err := NewPlan(RootDir{FD: int(a.root.Fd())}, p, box, "", cgroup.System{}, caches)
		a.must(err)
		defer pl.Remove()
		a.must(Attach(box, Attachment{Mounts: []*os.File{a.root, m}, Files: pl.Files, Binds: pl.Binds}))
		defer func() { a.must(Detach(box)) }()
		info, err := os.ReadFile("/proc/thread-self/mountinfo")
		a.must(err)
		for line := range strings.Lines(string(info)) {
			f := strings.Fields(line)
			if strings.HasPrefix(f[4], a.dir) && !below(f[4], box) {
				t.Errorf("mounted outside of the box: %s", line)
			}
			if below(f[4], filepath.Join(box, RootName)) && strings.HasPrefix(f[6], "shared:") {
				t.Errorf("shared with others: %s", line)
			}
		}
	})
}
