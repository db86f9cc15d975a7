package sandbox

import (
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// runProgram runs a program outside of a container.
func runProgram(t *testing.T, p *program) (output, report string, code int) {
	t.Helper()
	f, err := p.file()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pipe := func() (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		return r, w
	}
	out, outW := pipe()
	rep, repW := pipe()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	proc, err := os.StartProcess("/proc/self/fd/4", []string{"obx"}, &os.ProcAttr{Files: []*os.File{null, outW, outW, repW, f}})
	if err != nil {
		t.Fatal(err)
	}
	outW.Close()
	repW.Close()
	said, err := io.ReadAll(rep)
	if err != nil {
		t.Fatal(err)
	}
	printed, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	state, err := proc.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return string(printed), string(said), state.ExitCode()
}

func (p *program) print(s string) {
	p.do("print "+s, nil, unix.SYS_WRITE, 1, p.string(s), uint64(len(s)))
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
				p.do("map", nil, unix.SYS_MMAP, 0x40000000, 4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_FIXED, programFD, uint64(dataAddress-baseAddress))
				p.data.WriteString("mapped")
				p.do("print", nil, unix.SYS_WRITE, 1, 0x40000000, 6)
				exit(p, 0)
			},
			output: "mapped",
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
				p.do("read", nil, unix.SYS_READLINKAT, cwd, p.string("/proc/self/exe"), callAddress, 64)
			},
			code: 127, want: failure{what: "read", errno: unix.EFAULT, last: true},
		},
		"nor its file": {
			build: func(p *program) { p.do("write", nil, unix.SYS_PWRITE64, programFD, dataAddress, 1, 0) },
			code:  127, want: failure{what: "write", errno: unix.EPERM, last: true},
		},
		"nor open it for writing": {
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
			output, report, code := runProgram(t, p)
			if output != tt.output || code != tt.code {
				t.Errorf("it printed %q and ended with %d; want %q, %d", output, code, tt.output, tt.code)
			}
			if tt.want.what == "" {
				if report != "" {
					t.Errorf("it reported %q", report)
				}
				return
			}
			got, err := p.failure([]byte(report))
			if err != nil || got.what != tt.want.what || got.errno != tt.want.errno || got.last != tt.want.last || !slices.Equal(got.skipped, tt.want.skipped) {
				t.Errorf("it reported %+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
}

// TestProgramIsExecuted ends a program by the execution of another one, which is not told.
func TestProgramIsExecuted(t *testing.T) {
	p := &program{free: 5}
	p.do("close", nil, unix.SYS_FCNTL, reportFD, unix.F_SETFD, unix.FD_CLOEXEC)
	for _, file := range []string{"/no/where/sh", "/bin/sh"} {
		p.do("exec", notHere, unix.SYS_EXECVE, p.string(file), p.strings([]string{"sh", "-c", "echo $0 $A $1", "x", "y"}), p.strings([]string{"A=a"}))
	}
	if output, report, code := runProgram(t, p); output != "x a y\n" || report != "" || code != 0 {
		t.Errorf("got %q, %q, %d", output, report, code)
	}
}

func TestProgramMistakes(t *testing.T) {
	p := &program{free: 5}
	a := p.open("open", unix.SYS_OPENAT, cwd, p.string("/"), unix.O_PATH)
	p.open("open", unix.SYS_OPENAT, cwd, p.string("/"), unix.O_PATH)
	p.close(a)
	if _, err := p.file(); err == nil || !strings.Contains(err.Error(), "out of turn") {
		t.Errorf("got %v", err)
	}
	p = &program{}
	for range maxCalls {
		p.print("x")
	}
	if _, err := p.file(); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("got %v", err)
	}
	for _, report := range []string{"x", strings.Repeat("\x00", 24), strings.Repeat("\xff", 24)} {
		if f, err := (&program{calls: make([]call, 1)}).failure([]byte(report)); err == nil {
			t.Errorf("%q is %+v", report, f)
		}
	}
}
