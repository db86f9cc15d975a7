package sandbox

import (
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// runProgram runs a program outside of a container, twice by the same starter.
func runProgram(t *testing.T, p *program) (output string, f *failure, code int) {
	t.Helper()
	var starters Starters
	defer starters.Close()
	for range 2 {
		out, theirs, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		var child *os.Process
		child, f, err = starters.start(p, 0, 0, []*os.File{theirs})
		theirs.Close()
		if err != nil {
			t.Fatal(err)
		}
		printed, err := io.ReadAll(out)
		if err != nil {
			t.Fatal(err)
		}
		state, err := child.Wait()
		if err != nil {
			t.Fatal(err)
		}
		output, code = string(printed), state.ExitCode()
	}
	if len(starters.idle) != 1 {
		t.Errorf("%d starters", len(starters.idle))
	}
	return output, f, code
}

func (p *program) print(s string) {
	p.do("print "+s, nil, unix.SYS_WRITE, firstFD, p.string(s), uint64(len(s)))
}

func TestProgram(t *testing.T) {
	exit := func(p *program, code uint64) { p.do("exit", nil, unix.SYS_EXIT_GROUP, code) }
	nowhere := func(p *program) []uint64 { return []uint64{cwd, p.string("/no/where"), unix.O_PATH, 0} }
	for name, tt := range map[string]struct {
		build  func(p *program)
		output string
		code   int
		want   failure // what is "" means none
	}{
		"it ends": {
			build:  func(p *program) { p.print("one "); p.print("two"); exit(p, 7) },
			output: "one two", code: 7,
		},
		"an error": {
			build: func(p *program) {
				p.print("one")
				p.do("open", nil, unix.SYS_OPENAT, nowhere(p)...)
				p.print("two")
				exit(p, 0)
			},
			output: "one", code: 127, want: failure{what: "open", errno: unix.ENOENT},
		},
		"errors that do not matter": {
			build: func(p *program) {
				p.do("open", []unix.Errno{unix.EACCES, unix.ENOENT}, unix.SYS_OPENAT, nowhere(p)...)
				p.do("", []unix.Errno{unix.EBADF}, unix.SYS_CLOSE, 99)
				p.print("on")
				p.do("end", []unix.Errno{unix.ENOENT}, 0xffff)
			},
			output: "on", code: 127, want: failure{what: "end", errno: unix.ENOSYS, skipped: []unix.Errno{unix.ENOENT, unix.EBADF}, last: true},
		},
		"an error that no bit is for": {
			build: func(p *program) {
				p.do("connect", []unix.Errno{unix.ENOTSOCK % 64}, unix.SYS_CONNECT, 1, p.words(0), 8)
			},
			code: 127, want: failure{what: "connect", errno: unix.ENOTSOCK, last: true},
		},
		"all six arguments": {
			build: func(p *program) {
				p.do("map", nil, unix.SYS_MMAP, 0x40000000, 4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_FIXED,
					p.open("open", unix.SYS_OPENAT, cwd, p.string("/proc/self/exe"), unix.O_RDONLY), 0)
				p.do("print", nil, unix.SYS_WRITE, firstFD, 0x40000001, 3)
				// The next has the same memory.
				p.do("unmap", nil, unix.SYS_MUNMAP, 0x40000000, 4096)
				exit(p, 0)
			},
			output: "ELF",
		},
		"descriptors": {
			build: func(p *program) {
				a := p.open("open", unix.SYS_OPENAT, cwd, p.string("/"), unix.O_PATH)
				b := p.open("open", unix.SYS_OPENAT, a, p.string("dev"), unix.O_PATH)
				c := p.open("open", unix.SYS_OPENAT, b, p.string("null"), unix.O_RDONLY)
				p.do("read", nil, unix.SYS_READ, c, dataAddress, 0)
				p.close(c)
				p.close(b)
				c = p.open("open", unix.SYS_OPENAT, cwd, p.string("/dev/zero"), unix.O_RDONLY)
				p.do("read", nil, unix.SYS_READ, c, dataAddress, 0)
				exit(p, c)
			},
			code: 6,
		},
		"it cannot change itself": {
			build: func(p *program) {
				p.do("read", nil, unix.SYS_READLINKAT, cwd, p.string("/proc/self/exe"), textAddress, 64)
			},
			code: 127, want: failure{what: "read", errno: unix.EFAULT, last: true},
		},
		"nor its file": {
			build: func(p *program) {
				fd := p.open("open", unix.SYS_OPENAT, cwd, p.string("/proc/self/exe"), unix.O_PATH)
				p.do("truncate", nil, unix.SYS_TRUNCATE, p.string("/proc/self/exe"), 0)
				exit(p, fd)
			},
			code: 127, want: failure{what: "truncate", errno: unix.ETXTBSY},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := &program{free: 5}
			tt.build(p)
			output, got, code := runProgram(t, p)
			if output != tt.output || code != tt.code {
				t.Errorf("it printed %q and ended with %d; want %q, %d", output, code, tt.output, tt.code)
			}
			if tt.want.what == "" {
				if got != nil {
					t.Errorf("it reported %+v", got)
				}
				return
			}
			if got == nil || got.what != tt.want.what || got.errno != tt.want.errno || got.last != tt.want.last || !slices.Equal(got.skipped, tt.want.skipped) {
				t.Errorf("it reported %+v; want %+v", got, tt.want)
			}
		})
	}
}

