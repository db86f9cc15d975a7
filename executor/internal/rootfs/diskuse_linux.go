package rootfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor"
)

// What a process adds to the disk is looked at while it runs. The look is a walk by descriptors through the directories that it can add to: they lie in
// the store, beneath the overlays that the process sees. A walk takes time, so walks are far apart; between them the file system itself is asked how
// much it has grown, by one system call, and when that is as much as the process may still have, the next walk begins at once.

const (
	walkPeriod = time.Second           // between walks, and not less than this many times what one takes:
	walkRests  = 20                    //
	growPeriod = 50 * time.Millisecond // between questions to the file system
	walkNames  = 64                    // names that are read at once, at each depth

	// hiddenTurns is how often in turn files may be where nobody can look at them. Then they count as all that the file systems have grown by.
	hiddenTurns = 3
)

// maxDepth is how many directories may be in each other. A walk has a descriptor for each, so that no process can lead it astray by moving them; a
// foreign.Cursor holds few, and gives up where one was moved.
const maxDepth = 4096

// A use is what is used of a disk. Fractions are of files that have several names: each name counts for its part, so that no list of
// files is needed to count each once.
type use struct{ bytes, inodes float64 }

func (u use) plus(v use) use  { return use{u.bytes + v.bytes, u.inodes + v.inodes} }
func (u use) minus(v use) use { return use{u.bytes - v.bytes, u.inodes - v.inodes} }

// add adds a file, for one of its names.
func (u *use) add(st *unix.Stat_t) {
	names := 1.0
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		names = float64(st.Nlink)
	}
	u.bytes += float64(st.Blocks) * 512 / names
	u.inodes += 1 / names
}

// over is the limit that is exceeded; nil if none is.
func (u use) over(l executor.Limits) error {
	switch {
	case l.Disk > 0 && u.bytes > float64(l.Disk):
		return &executor.ExitError{Reason: executor.DiskFull, Limit: units.BytesSize(float64(l.Disk))}
	case l.Inodes > 0 && u.inodes > float64(l.Inodes)+0.5: // sums of fractions
		return &executor.ExitError{Reason: executor.TooManyFiles, Limit: strconv.FormatInt(l.Inodes, 10)}
	}
	return nil
}

// reaches reports whether a use would exceed a limit if more came to it.
func (u use) reaches(l executor.Limits, more use) bool { return u.plus(more).over(l) != nil }

// tookTooMuch reports whether a process was ended for a limit of the disk.
func tookTooMuch(err error) bool {
	var exit *executor.ExitError
	return errors.As(err, &exit) && !executor.Ended(err)
}

// A diskWatch keeps the limits of one process.
type diskWatch struct {
	limits executor.Limits
	dirs   []watchedDir
	fs     map[uint64]*fileSystem // of dirs, and whole, by device
	whole  *fileSystem            // RunHere: the growth of all of it counts; else nil
	pids   func() []string        // of the process and all that it has started
	guess  bool                   // pids may not find it at all
}

// A watchedDir is one that the process can add to.
type watchedDir struct {
	dir    *os.File
	before use // what it had at the start
}

// A fileSystem is one that the process can add to.
type fileSystem struct {
	in    *os.File // something in it
	start use
}

// limitDisk runs a process below the limits of its disk.
func (mc *Machine) limitDisk(ctx context.Context, r *Run, caches *cacheSet, run func(context.Context) error) error {
	if r.Process.Limits.Disk <= 0 && r.Process.Limits.Inodes <= 0 {
		return run(ctx)
	}
	w, err := mc.newDiskWatch(r, caches)
	if err != nil {
		return fmt.Errorf("watch the disk: %w", err)
	}
	defer w.close()
	running, stop := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if err := w.watch(running); err != nil {
			stop(err)
		}
	}()
	err = run(running)
	over := context.Cause(running)
	stop(nil)
	<-watched
	switch {
	case ctx.Err() != nil:
		return err
	case over != nil:
		return over
	case executor.Ended(err):
		if over := w.look(); over != nil {
			return over
		}
	}
	return err
}

func (mc *Machine) newDiskWatch(r *Run, caches *cacheSet) (_ *diskWatch, err error) {
	w := &diskWatch{limits: r.Process.Limits}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	w.pids = func() []string { return mc.Cgroups.Processes(r.Plan.Spec.Linux.CgroupsPath) }
	if mc.Cgroups.None != "" {
		w.pids, w.guess = inRoot(int(r.Mounts[0].Fd())), true
	}
	names := map[string]bool{}
	if r.changes == "" {
		err = w.addWhole("/")
	} else {
		names[r.changes] = true
	}
	for _, c := range caches.list {
		names[cmp.Or(c.dir, c.shared)] = true
	}
	for name := range names {
		err = errors.Join(err, w.addDir(name))
	}
	return w, err
}

