package rootfs

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor"
)

// maxArg is the longest single argument or variable, with its final zero byte, that Linux's execve takes.
const maxArg = 32 * 4096

// checkProcess finds what makes a process impossible to start, as far as that can be seen without starting it. An OCI runtime tells
// some of it only on the process's own standard error, where it cannot be told from the process's words.
// Paths that covered reports to be hidden by mounts are not judged.
func checkProcess(r RootDir, p executor.Process, covered func(string) bool) error {
	if len(p.Argv) == 0 {
		return startError("no command")
	}
	for i, a := range p.Argv {
		if err := checkString(fmt.Sprintf("argument %d", i), a); err != nil {
			return err
		}
	}
	for _, v := range p.Env {
		name, _, ok := strings.Cut(v, "=")
		if !ok || name == "" {
			return startError("an environment variable without a name")
		}
		if err := checkString("variable "+name, v); err != nil {
			return err
		}
	}
	if !path.IsAbs(p.Dir) {
		return startError("working directory %q is not absolute", p.Dir)
	}
	if err := checkString("working directory", p.Dir); err != nil {
		return err
	}
	if !covered(p.Dir) {
		at, err := r.resolve(p.Dir)
		if errors.Is(err, unix.ENOENT) {
			err = nil // ".." below something missing: the runtime makes it
		}
		if err != nil {
			return startError("working directory %s: %v", p.Dir, err)
		}
		if at.stat.Mode&unix.S_IFMT != unix.S_IFDIR {
			return startError("working directory %s: /%s is not a directory", p.Dir, at.found)
		}
	}
	return checkProgram(r, p, covered)
}

func checkString(what, s string) error {
	if strings.ContainsRune(s, 0) {
		return startError("%s has a zero byte", what)
	}
	if len(s) >= maxArg {
		return startError("%s is %d bytes long, Linux takes %d", what, len(s), maxArg-1)
	}
	return nil
}

func startError(format string, args ...any) error {
	return &executor.StartError{Msg: fmt.Sprintf(format, args...)}
}

func checkProgram(r RootDir, p executor.Process, covered func(string) bool) error {
	r.uid, r.gid = p.UID, p.GID
	name := p.Argv[0]
	if name == "" {
		return startError("the command's name is empty")
	}
	if strings.Contains(name, "/") {
		file := name
		if !path.IsAbs(file) {
			file = path.Join(p.Dir, file)
		}
		if covered(file) {
			return nil
		}
		if err := checkExecutable(r, file, 0); err != nil {
			return startError("cannot run %s: %v", name, err)
		}
		if name != "/usr/bin/env" || len(p.Argv) < 2 || p.Argv[1] == "" || strings.ContainsAny(p.Argv[1], "-=/") {
			return nil
		}
		// env only says with a status, 127, that it does not find what it is to run, and commands give that too.
		name = p.Argv[1]
	}
	search, set := lookupEnv(p.Env, "PATH")
	if !set {
		if name != p.Argv[0] {
			return nil // env has a default
		}
		return startError("cannot run %s: PATH is not set", name)
	}
	var found error
	for dir := range strings.SplitSeq(search, ":") {
		if !path.IsAbs(dir) {
			dir = path.Join(p.Dir, dir)
		}
		file := path.Join(dir, name)
		if covered(file) {
			return nil
		}
		err := checkExecutable(r, file, 0)
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) && found == nil {
			found = fmt.Errorf("%s: %w", file, err)
		}
	}
	if found != nil {
		return startError("cannot run %s: %v", name, found)
	}
	return startError("cannot run %s: not found in PATH (%s)", name, search)
}

func lookupEnv(env []string, name string) (value string, set bool) {
	for _, v := range env {
		if n, val, ok := strings.Cut(v, "="); ok && n == name {
			return val, true
		}
	}
	return "", false
}

// maxInterpreters is how deep Linux follows scripts that are interpreters of scripts.
const maxInterpreters = 4

// checkExecutable looks whether execve would take a file from the user who looks.
func checkExecutable(r RootDir, name string, depth int) error {
	f, st, err := r.open(name)
	var pe *fs.PathError
	if errors.As(err, &pe) {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOENT) {
			return fs.ErrNotExist
		}
		return pe.Err
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if !mayExecute(st, r.uid, r.gid) {
		return errors.New("permission denied: it is not executable")
	}
	head := make([]byte, 256)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte("#!")):
		line, _, _ := bytes.Cut(head[2:], []byte("\n"))
		words := strings.FieldsFunc(string(line), func(c rune) bool { return c == ' ' || c == '\t' })
		if len(words) == 0 {
			return errors.New("exec format error: #! without an interpreter")
		}
		if depth >= maxInterpreters {
			return errors.New("too many levels of interpreters")
		}
		return interpreterError(words[0], checkExecutable(r, words[0], depth+1))
	case bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		interpreter, err := readELF(f, head)
		if err != nil || interpreter == "" {
			return err
		}
		return interpreterError(interpreter, checkExecutable(r, interpreter, depth+1))
	case hasForeignFormats():
		return nil
	}
	return errors.New("exec format error: neither a program nor a script with a #! line")
}

