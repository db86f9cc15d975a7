package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// beat makes a file longer for as long as this process lives, which is to be short.
func beat(file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	for range 1000 {
		if _, err := f.WriteString("x"); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// trace is for the first process of a step. It starts another, and has its own parent, who is outside, trace it:
//
//	stop      so that it stops, as if it had ended
//	thread    in a thread that ends, so that the process never does
func (p *prisoner) trace(how, file string) {
	if os.Getpid() != 1 {
		p.ends(errors.New("it is not the first process"))
	}
	_, err := os.StartProcess("/proc/self/exe", []string{"escape", "beat", file}, &os.ProcAttr{})
	p.ends(err)
	for {
		if st, err := os.Stat(file); err == nil && st.Size() > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	traceMe := func() {
		if _, _, errno := unix.RawSyscall(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0); errno != 0 {
			fmt.Println("it is not traced:", errno)
		}
	}
	switch how {
	case "stop":
		traceMe()
		p.ends(unix.Exec("/bin/true", []string{"true"}, nil))
	case "thread":
		go func() {
			runtime.LockOSThread()
			traceMe()
			unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
		}()
		time.Sleep(time.Hour)
	}
}

// give lets another step have a directory, and a file open for writing, and ends when that has them.
func (p *prisoner) give(socket, dir string, files []string) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	p.ends(err)
	fds := []int{fd}
	for _, name := range files {
		fd, err := unix.Open(name, unix.O_WRONLY, 0)
		p.ends(err)
		fds = append(fds, fd)
	}
	l, err := net.Listen("unix", socket)
	p.ends(err)
	c, err := l.Accept()
	p.ends(err)
	_, _, err = c.(*net.UnixConn).WriteMsgUnix([]byte("x"), unix.UnixRights(fds...), nil)
	p.ends(err)
	_, err = io.ReadFull(c, make([]byte, 1))
	p.ends(err)
}

// take waits until who gives has ended, and is then still about its files.
func (p *prisoner) take(socket, ended string) {
	var c net.Conn
	var err error
	for range 1000 {
		if c, err = net.Dial("unix", socket); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.ends(err)
	oob := make([]byte, 64)
	_, n, _, _, err := c.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), oob)
	p.ends(err)
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	p.ends(err)
	fds, err := unix.ParseUnixRights(&messages[0])
	p.ends(err)
	p.aboveOf(fds[0])
	_, err = c.Write([]byte("x"))
	p.ends(err)
	for range 6000 {
		if _, err := os.Stat(ended); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for range 10 {
		if fd, err := unix.Openat(fds[0], "late", unix.O_CREAT|unix.O_WRONLY, 0o644); err == nil {
			unix.Close(fd)
		}
		_ = unix.Mkdirat(fds[0], "late-directory", 0o755)
		_ = unix.Fchmodat(fds[0], "kept", 0o777, 0)
		for _, fd := range fds[1:] {
			_, _ = unix.Write(fd, []byte("late"))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// aboveOf looks for what is above the root directory of another step, where this program is.
func (p *prisoner) aboveOf(dir int) {
	p.ends(unix.Fchdir(dir))
	for range 64 {
		_ = unix.Chdir("..")
	}
	if _, err := os.Stat("escape"); err != nil {
		p.escaped("above the root of another step there is a directory: %v", err)
	}
}

// swap does it until the directory has a file "end". What it changes are "d", a directory, and "d/token" and "d/inner" in it, where another step has
// something mounted.
func swap(dir string, targets []string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	exchange := func(a, b string) { _ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE) }
	for n := 0; ; n++ {
		if _, err := os.Stat("end"); err == nil {
			return nil
		}
		for _, name := range []string{"d", "d/inner", "d/token"} {
			other := "other-" + filepath.Base(name)
			_ = os.RemoveAll(other)
			switch target := targets[n%len(targets)]; n % 3 {
			case 0, 1:
				_ = os.Symlink(target, other)
			case 2:
				_ = os.Mkdir(other, 0o700)
			}
			exchange(name, other)
			if n%2 == 0 {
				exchange(name, other)
			}
			_ = os.RemoveAll(other)
		}
		_ = os.Mkdir("d", 0o700)
	}
}
