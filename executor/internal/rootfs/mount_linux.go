package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/userns"
	"github.com/ocurrent/obx/executor"
)

// maxLower is overlayfs's own limit of lower directories.
const maxLower = 500

// maxValue is the longest string that fsconfig(2) takes.
const maxValue = 255

// An OverlayMount says what to mount.
type OverlayMount struct {
	Lower       []string // base first, at least one
	Upper, Work string   // empty: read-only
}

// options are in force whatever the module's defaults are: a layer must not depend on them.
func (m OverlayMount) options() [][2]string {
	o := [][2]string{{"redirect_dir", "nofollow"}, {"metacopy", "off"}, {"index", "off"}, {"xino", "off"}}
	if m.Upper != "" {
		o = append(o, [2]string{"upperdir", m.Upper}, [2]string{"workdir", m.Work})
	}
	return o
}

// flags are options without a value. A volatile mount never syncs: the store knows which results a power cut has spoilt.
func (m OverlayMount) flags() (f []string) {
	if m.Upper != "" {
		f = append(f, "volatile")
	}
	if userns.Inside() {
		f = append(f, "userxattr")
	}
	return f
}

// A Mounter makes overlay mounts that no mount namespace shows: they live as long as somebody has them open.
type Mounter struct {
	empty string // an empty directory: the root of what has no layers
	void  string // another, below everything: overlayfs wants two lower directories of a read-only mount
	old   atomic.Bool

	// busy has directories of layers that were written to by an overlay which is not gone yet, with channels that are closed when it is. The kernel
	// complains of such a directory, and has not promised anything.
	busy sync.Map
}

// detaching has Mount wait for an overlay before it takes the directory, which that has written to, for a layer.
func (mt *Mounter) detaching(dir string, gone <-chan struct{}) {
	mt.busy.Store(dir, gone)
	go func() {
		<-gone
		mt.busy.Delete(dir)
	}()
}

// Mount mounts m. The file is its root.
func (mt *Mounter) Mount(m OverlayMount) (*os.File, error) {
	for _, dir := range m.Lower {
		if gone, ok := mt.busy.Load(dir); ok {
			<-gone.(<-chan struct{})
		}
	}
	if len(m.Lower) == 0 || m.Upper == "" && len(m.Lower) == 1 {
		m.Lower = append([]string{mt.void}, m.Lower...)
	}
	if mt.old.Load() {
		return mountOld(m, mt.empty)
	}
	f, err := mountNew(m)
	if errors.Is(err, errNoLowerPlus) {
		mt.old.Store(true)
		return mountOld(m, mt.empty)
	}
	return f, err
}

var errNoLowerPlus = errors.New("this kernel's overlayfs has no option lowerdir+")