func interpreterError(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("its interpreter %q does not exist", name)
	}
	return fmt.Errorf("its interpreter %q: %w", name, err)
}

func mayExecute(st unix.Stat_t, uid, gid int) bool {
	switch {
	case uid == 0:
		return st.Mode&0o111 != 0
	case int(st.Uid) == uid:
		return st.Mode&0o100 != 0
	case int(st.Gid) == gid:
		return st.Mode&0o010 != 0
	}
	return st.Mode&0o001 != 0
}

// machines are the ELF machines whose programs a kernel runs, by its own architecture.
func machines() []elf.Machine {
	switch runtime.GOARCH {
	case "amd64":
		return []elf.Machine{elf.EM_X86_64, elf.EM_386}
	case "arm64":
		return []elf.Machine{elf.EM_AARCH64, elf.EM_ARM}
	case "riscv64":
		return []elf.Machine{elf.EM_RISCV}
	case "ppc64le":
		return []elf.Machine{elf.EM_PPC64}
	case "s390x":
		return []elf.Machine{elf.EM_S390}
	}
	return nil // do not judge
}

// readELF checks a program's machine and returns its interpreter, the dynamic linker. It reads only what execve reads: debug/elf
// is stricter than the kernel.
func readELF(f io.ReaderAt, head []byte) (string, error) {
	if len(head) < 64 {
		return "", errors.New("exec format error: the file is too short")
	}
	var order binary.ByteOrder = binary.LittleEndian
	if elf.Data(head[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	machine := elf.Machine(order.Uint16(head[18:]))
	if ours := machines(); len(ours) > 0 && machine != ours[0] && machine != ours[len(ours)-1] {
		if hasForeignFormats() {
			return "", nil
		}
		name := strings.ToLower(strings.TrimPrefix(machine.String(), "EM_"))
		return "", fmt.Errorf("exec format error: it is a program for %s, and this machine is %s", name, runtime.GOARCH)
	}
	var off uint64
	var size, count int
	wide := elf.Class(head[elf.EI_CLASS]) == elf.ELFCLASS64
	if wide {
		off, size, count = order.Uint64(head[32:]), int(order.Uint16(head[54:])), int(order.Uint16(head[56:]))
	} else {
		off, size, count = uint64(order.Uint32(head[28:])), int(order.Uint16(head[42:])), int(order.Uint16(head[44:]))
	}
	// The kernel's own conditions.
	if want := map[bool]int{false: 32, true: 56}[wide]; size != want || count < 1 || size*count > 1<<16 || off > 1<<40 {
		return "", errors.New("exec format error: bad program headers")
	}
	table := make([]byte, size*count)
	if _, err := f.ReadAt(table, int64(off)); err != nil {
		return "", errors.New("exec format error: the file is too short")
	}
	for h := range slices.Chunk(table, size) {
		if elf.ProgType(order.Uint32(h)) != elf.PT_INTERP {
			continue
		}
		at, n := uint64(order.Uint32(h[4:])), uint64(order.Uint32(h[16:]))
		if wide {
			at, n = order.Uint64(h[8:]), order.Uint64(h[32:])
		}
		if n < 2 || n > unix.PathMax || at > 1<<40 {
			return "", errors.New("exec format error: bad interpreter")
		}
		name := make([]byte, n)
		if _, err := f.ReadAt(name, int64(at)); err != nil {
			return "", errors.New("exec format error: bad interpreter")
		}
		interpreter, _, _ := bytes.Cut(name, []byte{0})
		return string(interpreter), nil
	}
	return "", nil
}

// hasForeignFormats reports whether somebody registered programs for other formats (qemu-user): then it is not for
// us to say what can be executed.
func hasForeignFormats() bool {
	entries, err := os.ReadDir("/proc/sys/fs/binfmt_misc")
	return err == nil && len(entries) > 2 // more than "register" and "status"
}

// homeOf finds a user's home directory in the root's /etc/passwd: "/" for one that is not there.
func homeOf(r RootDir, uid int) string {
	f, _, err := r.open("/etc/passwd")
	if err != nil {
		return "/"
	}
	defer f.Close()
	sc := bufio.NewScanner(io.LimitReader(f, 16<<20))
	for sc.Scan() {
		if field := strings.Split(sc.Text(), ":"); len(field) >= 6 && field[2] == strconv.Itoa(uid) && field[5] != "" {
			return field[5]
		}
	}
	return "/"
}
