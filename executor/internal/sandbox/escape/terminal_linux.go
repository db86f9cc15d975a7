package main

import (
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// terminal looks for a way from the terminal that a step has to that of who watches it. What it types into its own is there for whoever reads that.
func (p *prisoner) terminal() {
	var host, own unix.Stat_t
	p.ends(unix.Fstat(0, &own))
	if err := unix.Stat("/dev/pts/0", &host); err != nil || host.Rdev != own.Rdev || host.Dev != own.Dev {
		p.escaped("the terminal is not the first of the step's own: %v", err)
	}
	if all, err := filepath.Glob("/dev/pts/*"); err != nil || len(all) != 2 { // 0 and ptmx
		p.escaped("there are the terminals %q, %v", all, err)
	}
	names := []string{"/dev/stdin", "/dev/tty", "/dev/console", "/dev/pts/0"}
	for _, name := range names {
		fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			continue
		}
		for _, c := range []byte("echo typed by a step\n") {
			_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCSTI, uintptr(unsafe.Pointer(&c)))
		}
		for sub := range byte(18) { // selections, the keyboard, the screen of a virtual console
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCLINUX, uintptr(unsafe.Pointer(&[16]byte{sub})))
			if errno == 0 {
				p.escaped("TIOCLINUX %d on %s succeeds", sub, name)
			}
		}
		p.call("TIOCCONS on "+name, unix.SYS_IOCTL, uintptr(fd), unix.TIOCCONS, 0)
		const kdsetmode, vtActivate, ptPeer = 0x4b3a, 0x5606, 0x5441
		p.call("KDSETMODE on "+name, unix.SYS_IOCTL, uintptr(fd), kdsetmode, 1)
		p.call("VT_ACTIVATE on "+name, unix.SYS_IOCTL, uintptr(fd), vtActivate, 1)
		p.call("TIOCGPTPEER on "+name, unix.SYS_IOCTL, uintptr(fd), ptPeer, unix.O_RDWR)
		_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 1, Col: 1})
		unix.Close(fd)
	}
	p.steal()
}

// steal makes a session without a terminal, and takes one by force.
func (p *prisoner) steal() {
	proc, err := os.StartProcess("/proc/self/exe", []string{"escape", "steal"}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: &unix.SysProcAttr{Setsid: true},
	})
	p.ends(err)
	if state, err := proc.Wait(); err != nil || !state.Success() {
		p.escaped("a terminal is taken from its session: %v %v", err, state)
	}
}

func (p *prisoner) steals() {
	for _, name := range []string{"/dev/stdin", "/dev/console", "/dev/pts/0"} {
		if fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY, 0); err == nil {
			p.call("TIOCSCTTY by force of "+name, unix.SYS_IOCTL, uintptr(fd), unix.TIOCSCTTY, 1)
			unix.Close(fd)
		}
	}
}
