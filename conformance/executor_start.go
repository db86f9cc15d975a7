package conformance

import (
	"archive/tar"
	"errors"
	"strings"
	"testing"

	"github.com/ocurrent/obx/executor"
)

// startTests are about processes that cannot start.
func startTests() []executorTest {
	return []executorTest{{"StartErrors", testStartErrors}}
}

func testStartErrors(t *testing.T, b *rig) {
	elf := func(machine byte, interpreter string) string {
		// A 64-bit little-endian header and one program header, PT_INTERP.
		h := make([]byte, 64+56)
		copy(h, "\x7fELF\x02\x01\x01")
		h[16], h[18], h[20] = 2, machine, 1
		h[32], h[52], h[54], h[56] = 64, 64, 56, 1
		h[64], h[64+8], h[64+32] = 3, 64+56, byte(len(interpreter)+1)
		return string(h) + interpreter + "\x00"
	}
	r := b.open(t, b.base, loadTar(t, b.st,
		tar.Header{Name: "file", Linkname: "x"},
		tar.Header{Name: "text", Linkname: "echo x\n", Mode: 0o755},
		tar.Header{Name: "empty", Linkname: "", Mode: 0o755},
		tar.Header{Name: "script", Linkname: "#!/bin/sh\necho script $1\n", Mode: 0o755},
		tar.Header{Name: "lost", Linkname: "#! /bin/nosuch -x\n", Mode: 0o755},
		tar.Header{Name: "dynamic", Linkname: elf(62, "/lib/ld-nosuch.so.2"), Mode: 0o755},
		tar.Header{Name: "foreign", Linkname: elf(8, ""), Mode: 0o755}, // MIPS
		tar.Header{Name: "dangling", Typeflag: tar.TypeSymlink, Linkname: "/bin/nosuch", Mode: 0o777},
		tar.Header{Name: "private/", Typeflag: tar.TypeDir, Mode: 0o700},
		tar.Header{Name: "private/script", Linkname: "#!/bin/sh\n", Mode: 0o755},
		tar.Header{Name: "mine", Linkname: "#!/bin/sh\n", Mode: 0o700},
	))
	argv := func(a ...string) func(*executor.Process) { return func(p *executor.Process) { p.Argv = a } }
	mount := func(m executor.Mount) func(*executor.Process) {
		return func(p *executor.Process) { p.Mounts = []executor.Mount{m} }
	}
	for _, test := range []struct {
		name   string
		change func(*executor.Process)
		want   string // in the message
	}{
		{"no command", argv(), "no command"},
		{"empty name", argv(""), "empty"},
		{"missing program", argv("/bin/nosuch"), "/bin/nosuch"},
		{"missing in PATH", argv("nosuch", "x"), "nosuch: not found in PATH (/bin)"},
		{"no PATH", func(p *executor.Process) { p.Argv, p.Env = []string{"sh"}, nil }, "PATH is not set"},
		{"not executable", argv("/file"), "not executable"},
		{"directory", argv("/bin"), "not a regular file"},
		{"file in the middle", argv("/file/x"), "/file/x"},
		{"dangling link", argv("/dangling"), "/dangling"},
		{"relative", argv("./nosuch"), "./nosuch"},
		{"text", argv("/text"), "exec format error"},
		{"empty file", argv("/empty"), "exec format error"},
		{"script without interpreter", argv("/lost"), `"/bin/nosuch" does not exist`},
		{"program without interpreter", argv("/dynamic"), `"/lib/ld-nosuch.so.2" does not exist`},
		{"foreign program", argv("/foreign"), "mips"},
		{"zero byte", argv("/bin/echo", "a\x00b"), "zero byte"},
		{"long argument", argv("/bin/echo", strings.Repeat("x", 131072)), "131072 bytes long"},
		{"program of root", func(p *executor.Process) { p.Argv, p.UID = []string{"/mine"}, 1000 }, "permission denied"},
		{"program in a directory of root", func(p *executor.Process) { p.Argv, p.UID = []string{"/private/script"}, 1000 }, "permission denied"},
		{"directory is a file", func(p *executor.Process) { p.Dir = "/file" }, "/file is not a directory"},
		{"directory below a file", func(p *executor.Process) { p.Dir = "/file/x" }, "/file"},
		{"relative directory", func(p *executor.Process) { p.Dir = "x" }, "not absolute"},
		{"nameless variable", func(p *executor.Process) { p.Env = []string{"PATH=/bin", "=x"} }, "without a name"},
		{"cache on a file", mount(b.cache("/file", "c", "")), "/file"},
		{"cache below a file", mount(b.cache("/file/x", "c", "")), "/file"},
		{"secret on a directory", mount(secret("/bin", "x")), "/bin"},
	} {
		p := script("true")
		test.change(&p)
		out, err := try(t, r, p)
		var bad *executor.StartError
		if !errors.As(err, &bad) || !strings.Contains(bad.Msg, test.want) || strings.Contains(bad.Msg, "runc") {
			t.Errorf("%s: got %T %v, want a StartError with %q", test.name, err, err, test.want)
		}
		if out != "" {
			t.Errorf("%s: prints %q", test.name, out)
		}
	}
	if l := Freeze(t, r); !l.IsZero() {
		t.Errorf("the layer has %q", contents(t, b.st, l))
	}
	// What works all the same.
	for _, test := range []struct {
		argv []string
		want string
	}{
		{[]string{"/script", "x"}, "script x\n"},
		{[]string{"./script", "x"}, "script x\n"},
		{[]string{"echo", strings.Repeat("x", 100_000)}, strings.Repeat("x", 100_000) + "\n"},
	} {
		p := script("")
		p.Argv = test.argv
		wantOutput(t, r, p, test.want)
	}
}
