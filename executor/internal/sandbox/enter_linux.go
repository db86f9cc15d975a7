package sandbox

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Hold starts a process in a new user namespace, which has no rights there and does nothing. release ends it.
func Hold() (pid int, release func() error, err error) {
	text, err := starterFile()
	if err != nil {
		return 0, nil, err
	}
	defer text.Close()
	one, err := newStarter(text, unix.CLONE_NEWUSER)
	if err != nil {
		return 0, nil, fmt.Errorf("make a user namespace: %w", err)
	}
	return one.process.Pid, one.end, nil
}

// Exec replaces this process by the program at path, which is open as file, in a user namespace and in a new mount namespace that belongs to that.
// The kernel lets only a process of one thread enter a user namespace, so a program of this package is in between. It goes on where the kernel
// refuses a namespace: that is for what is executed to see.
func Exec(user, file *os.File, path string, argv, env []string) error {
	var pr program
	var all []unix.Errno
	for e := unix.Errno(1); e < 64; e++ {
		all = append(all, e)
	}
	pr.do("", all, unix.SYS_SETNS, uint64(user.Fd()), unix.CLONE_NEWUSER)
	pr.do("", all, unix.SYS_UNSHARE, unix.CLONE_NEWNS)
	for _, f := range []*os.File{user, file} {
		pr.do("", all, unix.SYS_FCNTL, uint64(f.Fd()), unix.F_SETFD, unix.FD_CLOEXEC)
	}
	args, vars := pr.strings(argv), pr.strings(env)
	pr.do("", all, unix.SYS_EXECVE, pr.string(path), args, vars)                                        // for the name that ps shows
	pr.do("", all, unix.SYS_EXECVEAT, uint64(file.Fd()), pr.string(""), args, vars, unix.AT_EMPTY_PATH) // if it is not there
	sorry := path + ": cannot be executed in a user namespace\n"
	pr.do("", all, unix.SYS_WRITE, 2, pr.string(sorry), uint64(len(sorry)))
	pr.do("", nil, unix.SYS_EXIT_GROUP, 127)
	if err := pr.check(); err != nil {
		return err
	}
	p, err := textFile(pr.area())
	if err != nil {
		return err
	}
	for _, f := range []*os.File{user, file} {
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
			return err
		}
	}
	return &os.SyscallError{Syscall: "execve", Err: syscall.Exec(procFD(int(p.Fd())), []string{"obx-starter", "list"}, nil)}
}

// area is what an area has from callAddress on.
func (p *program) area() []byte {
	b := make([]byte, dataAddress-callAddress, dataAddress-callAddress+p.data.Len())
	for i, c := range p.calls {
		for k, w := range c.words {
			binary.NativeEndian.PutUint64(b[callSize*i+8*k:], w)
		}
	}
	return append(b, p.data.Bytes()...)
}

func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
