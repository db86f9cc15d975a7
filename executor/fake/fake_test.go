package fake_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/fake"
)

func TestExecutor(t *testing.T) {
	conformance.Executor(t, conformance.ExecutorMaker{
		New: func(_ testing.TB, st *cas.Store) executor.Executor { return fake.New(st) },
	})
}

func TestScripts(t *testing.T) {
	e := fake.New(conformance.OpenStore(t))
	r, err := e.Open(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	mounts := []executor.Mount{
		{Target: "/run/s", Secret: &executor.Secret{Data: []byte("secret\n")}},
		{Target: "/c", Cache: &executor.Cache{Domain: "d", Name: "n"}},
	}
	for _, test := range []struct {
		script, want, err string
	}{
		{"echo a  'b  c' \"$X\" '$X'", "a b  c x y $X\n", ""},
		{"echo a >f; echo b >> f; cat f /w/f", "a\nb\na\nb\n", ""},
		{"cat nosuch; echo after", "/w/nosuch: file does not exist\nafter\n", ""},
		{"nosuch; false", "sh: nosuch: not found\n", "exit status 1"},
		{"exit 7; echo never", "", "exit status 7"},
		{"exit 0; false", "", ""},
		{"kill 9; echo never", "", "killed by signal 9"},
		{"hog; echo never", "", "killed: it used more memory than its limit"},
		{"mkdir a/b; mkdir -p a/b; mkdir a; rm a; rm -rf a nosuch; ln -s x l; chmod 600 l", "/w/a/b: file does not exist\n/w/a: file already exists\n/w/a: is a directory\n", ""},
		{"cat /run/s; echo kept > /c/f", "secret\n", ""},
		{"cat /c/f", "kept\n", ""},
		{"fail no space", "", "no space"},
		{"refuse no such program", "", "no such program"},
	} {
		var out bytes.Buffer
		p := executor.Process{Argv: []string{"sh", "-c", test.script}, Dir: "/w", Env: []string{"X=x y"}, Mounts: mounts}
		err := r.Run(t.Context(), p, &out)
		if out.String() != test.want || test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%s\nprints %q, %v\n  want %q, %s", test.script, out.String(), err, test.want, test.err)
		}
		var bad *executor.StartError
		if strings.HasPrefix(test.script, "refuse") != errors.As(err, &bad) {
			t.Errorf("%s: %T", test.script, err)
		}
	}
}
