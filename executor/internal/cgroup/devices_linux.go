package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A device is a character device that processes may open.
type device struct{ major, minor int } // minor -1: all

// devices are runc's, but for /dev/net/tun, which nothing in a step can use. The console (5, 1) is the host's: what is on the terminal of a
// container as /dev/console is another.
var devices = []device{
	{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, // null, zero, full, random, urandom
	{5, 0}, {5, 2}, // tty, ptmx
	{136, -1}, // terminals
}

// allowDevices sets the rules of a group of version 1: all may be made, and few be opened.
func allowDevices(dir string) error {
	rules := []string{"c *:* m", "b *:* m"}
	for _, d := range devices {
		minor := "*"
		if d.minor >= 0 {
			minor = fmt.Sprint(d.minor)
		}
		rules = append(rules, fmt.Sprintf("c %d:%s rwm", d.major, minor))
	}
	if err := os.WriteFile(filepath.Join(dir, "devices.deny"), []byte("a"), 0); err != nil {
		return err
	}
	for _, r := range rules {
		// In a container, its own rules may allow less.
		if err := os.WriteFile(filepath.Join(dir, "devices.allow"), []byte(r), 0); err != nil && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return nil
}

// Of the kernel's instructions (linux/bpf.h), those that deviceProgram needs.
const (
	bpfLoadWord = 0x61 // dst = *(u32 *)(src + off)
	bpfAnd      = 0x57 // dst &= imm
	bpfShift    = 0x77 // dst >>= imm
	bpfMove     = 0xb7 // dst = imm
	bpfJumpNot  = 0x55 // if dst != imm goto pc + off
	bpfExit     = 0x95

	charDevice = 2 // struct bpf_cgroup_dev_ctx: of the low half of access_type
	makeDevice = 1 // of the high half
)

func bpf(op byte, dst, src byte, off int16, imm int32) []byte {
	b := []byte{op, src<<4 | dst}
	b = binary.NativeEndian.AppendUint16(b, uint16(off))
	return binary.NativeEndian.AppendUint32(b, uint32(imm))
}

// deviceProgram judges for version 2: all may be made, and few be opened.
func deviceProgram() []byte {
	p := bpf(bpfLoadWord, 2, 1, 0, 0) // access_type
	p = append(p, bpf(bpfMove+8, 3, 2, 0, 0)...)
	p = append(p, bpf(bpfShift, 3, 0, 0, 16)...)
	p = append(p, bpf(bpfAnd, 2, 0, 0, 0xffff)...)
	p = append(p, bpf(bpfLoadWord, 4, 1, 4, 0)...) // major
	p = append(p, bpf(bpfLoadWord, 5, 1, 8, 0)...) // minor
	allow := append(bpf(bpfMove, 0, 0, 0, 1), bpf(bpfExit, 0, 0, 0, 0)...)
	p = append(p, bpf(bpfJumpNot, 3, 0, 2, makeDevice)...)
	p = append(p, allow...)
	for _, d := range devices {
		skip := int16(4)
		if d.minor < 0 {
			skip--
		}
		p = append(p, bpf(bpfJumpNot, 2, 0, skip, charDevice)...)
		p = append(p, bpf(bpfJumpNot, 4, 0, skip-1, int32(d.major))...)
		if d.minor >= 0 {
			p = append(p, bpf(bpfJumpNot, 5, 0, 2, int32(d.minor))...)
		}
		p = append(p, allow...)
	}
	p = append(p, bpf(bpfMove, 0, 0, 0, 0)...)
	return append(p, bpf(bpfExit, 0, 0, 0, 0)...)
}

// loadDevices loads deviceProgram.
func loadDevices() (*os.File, error) {
	program, license := deviceProgram(), []byte("Apache-2.0\x00")
	load := struct {
		kind, count           uint32
		program, license      unsafe.Pointer
		logLevel, logSize     uint32
		log                   uint64
		version, flags        uint32
		name                  [16]byte
		ifindex, expectedType uint32
		rest                  [8]uint64
	}{
		kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(program) / 8),
		program: unsafe.Pointer(&program[0]), license: unsafe.Pointer(&license[0]), expectedType: unix.BPF_CGROUP_DEVICE,
	}
	for try := 0; ; try++ {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&load)), unsafe.Sizeof(load))
		switch {
		case errno == 0:
			return os.NewFile(fd, "device program"), nil
		case errno != unix.EAGAIN || try == 20: // a signal came, such as those by which Go's scheduler interrupts a thread
			return nil, fmt.Errorf("load the program that judges devices: %w", errno)
		}
	}
}

// restrictDevices has the kernel run a program for all processes of a group of version 2, beside what those above it have.
func restrictDevices(dir string, program *os.File) error {
	group, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer group.Close()
	attach := struct{ target, program, kind, flags uint32 }{
		uint32(group.Fd()), uint32(program.Fd()), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI,
	}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_ATTACH, uintptr(unsafe.Pointer(&attach)), unsafe.Sizeof(attach)); errno != 0 {
		return fmt.Errorf("have a program judge devices: %w", errno)
	}
	return nil
}
