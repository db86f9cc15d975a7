package sandbox

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Where a starter has its parts, in its memory; as in starter.h. Its text is one segment that can be read and executed, and not written to. The area is
// memory that it has in common with this process; it is not executed. Both begin at multiples of 64 KiB, the largest page.
const (
	textAddress = 0x1f0000
	areaAddress = 0x200000
	callAddress = areaAddress + 0x1000
	dataAddress = areaAddress + 0x10000
	areaSize    = 0x10000 + maxData
	maxCalls    = (dataAddress - callAddress) / callSize
	callSize    = 8 * 8

	// execve takes arguments and variables of 6 MiB, with 8 bytes for each; here each has up to 15 more.
	maxData = 16 << 20
)

const textOffset = 64 + 3*56 // behind the headers

// Where the area has what is not the program: four words that the starter answers, the message that it receives into (struct msghdr, struct iovec, one byte,
// and room for descriptors), and how it clones itself.
const (
	answerAddress  = areaAddress
	messageAddress = areaAddress + 0x40
	cloneAddress   = areaAddress + 0x80
	vectorAddress  = areaAddress + 0xe0
	byteAddress    = areaAddress + 0xf0
	childAddress   = areaAddress + 0xf8 // the child's id, from its beginning
	controlAddress = areaAddress + 0x100
	controlSize    = 0x100
)

// What a starter has open beside its input and output, which are /dev/null.
const (
	socketFD = 3
	textFD   = 4 // itself, and
	areaFD   = 5 // the area, until that is mapped
	firstFD  = 4 // then here begin the descriptors that come with a message
)

// Starters are small processes that clone themselves into new namespaces when they are told to: [Container.Start] says why. The zero value is ready.
// There are as many as were ever needed at the same time. They end with this process.
type Starters struct {
	mu   sync.Mutex
	text *os.File // which they execute
	idle []*starter
}

type starter struct {
	process *os.Process
	socket  int
	area    []byte
}

// start has a starter clone itself with these flags and files, and the child run the program. The child is one of this process. With CLONE_INTO_CGROUP, group
// is the descriptor of its control group. A failure is what it tells before its end; there is no child if it could not even be told what to do.
func (s *Starters) start(p *program, flags, group uint64, files []*os.File) (child *os.Process, f *failure, err error) {
	if err := p.check(); err != nil {
		return nil, nil, err
	}
	if p.data.Len() > maxData {
		return nil, &failure{what: p.calls[len(p.calls)-1].what, errno: unix.E2BIG}, nil
	}
	one, err := s.take()
	if err != nil {
		return nil, nil, err
	}
	answer, err := one.run(p, flags, group, files)
	if err != nil {
		pid, report := int(one.word(childAddress)), one.report()
		if err := errors.Join(err, one.end()); pid == 0 {
			return nil, nil, err
		}
		// Who kills a process for want of memory, kills all that have the same: how the child has ended, its parent will see.
		return p.childOf(pid, report)
	}
	s.mu.Lock()
	s.idle = append(s.idle, one)
	s.mu.Unlock()
	if pid := int(answer[0]); pid < 0 {
		return nil, nil, fmt.Errorf("start a process in new namespaces: %w", unix.Errno(-pid))
	} else {
		return p.childOf(pid, [3]uint64(answer[1:]))
	}
}

// childOf is the child of this process that has run the program, and what it has reported. Whatever is wrong with it, it does not stay.
func (p *program) childOf(pid int, report [3]uint64) (*os.Process, *failure, error) {
	child, err := os.FindProcess(pid)
	if err != nil {
		return nil, nil, err
	}
	f, err := p.failure(report)
	if err != nil {
		_ = child.Kill()
		_, werr := child.Wait()
		return nil, nil, errors.Join(err, werr)
	}
	return child, f, nil
}

func (s *Starters) take() (*starter, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.idle); n > 0 {
		one := s.idle[n-1]
		s.idle = s.idle[:n-1]
		return one, nil
	}
	if s.text == nil {
		var err error
		if s.text, err = starterFile(); err != nil {
			return nil, err
		}
	}
	return newStarter(s.text, 0)
}

// Close ends those that are idle. A supervisor need not call it: they end with it.
func (s *Starters) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, one := range s.idle {
		errs = append(errs, one.end())
	}
	s.idle = nil
	if s.text != nil {
		errs = append(errs, s.text.Close())
		s.text = nil
	}
	return errors.Join(errs...)
}

