package rootfs

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor"
)

func TestUseOver(t *testing.T) {
	for _, tt := range []struct {
		name   string
		use    use
		limits executor.Limits
		want   executor.Reason // "": not over
	}{
		{"no limits", use{1 << 50, 1 << 30}, executor.Limits{}, ""},
		{"as much as it may", use{4096, 3}, executor.Limits{Disk: 4096, Inodes: 3}, ""},
		{"disk", use{4097, 3}, executor.Limits{Disk: 4096, Inodes: 3}, executor.DiskFull},
		{"inodes", use{4096, 4}, executor.Limits{Disk: 4096, Inodes: 3}, executor.TooManyFiles},
		{"only inodes are limited", use{1 << 50, 4}, executor.Limits{Inodes: 3}, executor.TooManyFiles},
		{"less than at the start", use{-5, -5}, executor.Limits{Disk: 1, Inodes: 1}, ""},
		{"sums of thirds", use{0, 1.0/3 + 1.0/3 + 1.0/3 + 1e-9}, executor.Limits{Inodes: 1}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var exit *executor.ExitError
			got := executor.Reason("")
			if errors.As(tt.use.over(tt.limits), &exit) {
				got = exit.Reason
			}
			if got != tt.want {
				t.Errorf("over for %q, want %q", got, tt.want)
			}
		})
	}
}

func useOf(t *testing.T, dir string) (use, error) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return useBelow(f, maxDepth)
}

func TestUseBelow(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	write := func(name string, size int) {
		t.Helper()
		if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(outside, "big"), 8<<20)
	for i := range 3 * walkNames {
		write(filepath.Join(dir, strconv.Itoa(i)), 0)
	}
	sub := filepath.Join(dir, "a", "b")
	if err := errors.Join(os.MkdirAll(sub, 0o700), os.Symlink(outside, filepath.Join(dir, "link")), unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(sub, "f"), 1<<20)
	for i := range 9 {
		if err := os.Link(filepath.Join(sub, "f"), filepath.Join(dir, "f"+strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	got, err := useOf(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := 3*walkNames + 2 + 1 + 1 + 1; int(got.inodes+0.5) != want {
		t.Errorf("%v inodes, want %d", got.inodes, want)
	}
	if got.bytes < 1<<20 || got.bytes > 2<<20 {
		t.Errorf("%v bytes, want one MiB and a little", got.bytes)
	}
}

// TestUseTooDeep shows that what a process nests deeper than can be counted ends it, and costs nothing more.
func TestUseTooDeep(t *testing.T) {
	const depth = 100
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	at := int(dir.Fd())
	for i := range depth + 1 {
		if err := unix.Mkdirat(at, "d", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(at, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			unix.Close(at)
		}
		at = next
	}
	unix.Close(at)
	_, err = useBelow(dir, depth)
	var exit *executor.ExitError
	if !errors.As(err, &exit) || exit.Reason != executor.TooManyFiles {
		t.Errorf("%v", err)
	}
}

// TestUseOfWholeFileSystem is about what runs in a computer's own files: what they have grown counts, be it without a name.
func TestUseOfWholeFileSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	w := &diskWatch{limits: executor.Limits{Disk: 4 << 20}, pids: func() []string { return nil }}
	defer w.close()
	if err := w.addWhole(dir); err != nil {
		t.Fatal(err)
	}
	if err := w.look(); err != nil {
		t.Errorf("nothing was written: %v", err)
	}
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = f.Write(make([]byte, 5<<20))
	if err := errors.Join(err, os.Remove(f.Name())); err != nil {
		t.Fatal(err)
	}
	var exit *executor.ExitError
	if err := w.watch(t.Context()); !errors.As(err, &exit) || exit.Reason != executor.DiskFull {
		t.Errorf("5 MiB of 4: %v", err)
	}
}

// TestUseBesideWholeFileSystem is about the caches of such a process: they count where they are on another file system.
func TestUseBesideWholeFileSystem(t *testing.T) {
	other := "/dev/shm"
	if _, err := os.Stat(other); err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp(other, "obx-test-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &diskWatch{limits: executor.Limits{Disk: 1 << 40}}
	defer w.close()
	if err := errors.Join(w.addWhole("/"), w.addDir("/etc"), w.addDir(dir)); err != nil {
		t.Fatal(err)
	}
	if len(w.dirs) != 1 || len(w.fs) != 2 {
		t.Fatalf("%d directories on %d file systems", len(w.dirs), len(w.fs))
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	// What is beside the whole file system counts with it, whatever others do with that meanwhile.
	w.whole.in.Close()
	w.whole = nil
	if used, err := w.used(); err != nil || used.bytes < 1<<20 || used.bytes > 2<<20 {
		t.Errorf("%v bytes, %v", used.bytes, err)
	}
}

// The test program, run by TestUnlinked, is a process that has a file without a name in its memory only, and whose first thread has ended. Only
// init runs on that thread.
func init() {
	name := os.Getenv("OBX_TEST_HOLD")
	if name == "" {
		return
	}
	runtime.LockOSThread()
	f, err := os.Create(name)
	if err == nil {
		_, err = f.Write(make([]byte, 5<<20))
	}
	if err == nil {
		_, err = unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	}
	if err := errors.Join(err, f.Close(), os.Remove(name)); err != nil {
		panic(err)
	}
	go func() {
		_, _ = os.Stdout.WriteString("ready\n")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0) // not RawSyscall: the other threads must not wait for this one
}

// TestUnlinked is about files without names that no descriptor of a process shows.
func TestUnlinked(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("to look into processes needs root")
	}
	dir := t.TempDir()
	var pid string
	w := &diskWatch{limits: executor.Limits{Disk: 4 << 20}, pids: func() []string { return []string{pid} }}
	defer w.close()
	if err := w.addDir(dir); err != nil {
		t.Fatal(err)
	}

	t.Run("in the memory of a process whose first thread has ended", func(t *testing.T) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "OBX_TEST_HOLD="+filepath.Join(dir, "mapped"))
		in, err := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		if err := errors.Join(err, err2, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		defer func() { _, _ = in.Close(), cmd.Wait() }()
		if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
			t.Fatal(err)
		}
		pid = strconv.Itoa(cmd.Process.Pid)
		if got, sent := w.unlinked(); got.bytes < 5<<20 || sent {
			t.Errorf("%v bytes, sent: %v", got.bytes, sent)
		}
	})

	t.Run("in a socket", func(t *testing.T) {
		pid = strconv.Itoa(os.Getpid())
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[0])
		defer unix.Close(pair[1])
		if _, sent := w.unlinked(); sent {
			t.Error("nothing was sent")
		}
		f, err := os.Create(filepath.Join(dir, "sent"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Remove(f.Name()), unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(int(f.Fd())), nil, 0), f.Close()); err != nil {
			t.Fatal(err)
		}
		if _, sent := w.unlinked(); !sent {
			t.Error("a file was sent")
		}
	})
}