// addWhole adds a file system of which everything counts.
func (w *diskWatch) addWhole(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	if w.whole, err = w.fileSystemOf(d); w.whole == nil {
		d.Close()
	}
	return err
}

// addDir adds a directory, but for one in a file system that counts as a whole.
func (w *diskWatch) addDir(name string) error {
	d, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	in, err := w.fileSystemOf(d)
	if in == nil || in == w.whole {
		return errors.Join(err, d.Close())
	}
	before, err := useBelow(d, maxDepth)
	w.dirs = append(w.dirs, watchedDir{d, before})
	return err
}

func (w *diskWatch) close() {
	for _, d := range w.dirs {
		d.dir.Close()
	}
	if w.whole != nil {
		w.whole.in.Close()
	}
}

// fileSystemOf is the file system that a file is in, which from now on is watched.
func (w *diskWatch) fileSystemOf(f *os.File) (*fileSystem, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	if known := w.fs[st.Dev]; known != nil {
		return known, nil
	}
	start, err := useOfFileSystem(f)
	if err != nil {
		return nil, err
	}
	if w.fs == nil {
		w.fs = map[uint64]*fileSystem{}
	}
	w.fs[st.Dev] = &fileSystem{f, start}
	return w.fs[st.Dev], nil
}

// watch looks until a limit is exceeded, which is the error, or ctx ends. Who cannot see whether a limit is kept does not keep it: that is an
// error too.
func (w *diskWatch) watch(ctx context.Context) error {
	turns := 0 // with hidden files, while the file systems have grown by more than is allowed
	for {
		begun := time.Now()
		grown, err := w.growth()
		if err != nil {
			return err
		}
		used, err := w.used()
		// Files without names are looked at each time, whatever the file system says: Btrfs tells its use only when data goes to the disk, up to half a
		// minute after a process wrote it. stat tells at once.
		more, hidden := w.unlinked()
		used = used.plus(more)
		if turns++; !hidden || grown.over(w.limits) == nil {
			turns = 0
		}
		if turns >= hiddenTurns && used.over(w.limits) == nil {
			used = grown
		}
		if err == nil {
			err = used.over(w.limits)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		took := time.Since(begun)
		least, most := begun.Add(3*took), begun.Add(max(walkPeriod, walkRests*took))
		for time.Now().Before(most) {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(growPeriod):
			}
			more, err := w.growth()
			if err != nil {
				return err
			}
			if time.Now().After(least) && used.reaches(w.limits, more.minus(grown)) {
				break
			}
		}
	}
}

// look judges what is there, when the process has ended.
func (w *diskWatch) look() error {
	used, err := w.used()
	if err != nil {
		return err
	}
	return used.over(w.limits)
}

// used is what the process has added, as far as it has names.
func (w *diskWatch) used() (sum use, err error) {
	if w.whole != nil {
		if sum, err = w.whole.growth(); err != nil {
			return sum, err
		}
	}
	for _, d := range w.dirs {
		u, err := useBelow(d.dir, maxDepth)
		if err != nil {
			return sum, err
		}
		sum = sum.plus(u.minus(d.before))
	}
	return sum, nil
}

// growth is what the file systems have more than at the start, whoever it was.
func (w *diskWatch) growth() (sum use, err error) {
	for _, s := range w.fs {
		u, err := s.growth()
		if err != nil {
			return sum, err
		}
		sum = sum.plus(u)
	}
	return sum, nil
}

func (s *fileSystem) growth() (use, error) {
	u, err := useOfFileSystem(s.in)
	return u.minus(s.start), err
}

func useOfFileSystem(f *os.File) (use, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return use{}, fmt.Errorf("ask the file system of %s for its use: %w", f.Name(), err)
	}
	return use{float64(st.Blocks-st.Bfree) * float64(st.Bsize), float64(st.Files - st.Ffree)}, nil
}

// unlinked is what files use that have no name any more, and that a process holds open, has in its memory, or runs. hidden reports that there may be
// more: processes have sent files to each other which nobody has received yet, and nothing tells which these are; or no process is found.
func (w *diskWatch) unlinked() (sum use, hidden bool) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	look := func(name string) (mode uint32) {
		var st unix.Stat_t
		if unix.Stat(name, &st) != nil {
			return 0
		}
		if st.Nlink > 0 || st.Mode&unix.S_IFMT != unix.S_IFREG {
			return st.Mode & unix.S_IFMT
		}
		in := w.fs[st.Dev]
		if i := (inode{st.Dev, st.Ino}); !seen[i] && (in != nil && in != w.whole || inOverlay(name)) { // else in memory, say
			seen[i] = true
			sum.add(&st)
		}
		return unix.S_IFREG
	}
	pids := w.pids()
	hidden = w.guess && len(pids) == 0 // where there are groups, it has not begun
	for _, pid := range pids {
		threads, _ := filepath.Glob("/proc/" + pid + "/task/*")
		memory := false
		for _, thread := range threads {
			eachName(filepath.Join(thread, "fd"), func(fd string) { // each thread may have its own
				if look(filepath.Join(thread, "fd", fd)) == unix.S_IFSOCK {
					hidden = hidden || holdsFiles(filepath.Join(thread, "fdinfo", fd))
				}
			})
			// Memory is that of all threads. The first may have ended, and has none then.
			if self := filepath.Join("/proc", filepath.Base(thread)); !memory {
				eachName(filepath.Join(self, "map_files"), func(name string) {
					memory = true
					look(filepath.Join(self, "map_files", name))
				})
				look(filepath.Join(self, "exe")) // it need not be in memory
			}
		}
	}
	return sum, hidden
}

