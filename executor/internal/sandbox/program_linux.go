package sandbox

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// Where a program has its parts, in its memory. It is one segment that can be read and executed, and not written to. The distances are multiples
// of 64 KiB, the largest page, and the file has holes there.
const (
	baseAddress = 0x1f0000 // headers and loop
	callAddress = 0x200000 // calls; as in loop.h
	dataAddress = 0x210000 // what calls point to
	maxCalls    = (dataAddress - callAddress) / callSize
	callSize    = 8 * 8
)

const loopOffset = 64 + 2*56 // behind the headers

// reportFD is what a program tells its failure by, as in loop.h. Nothing is told when its last call, execve, has succeeded: it closes then.
const reportFD = 3

// A program is a list of system calls. Building one keeps account of the file descriptors that it will have: the kernel gives out the lowest that is
// free, and a program is one thread.
type program struct {
	calls []call
	data  bytes.Buffer
	free  int // the lowest descriptor that is not open
	err   error
}

type call struct {
	what  string // is being done
	words [callSize / 8]uint64
}

// do adds a call. Those errors do not matter. Without what, it belongs to the call before.
func (p *program) do(what string, errs []unix.Errno, number uintptr, args ...uint64) {
	if what == "" && len(p.calls) > 0 {
		what = p.calls[len(p.calls)-1].what
	}
	c := call{what: what}
	c.words[0] = uint64(number)
	copy(c.words[1:7], args)
	for _, e := range errs {
		c.words[7] |= 1 << e
	}
	p.calls = append(p.calls, c)
}

// open adds a call that opens a descriptor.
func (p *program) open(what string, number uintptr, args ...uint64) (fd uint64) {
	p.do(what, nil, number, args...)
	p.free++
	return uint64(p.free - 1)
}

// close closes the descriptor that was opened last.
func (p *program) close(fd uint64) {
	if p.free--; uint64(p.free) != fd {
		p.err = fmt.Errorf("the descriptor %d is closed out of turn", fd)
	}
	p.do("", nil, unix.SYS_CLOSE, fd)
}

// bytes adds data, aligned for the kernel.
func (p *program) bytes(b []byte) (address uint64) {
	p.data.Write(make([]byte, -p.data.Len()&7))
	address = dataAddress + uint64(p.data.Len())
	p.data.Write(b)
	return address
}

func (p *program) string(s string) uint64 { return p.bytes(append([]byte(s), 0)) }

// words adds numbers and addresses.
func (p *program) words(w ...uint64) uint64 {
	var b []byte
	for _, n := range w {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return p.bytes(b)
}

// strings adds what execve takes: the addresses of strings, and a zero.
func (p *program) strings(list []string) uint64 {
	var all []uint64
	for _, s := range list {
		all = append(all, p.string(s))
	}
	return p.words(append(all, 0)...)
}

// file makes the program a file in memory that nobody can change.
func (p *program) file() (_ *os.File, err error) {
	loop, err := loopText()
	if err != nil {
		return nil, err
	}
	if p.err != nil {
		return nil, p.err
	}
	if len(p.calls) >= maxCalls {
		return nil, errors.New("it needs too many system calls")
	}
	fd, err := unix.MemfdCreate("obx", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("obx", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("make a program in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "program")
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	var calls []byte
	for _, c := range p.calls {
		for _, w := range c.words {
			calls = binary.LittleEndian.AppendUint64(calls, w)
		}
	}
	size := dataAddress - baseAddress + uint64(p.data.Len())
	for at, b := range map[uint64][]byte{
		baseAddress: append(headers(size), loop...), callAddress: calls, dataAddress: p.data.Bytes(),
	} {
		if _, err := f.WriteAt(b, int64(at-baseAddress)); err != nil {
			return nil, fmt.Errorf("write a program to memory: %w", err)
		}
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("seal a program: %w", err)
	}
	return f, nil
}

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "riscv64": elf.EM_RISCV}

// headers are those of an ELF file of a size.
func headers(size uint64) []byte {
	var b bytes.Buffer
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machines[runtime.GOARCH]), Version: uint32(elf.EV_CURRENT), Entry: baseAddress + loopOffset,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2,
	}
	stack := elf.Prog64{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W)}
	all := elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: baseAddress, Filesz: size, Memsz: size, Align: 0x10000}
	for _, v := range []any{h, stack, all} {
		_ = binary.Write(&b, binary.LittleEndian, v)
	}
	return b.Bytes()
}

// A failure is what a program has reported.
type failure struct {
	what    string // was being done
	errno   unix.Errno
	skipped []unix.Errno // did not matter before
	last    bool         // it was the end: no program was there to execute
}

func (p *program) failure(report []byte) (f failure, err error) {
	if len(report) != 24 {
		return f, fmt.Errorf("the container's first program reported %d bytes", len(report))
	}
	var w [3]uint64
	for i := range w {
		w[i] = binary.LittleEndian.Uint64(report[8*i:])
	}
	n := int(w[1]-callAddress) / callSize
	if n < 0 || n >= len(p.calls) {
		return f, fmt.Errorf("the container's first program reported a call at %#x", w[1])
	}
	f = failure{what: p.calls[n].what, errno: unix.Errno(w[0]), last: n == len(p.calls)-1}
	for m := w[2]; m != 0; m &= m - 1 {
		f.skipped = append(f.skipped, unix.Errno(bits.TrailingZeros64(m)))
	}
	return f, nil
}

func (f failure) wasSkipped(e unix.Errno) bool { return slices.Contains(f.skipped, e) }