// TestProgramIsExecuted ends a program by the execution of another one, which has nothing open but what it is given.
func TestProgramIsExecuted(t *testing.T) {
	if err := CloseInherited(); err != nil {
		t.Fatal(err)
	}
	p := &program{free: 5}
	p.do("dup", nil, unix.SYS_DUP3, firstFD, 1, 0)
	for _, file := range []string{"/no/where/sh", "/bin/sh"} {
		args := []string{"sh", "-c", "echo $0 $A $1; for f in /proc/$$/fd/*; do echo ${f##*/}; done", "x", "y"}
		p.do("exec", notHere, unix.SYS_EXECVE, p.string(file), p.strings(args), p.strings([]string{"A=a"}))
	}
	output, f, code := runProgram(t, p)
	lines := strings.Fields(output)
	if len(lines) < 6 || !slices.Equal(lines[:6], []string{"x", "a", "y", "0", "1", "2"}) || len(lines) > 7 || f != nil ||
		code != 0 {
		t.Errorf("got %q, %v, %d", output, f, code)
	}
}

// TestStarterAlone executes a starter as a step may: without what it wants to find.
func TestStarterAlone(t *testing.T) {
	f, err := starterFile()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, tt := range []struct {
		files []*os.File
		args  []string
		want  string
	}{
		{[]*os.File{textFD: f}, []string{"x"}, "exit status 127"},
		{[]*os.File{socketFD: f, textFD: f, areaFD: f}, []string{"x"}, "exit status 127"},
		{[]*os.File{textFD: f}, []string{"x", "y"}, "signal: segmentation fault"}, // as one that has its list in its file
	} {
		p, err := os.StartProcess("/proc/self/fd/4", tt.args, &os.ProcAttr{Files: tt.files})
		if err != nil {
			t.Fatal(err)
		}
		if state, err := p.Wait(); err != nil || !strings.HasPrefix(state.String(), tt.want) {
			t.Errorf("%q ended with %v, %v; want %s", tt.args, state, err, tt.want)
		}
	}
}

// TestStarterDies looks whether another is taken for one that is no more.
func TestStarterDies(t *testing.T) {
	var starters Starters
	defer starters.Close()
	p := &program{free: 5}
	p.do("exit", nil, unix.SYS_EXIT_GROUP, 3)
	one, err := starters.take()
	if err != nil {
		t.Fatal(err)
	}
	if err := one.process.Kill(); err != nil {
		t.Fatal(err)
	}
	starters.idle = append(starters.idle, one)
	if _, _, err := starters.start(p, 0, 0, nil); err == nil {
		t.Error("a dead starter starts")
	}
	start := func(p *program) {
		child, _, err := starters.start(p, 0, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		if state, err := child.Wait(); err != nil || state.ExitCode() != 3 {
			t.Errorf("got %v, %v", state, err)
		}
	}
	start(p)
	patricide := &program{free: 5}
	patricide.do("kill", nil, unix.SYS_KILL, uint64(starters.idle[0].process.Pid), uint64(unix.SIGKILL))
	patricide.do("exit", nil, unix.SYS_EXIT_GROUP, 3)
	start(patricide)
	start(p)
}

func TestProgramMistakes(t *testing.T) {
	p := &program{free: 5}
	a := p.open("open", unix.SYS_OPENAT, cwd, p.string("/"), unix.O_PATH)
	p.open("open", unix.SYS_OPENAT, cwd, p.string("/"), unix.O_PATH)
	p.close(a)
	if err := p.check(); err == nil || !strings.Contains(err.Error(), "out of turn") {
		t.Errorf("got %v", err)
	}
	p = &program{}
	for range maxCalls {
		p.print("x")
	}
	if err := p.check(); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("got %v", err)
	}
	p = &program{}
	p.print(strings.Repeat("x", maxData))
	var starters Starters
	if child, f, err := starters.start(p, 0, 0, nil); child != nil || f == nil || f.errno != unix.E2BIG || err != nil {
		t.Errorf("too much data: %v, %+v, %v", child, f, err)
	}
	for _, report := range [][3]uint64{{1, 0, 0}, {1, ^uint64(0), 0}, {1, callAddress + callSize, 0}} {
		if f, err := (&program{calls: make([]call, 1)}).failure(report); err == nil {
			t.Errorf("%x is %+v", report, f)
		}
	}
}