// inRoot finds the processes of a container that has no control group: those in the pid namespace of the first whose root is in a mount. It finds none
// of a container whose first process has left that root before anybody looked.
func inRoot(mount int) func() []string {
	var namespace string
	return func() (pids []string) {
		var root, at unix.Stat_t
		if unix.Fstat(mount, &root) != nil {
			return nil
		}
		eachName("/proc", func(pid string) {
			of := filepath.Join("/proc", pid)
			ns, err := os.Readlink(filepath.Join(of, "ns/pid"))
			if err != nil { // no process, or none of this user's namespace
				return
			}
			if namespace == "" && unix.Stat(filepath.Join(of, "root"), &at) == nil && at.Dev == root.Dev {
				namespace = ns
			}
			if ns == namespace {
				pids = append(pids, pid)
			}
		})
		return pids
	}
}

// eachName is for the names in a directory of a process, which may have ended.
func eachName(dir string, do func(string)) {
	d, err := os.Open(dir)
	if err != nil {
		return
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(walkNames)
		for _, name := range names {
			do(name)
		}
		if err != nil {
			return
		}
	}
}

// holdsFiles reports a socket with files in its queue, by what the kernel tells of its descriptor.
func holdsFiles(fdinfo string) bool {
	info, err := os.ReadFile(fdinfo)
	if err != nil {
		return false
	}
	_, n, found := strings.Cut(string(info), "\nscm_fds:")
	n, _, _ = strings.Cut(n, "\n")
	return found && strings.TrimSpace(n) != "0"
}

// inOverlay reports a file in an overlay: all overlays that a process sees lie above directories that count. stat does not tell: with layers on several
// file systems, each has a number of the overlay's own.
func inOverlay(name string) bool {
	var st unix.Statfs_t
	return unix.Statfs(name, &st) == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC
}

// useBelow adds up what is in a directory, and in all below it. A process may change it meanwhile: nothing is reached by more than one name, links are
// not followed, and what goes away does not count.
func useBelow(top *os.File, depth int) (use, error) {
	var sum use
	first, err := openDirAt(int(top.Fd()), ".")
	if err != nil {
		return sum, err
	}
	stack := []*level{{dir: first}}
	defer func() {
		for _, l := range stack {
			l.dir.Close()
		}
	}()
	for len(stack) > 0 {
		l := stack[len(stack)-1]
		name, err := l.next()
		if err == io.EOF {
			l.dir.Close()
			stack = stack[:len(stack)-1]
			continue
		}
		if err != nil {
			return sum, fmt.Errorf("count what is in a directory: %w", err)
		}
		var st unix.Stat_t
		if unix.Fstatat(int(l.dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		sum.add(&st)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		if len(stack) == depth {
			return sum, tooDeep(depth)
		}
		sub, err := openDirAt(int(l.dir.Fd()), name)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		case errors.Is(err, unix.EMFILE):
			return sum, tooDeep(len(stack))
		case err != nil:
			return sum, err
		default:
			stack = append(stack, &level{dir: sub})
		}
	}
	return sum, nil
}

func tooDeep(depth int) error {
	return &executor.ExitError{Reason: executor.TooManyFiles, Limit: fmt.Sprintf("can be counted: its directories are more than %d deep", depth)}
}

// A level is a directory of which some names are read.
type level struct {
	dir   *os.File
	names []string
}

func (l *level) next() (string, error) {
	if len(l.names) == 0 {
		var err error
		if l.names, err = l.dir.Readdirnames(walkNames); len(l.names) == 0 {
			if errors.Is(err, unix.ENOENT) { // it was removed
				err = io.EOF
			}
			return "", err
		}
	}
	name := l.names[0]
	l.names = l.names[1:]
	return name, nil
}

// openDirAt leaves no trace: the time of the last access would tell a process where a walk is, and what it may move from before it to behind it.
func openDirAt(dir int, name string) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a directory: %w", err)
	}
	return os.NewFile(uintptr(fd), "directory"), nil
}