func newStarter(text *os.File, flags uintptr) (_ *starter, err error) {
	area, err := memFile("area", unix.MFD_NOEXEC_SEAL) // no file to execute
	if err != nil {
		return nil, err
	}
	defer area.Close()
	if err := area.Truncate(areaSize); err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, errors.Join(err, unix.Close(pair[0]))
	}
	defer null.Close()
	s := &starter{socket: pair[0]}
	if s.area, err = unix.Mmap(int(area.Fd()), 0, areaSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, errors.Join(err, s.end())
	}
	s.put(messageAddress, 0, 0, vectorAddress, 1, controlAddress, controlSize, 0) // it waits with this, soon
	s.put(vectorAddress, byteAddress, 1)
	files := []*os.File{null, null, null, socketFD: theirs, textFD: text, areaFD: area}
	attr := &os.ProcAttr{Env: []string{}, Files: files, Sys: &syscall.SysProcAttr{Cloneflags: flags}}
	if s.process, err = os.StartProcess(procFD(textFD), []string{"obx-starter"}, attr); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

// end ends a starter. Its socket tells it to; a child that has not executed anything by then is broken, and goes with the namespace of this process.
func (s *starter) end() error {
	err := unix.Close(s.socket)
	if s.area != nil {
		err = errors.Join(err, unix.Munmap(s.area))
	}
	if s.process != nil {
		_ = s.process.Kill()
		_, werr := s.process.Wait()
		err = errors.Join(err, werr)
	}
	return err
}

// run gives what the starter answers: the child's id, or the negative error of its making, and three words of the child.
func (s *starter) run(p *program, flags, group uint64, files []*os.File) (answer [4]uint64, err error) {
	// The child borrows its parent's memory until it executes another program, so that none is copied. It is this process's child.
	flags |= unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_PARENT | unix.CLONE_PARENT_SETTID
	s.put(answerAddress, 0, 0, 0, 0)
	s.put(childAddress, 0)
	s.put(cloneAddress, flags, 0, 0, childAddress, 0, 0, 0, 0, 0, 0, group)
	for i, c := range p.calls {
		s.put(callAddress+callSize*i, c.words[:]...)
	}
	copy(s.area[dataAddress-areaAddress:], p.data.Bytes())
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	if err := unix.Sendmsg(s.socket, []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL); err != nil {
		return answer, fmt.Errorf("ask a starter: %w", err)
	}
	runtime.KeepAlive(files)
	var b [8 * len(answer)]byte
	for {
		n, err := unix.Read(s.socket, b[:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return answer, fmt.Errorf("wait for a starter: %w", err)
		case n < len(b):
			return answer, errors.New("a starter has ended")
		}
		for i := range answer {
			answer[i] = binary.NativeEndian.Uint64(b[8*i:])
		}
		return answer, nil
	}
}

func (s *starter) put(address int, words ...uint64) {
	for i, w := range words {
		binary.NativeEndian.PutUint64(s.area[address-areaAddress+8*i:], w)
	}
}

// report is what the child has written down behind the answer's first word.
func (s *starter) report() (r [3]uint64) {
	for i := range r {
		r[i] = s.word(answerAddress + 8*(i+1))
	}
	return r
}

func (s *starter) word(address int) uint64 {
	return binary.NativeEndian.Uint64(s.area[address-areaAddress:])
}

// starterFile makes the program of starters a file in memory that nobody can change.
func starterFile() (*os.File, error) { return textFile(nil) }

// textFile is that program, with what its area has from callAddress on; nil for an area of its own.
func textFile(calls []byte) (_ *os.File, err error) {
	text, err := starterText()
	if err != nil {
		return nil, err
	}
	f, err := memFile("starter", unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if _, err := f.Write(append(headers(uint64(textOffset+len(text)), uint64(len(calls))), text...)); err != nil {
		return nil, fmt.Errorf("write a program to memory: %w", err)
	}
	if _, err := f.WriteAt(calls, callAddress-textAddress); err != nil {
		return nil, fmt.Errorf("write a program to memory: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("seal a program: %w", err)
	}
	return f, nil
}

func memFile(name string, flags int) (*os.File, error) {
	fd, err := unix.MemfdCreate("obx", unix.MFD_CLOEXEC|flags)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("obx", unix.MFD_CLOEXEC|flags&^(unix.MFD_EXEC|unix.MFD_NOEXEC_SEAL))
	}
	if err != nil {
		return nil, fmt.Errorf("make a program in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "riscv64": elf.EM_RISCV}

// headers are those of an ELF file, of the sizes of its text and of its area from callAddress on.
func headers(size, calls uint64) []byte {
	var b bytes.Buffer
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machines[runtime.GOARCH]), Version: uint32(elf.EV_CURRENT), Entry: textAddress + textOffset,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 3,
	}
	stack := elf.Prog64{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W)}
	all := elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: textAddress, Filesz: size, Memsz: size, Align: 0x10000}
	area := elf.Prog64{Type: uint32(elf.PT_NULL)}
	if calls > 0 {
		const before = callAddress - areaAddress
		area = elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W), Off: areaAddress - textAddress, Vaddr: areaAddress,
			Filesz: before + calls, Memsz: before + calls, Align: 0x10000,
		}
	}
	for _, v := range []any{h, stack, all, area} {
		_ = binary.Write(&b, binary.LittleEndian, v)
	}
	return b.Bytes()
}