// mountNew names each lower directory by an option of its own (Linux 6.7).
func mountNew(m OverlayMount) (*os.File, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open file system type overlay (is the kernel module there? try `modprobe overlay`): %w", err)
	}
	defer unix.Close(fs)
	set := func(key, path string) error {
		if len(path) > maxValue {
			d, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open %s: %w", path, err)
			}
			defer unix.Close(d) // the kernel looks it up during fsconfig
			path = ProcFD(d)
		}
		if err := unix.FsconfigSetString(fs, key, path); err != nil {
			return mountError(fs, key, path, err)
		}
		return nil
	}
	for i := len(m.Lower) - 1; i >= 0; i-- {
		if err := set("lowerdir+", m.Lower[i]); err != nil {
			if i == len(m.Lower)-1 && errors.Is(err, unix.EINVAL) && !HasLowerPlus() {
				return nil, errNoLowerPlus
			}
			return nil, err
		}
	}
	for _, o := range m.options() {
		if err := set(o[0], o[1]); err != nil {
			return nil, err
		}
	}
	for _, f := range m.flags() {
		if err := unix.FsconfigSetFlag(fs, f); err != nil {
			return nil, mountError(fs, f, "", err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		if errors.Is(err, unix.EINVAL) && !HasLowerPlus() {
			return nil, errNoLowerPlus
		}
		return nil, mountError(fs, "mount", m.Upper, err)
	}
	attr := 0
	if m.Upper == "" {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return nil, mountError(fs, "fsmount", m.Upper, err)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// mayGive reports a process that can give descriptors to one that outlives it, of another step: by a socket, which both of them see in a shared cache
// or on the host's network.
func mayGive(p executor.Process) bool {
	return p.Network == executor.NetworkHost || slices.ContainsFunc(p.Caches(), func(m executor.Mount) bool { return m.Cache.Sharing == "shared" })
}

// endWrites makes an overlay read-only, for all who have its files open. It is an error if one is open for writing.
func endWrites(mount *os.File) error {
	fs, err := unix.Fspick(int(mount.Fd()), "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("end writes: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
		return mountError(fs, "ro", "", err)
	}
	for wait := time.Millisecond; ; wait *= 2 { // files that were in a message nobody took are closed a little later
		err := unix.FsconfigReconfigure(fs)
		switch {
		case err == nil:
			return nil
		case err != unix.EBUSY:
			return mountError(fs, "reconfigure", "", err)
		case wait > 500*time.Millisecond:
			return errors.New("the process has ended, but a file that it has given to another process is still open for writing, or was removed and is still open")
		}
		time.Sleep(wait)
	}
}

// HasLowerPlus tells an unknown option from a bad directory: a kernel that has the option takes it with "/". Before Linux 6.5
// overlayfs takes whatever there is, until it mounts.
func HasLowerPlus() bool {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fs)
	return unix.FsconfigSetString(fs, "lowerdir+", "/") == nil && unix.FsconfigSetString(fs, "lowerdir+", "") != nil
}

// mountError adds what the kernel itself says: reading the file system context gives its messages.
func mountError(fs int, key, value string, err error) error {
	var said []string
	buf := make([]byte, 512)
	for {
		n, rerr := unix.Read(fs, buf)
		if rerr != nil || n <= 0 {
			break
		}
		said = append(said, strings.TrimSpace(strings.TrimLeft(string(buf[:n]), "eiw ")))
	}
	msg := ""
	if len(said) > 0 {
		msg = " (kernel: " + strings.Join(said, "; ") + ")"
	}
	return fmt.Errorf("overlay: %s %s: %w%s", key, value, err, msg)
}

// mountOld mounts with mount(2). All options have to fit into one page, so directories get one or two letter names:
// links in a directory that a thread of its own has made its working directory. That thread has a mount namespace of
// its own too; what leaves it is a detached copy of the mount.
func mountOld(m OverlayMount, near string) (*os.File, error) {
	links, err := os.MkdirTemp(filepath.Dir(near), "links-")
	if err != nil {
		return nil, fmt.Errorf("overlay: directory of short names: %w", err)
	}
	defer os.RemoveAll(links)
	var lower []string
	for i := len(m.Lower) - 1; i >= 0; i-- {
		name := strconv.FormatInt(int64(i), 36)
		if err := os.Symlink(m.Lower[i], filepath.Join(links, name)); err != nil {
			return nil, fmt.Errorf("overlay: short name: %w", err)
		}
		lower = append(lower, name)
	}
	data := "lowerdir=" + strings.Join(lower, ":")
	if m.Upper != "" {
		for name, dir := range map[string]string{"U": m.Upper, "W": m.Work} {
			if err := os.Symlink(dir, filepath.Join(links, name)); err != nil {
				return nil, fmt.Errorf("overlay: short name: %w", err)
			}
		}
		m.Upper, m.Work = "U", "W"
	}
	for _, o := range m.options() {
		data += "," + o[0] + "=" + o[1]
	}
	for _, f := range m.flags() {
		data += "," + f
	}
	if len(data) >= os.Getpagesize() {
		return nil, fmt.Errorf("overlay: %d layers need more than a page of mount options; this needs Linux 6.7", len(m.Lower))
	}
	target := filepath.Join(links, "M")
	if err := os.Mkdir(target, 0o700); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its namespace with it
		fd, err := mountInOwnNamespace(links, target, data, m.Upper == "")
		done <- result{fd, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, r.err
	}
	return os.NewFile(uintptr(r.fd), "overlay"), nil
}

// mountInOwnNamespace changes the calling thread for good.
func mountInOwnNamespace(dir, target, data string, readOnly bool) (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return -1, fmt.Errorf("overlay: unshare mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, fmt.Errorf("overlay: make mounts private: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return -1, fmt.Errorf("overlay: %w", err)
	}
	flags := uintptr(0)
	if readOnly {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount("overlay", target, "overlay", flags, data); err != nil {
		return -1, fmt.Errorf("overlay: mount (%d bytes of options): %w", len(data), err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("overlay: detach mount (open_tree needs Linux 5.2): %w", err)
	}
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("overlay: %w", err)
	}
	return fd, nil
}

// ProcFD is a path of an open file.
func ProcFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
