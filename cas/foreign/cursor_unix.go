//go:build unix

package foreign

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dontWait has an open return at once, whatever is opened, and never makes a terminal the process's own.
const dontWait = unix.O_NONBLOCK | unix.O_NOCTTY

// ErrMoved says that a directory is not where a Cursor came from any more.
var ErrMoved = errors.New("the directory was moved while it was read")

// defaultHold is how many directories a Cursor keeps open: more than most trees are deep.
const defaultHold = 64

// A Cursor is in one directory of a tree, and goes from there into its subdirectories and back. It follows no link, and paths may be
// longer than the kernel takes in one call. Few directories on the way are open at a time: those farther up are left by their
// identity, and are opened again through "..", which must lead to them.
type Cursor struct {
	stack []step
	hold  int
	held  int // directories that are open
}

type step struct {
	level *Level
	fd    int // -1 while closed; then id tells what it was
	id    identity
}

type identity struct{ dev, ino uint64 }

// NewCursor begins in the directory at path. hold is how many directories may be open at a time, beside the root; 0 means some dozens.
func NewCursor(path string, hold int) (*Cursor, error) {
	fd, err := openDir(unix.AT_FDCWD, path, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	if hold <= 0 {
		hold = defaultHold
	}
	return &Cursor{stack: []step{{level: &Level{}, fd: fd}}, hold: hold}, nil
}

func openDir(at int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|flags, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func (c *Cursor) top() *step { return &c.stack[len(c.stack)-1] }

// FD is the directory, until the next call of Enter, Leave or Close.
func (c *Cursor) FD() int { return c.top().fd }

// Level is the way from the root to the directory.
func (c *Cursor) Level() *Level { return c.top().level }

// Enter goes into a subdirectory. After an error the Cursor is where it was.
func (c *Cursor) Enter(name string) error {
	level := c.Level().Child(name)
	fd, err := openDir(c.FD(), name, unix.O_NOFOLLOW)
	if err != nil {
		return &fs.PathError{Op: "open", Path: level.Short(), Err: err}
	}
	c.stack = append(c.stack, step{level: level, fd: fd})
	c.held++
	if c.held <= c.hold {
		return nil
	}
	if err := c.park(len(c.stack) - 1 - c.hold); err != nil {
		c.pop()
		return &fs.PathError{Op: "open", Path: level.Short(), Err: err}
	}
	return nil
}

// park closes a directory, if there is a way back to it.
func (c *Cursor) park(i int) error {
	s := &c.stack[i]
	id, err := identityOf(s.fd, "")
	if err != nil {
		return err
	}
	// Without privileges, a directory that can be read may still not be gone through.
	back, err := identityOf(c.stack[i+1].fd, "..")
	if err != nil {
		return err
	}
	if back != id {
		return ErrMoved
	}
	unix.Close(s.fd)
	s.fd, s.id = -1, id
	c.held--
	return nil
}

// identityOf is that of a name in an open directory; of the directory itself for "".
func identityOf(fd int, name string) (identity, error) {
	var st unix.Stat_t
	var err error
	if name == "" {
		err = unix.Fstat(fd, &st)
	} else {
		err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	return identity{uint64(st.Dev), uint64(st.Ino)}, err
}

func (c *Cursor) pop() {
	unix.Close(c.FD())
	c.stack = c.stack[:len(c.stack)-1]
	c.held--
}

// Leave goes back to the directory above. After an error the Cursor is lost, and can only be closed.
func (c *Cursor) Leave() error {
	up := &c.stack[len(c.stack)-2]
	if up.fd < 0 {
		fd, err := openDir(c.FD(), "..", 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: up.level.Short(), Err: err}
		}
		if id, err := identityOf(fd, ""); err != nil || id != up.id {
			unix.Close(fd)
			return &fs.PathError{Op: "open", Path: up.level.Short(), Err: errors.Join(err, ErrMoved)}
		}
		up.fd = fd
		c.held++
	}
	c.pop()
	return nil
}

// Close releases all directories.
func (c *Cursor) Close() {
	for _, s := range c.stack {
		if s.fd >= 0 {
			unix.Close(s.fd)
		}
	}
	c.stack = nil
}

// ReadDir lists the directory, sorted by name. The entries' Info must not be used.
func (c *Cursor) ReadDir() ([]fs.DirEntry, error) {
	entries, err := list(c, (*os.File).ReadDir)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}

// Names lists the names in the directory, in no order.
func (c *Cursor) Names() ([]string, error) { return list(c, (*os.File).Readdirnames) }

func list[E any](c *Cursor, read func(*os.File, int) ([]E, error)) ([]E, error) {
	fd, err := openDir(c.FD(), ".", 0)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: c.Level().Short(), Err: err}
	}
	// A file system that gives no types makes ReadDir lstat below this path.
	f := os.NewFile(uintptr(fd), "/proc/self/fd/"+strconv.Itoa(fd))
	defer f.Close()
	entries, err := read(f, -1)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: c.Level().Short(), Err: err}
	}
	return entries, nil
}
