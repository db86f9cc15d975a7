package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/keys"
)

// image is a spec whose result has something of everything that an image says.
const image = `((from scratch) (user (uid 5) (gid 6)) (env A 1) (workdir /w) (shell /bin/sh -c)
	(run (shell "echo one > /w/one; ln -s one /w/link"))
	(run (shell "true"))
	(copy (src src/a.ml) (dst /src/))
	(env B 2) (workdir sub))`

var imageFiles = map[string]string{"w/one": "one\n", "w/link": "-> one", "src/a.ml": "let a = 1\n"}

// Whatever a result is written as holds its files.
func TestWrite(t *testing.T) {
	t.Parallel()
	for _, text := range []string{image, project, "((from scratch))"} {
		m := newMachine(t)
		m.NeedFiles = true
		o := m.run(text)
		want := o.files()
		dir := t.TempDir()
		write := func(s build.OutputSpec) {
			t.Helper()
			if _, err := m.Write(t.Context(), o.plan, o.rep, s, nil); err != nil {
				t.Fatal(err)
			}
		}
		same := func(what string, got map[string]string) {
			t.Helper()
			if !maps.Equal(got, want) {
				t.Errorf("%s has %q, want %q", what, got, want)
			}
		}
		write(build.OutputSpec{Type: "tar", Dest: filepath.Join(dir, "files.tar")})
		f, err := os.Open(filepath.Join(dir, "files.tar"))
		if err != nil {
			t.Fatal(err)
		}
		same("tar", untar(t, f))
		f.Close()

		write(build.OutputSpec{Type: "local", Dest: filepath.Join(dir, "new", "local")})
		same("local", readDir(t, filepath.Join(dir, "new", "local")))

		write(build.OutputSpec{Type: "oci", Dest: filepath.Join(dir, "layout"), Names: []string{"app:1"}, Dir: true})
		same("the OCI directory", useImage(t, "oci:"+filepath.Join(dir, "layout")+":1"))

		for _, kind := range []string{"oci", "docker"} {
			write(build.OutputSpec{Type: kind, Dest: filepath.Join(dir, kind+".tar"), Names: []string{"app:1"}})
			unpack(t, filepath.Join(dir, kind+".tar"), filepath.Join(dir, kind))
			same(kind, useImage(t, "oci:"+filepath.Join(dir, kind)+":1"))
		}
		if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

// useImage builds on an image, on a machine that knows nothing of it, and gives its files.
func useImage(t *testing.T, ref string) map[string]string {
	t.Helper()
	return newMachine(t).run("((from " + ref + "))").files()
}

// An image's configuration is what the spec has said, and the same each time.
func TestImageConfig(t *testing.T) {
	t.Parallel()
	var all []string
	for range 2 {
		m := newMachine(t)
		o := m.run(image)
		o.wantFiles(imageFiles)
		dir := t.TempDir()
		if _, err := m.Write(t.Context(), o.plan, o.rep, build.OutputSpec{Type: "oci", Dest: dir, Dir: true}, nil); err != nil {
			t.Fatal(err)
		}
		var index ocispec.Index
		var manifest ocispec.Manifest
		var config ocispec.Image
		readJSON(t, filepath.Join(dir, "index.json"), &index)
		readJSON(t, filepath.Join(dir, "blobs", "sha256", index.Manifests[0].Digest.Encoded()), &manifest)
		readJSON(t, filepath.Join(dir, "blobs", "sha256", manifest.Config.Digest.Encoded()), &config)
		all = append(all, manifest.Config.Digest.String())
		got := fmt.Sprintf("%q %s %s, %d layers", config.Config.Env, config.Config.WorkingDir, config.Config.User, len(manifest.Layers))
		if want := `["A=1" "B=2"] /w/sub 5:6, 2 layers`; got != want {
			t.Errorf("the config is %s, want %s", got, want)
		}
		var history []string
		for _, h := range config.History {
			history = append(history, fmt.Sprint(h.EmptyLayer, " ", h.CreatedBy))
		}
		want := []string{
			`false /w: (run (shell "echo one > /w/one; ln -s one /w/link"))`, `true /w: (run (shell true))`,
			`false /w: (copy (src src/a.ml) (dst /src/))`,
		}
		if !slices.Equal(history, want) {
			t.Errorf("the history is %q, want %q", history, want)
		}
	}
	if all[0] != all[1] {
		t.Errorf("two machines gave %q", all)
	}
}

// A result that has gone is told so.
func TestWriteLost(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	o := m.run(image)
	o.lose(1)
	o.rep = &build.Report{Key: o.rep.Key} // as another process has it
	dest := filepath.Join(t.TempDir(), "out.tar")
	_, err := m.Write(t.Context(), o.plan, o.rep, build.OutputSpec{Type: "tar", Dest: dest}, nil)
	if err == nil || !strings.Contains(err.Error(), o.key(1)) {
		t.Errorf("the error is %v", err)
	}
	if _, err := os.Stat(dest); !errors.Is(err, fs.ErrNotExist) {
		t.Error("there is a file")
	}
}

// A result can be written though another process has rebuilt what it stands on.
func TestWriteRebuilt(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	const text = `((from scratch) (run (shell "echo %s > /f")) (copy (src src/a.ml) (dst /)))`
	o := m.run(fmt.Sprintf(text, "x"))
	other := m.another()
	other.NoCache = true
	other.exec.before = func(command *string, _ executor.Process) { *command = "echo other > /f" }
	other.run(fmt.Sprintf(text, "x"))
	o.wantFiles(map[string]string{"f": "x\n", "a.ml": "let a = 1\n"})
	dest := build.OutputSpec{Type: "oci", Dest: t.TempDir(), Names: []string{"x"}, Dir: true}
	if _, err := m.Write(t.Context(), o.plan, o.rep, dest, nil); err != nil {
		t.Fatal(err)
	}
	files := useImage(t, "oci:"+dest.Dest+":x")
	if files["f"] != "x\n" {
		t.Errorf("the image has %q", files)
	}
	last := m.run(fmt.Sprintf(text, "x"))
	last.want("ss")
	last.wantFiles(map[string]string{"f": "other\n", "a.ml": "let a = 1\n"})
}

// An output replaces a file as a whole, writes through a device, and leaves nothing when it cannot be written.
func TestWriteDestination(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	o := m.run(image)
	dir := t.TempDir()
	dest := filepath.Join(dir, "out.tar")
	if err := os.WriteFile(dest, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{dest, os.DevNull} {
		if _, err := m.Write(t.Context(), o.plan, o.rep, build.OutputSpec{Type: "tar", Dest: to}, nil); err != nil {
			t.Error(err)
		}
	}
	if info, err := os.Stat(dest); err != nil || info.Size() < 100 || info.Mode() != 0o644 {
		t.Errorf("the file is %v, %v", info, err)
	}
	if info, err := os.Stat(os.DevNull); err != nil || info.Mode()&fs.ModeCharDevice == 0 {
		t.Fatalf("%s is %v, %v", os.DevNull, info, err)
	}
	full := errors.New("no space left")
	_, err := m.Write(t.Context(), o.plan, o.rep, build.OutputSpec{Type: "tar", Dest: "-"}, failingWriter{full})
	if !errors.Is(err, full) {
		t.Errorf("the error is %v", err)
	}
	if _, err := m.Write(t.Context(), o.plan, o.rep, build.OutputSpec{Type: "tar", Dest: filepath.Join(dir, "no", "dir")}, nil); err == nil {
		t.Error("a file in no directory was written")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("the directory has %v", entries)
	}
}

// A directory is made for its owner alone, and appears when all is in it; one that exists stays as it is.
func TestWriteDirectory(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.NeedFiles = true
	o := m.run(image)
	dir := t.TempDir()
	for _, s := range []build.OutputSpec{{Type: "local", Dest: "local"}, {Type: "oci", Dest: "layout/", Dir: true}} {
		there := filepath.Join(dir, "there-"+s.Type)
		if err := os.Mkdir(there, 0o751); err != nil {
			t.Fatal(err)
		}
		for dest, mode := range map[string]fs.FileMode{filepath.Join(dir, s.Dest): 0o700, there: 0o751} {
			s.Dest = dest
			if _, err := m.Write(t.Context(), o.plan, o.rep, s, nil); err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(dest); err != nil || info.Mode() != fs.ModeDir|mode {
				t.Errorf("%s is %v, %v", dest, info.Mode(), err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, s := range []build.OutputSpec{{Type: "local"}, {Type: "oci", Dir: true}} {
		s.Dest = filepath.Join(dir, "failed")
		if _, err := m.Write(ctx, o.plan, o.rep, s, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", s.Type, err)
		}
	}
	for _, name := range []string{"failed", ".*"} {
		if left, _ := filepath.Glob(filepath.Join(dir, name)); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// The state before a step is made by what comes before it in its stage and by the builds copied from there, and nothing else.
func TestStateBefore(t *testing.T) {
	t.Parallel()
	for n, want := range []struct {
		ran   int
		files map[string]string
	}{
		1: {0, map[string]string{}},
		2: {0, map[string]string{}},
		3: {1, map[string]string{"bin/make": "make\n"}},
		5: {0, map[string]string{}},
		6: {0, map[string]string{"src/src/a.ml": "let a = 1\n", "src/src/b.ml": "let b = 2\n", "src/src/run.sh": "exec true\n"}},
		8: {3, map[string]string{
			"src/src/a.ml": "let a = 1\n", "src/src/b.ml": "let b = 2\n", "src/src/run.sh": "exec true\n", "src/out": "compiled\n", "dev-result": "dev\n",
		}},
	} {
		if want.files == nil {
			continue
		}
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			plan := m.plan(project)
			key, err := m.StateBefore(t.Context(), plan, plan.Steps[n-1])
			if err != nil {
				t.Fatal(err)
			}
			if len(m.exec.ran) != want.ran {
				t.Errorf("ran %q", m.exec.ran)
			}
			var out bytes.Buffer
			s := build.Session{Context: plan.Steps[n-1].Env, Output: &out}
			for name := range want.files {
				s.Argv = []string{"sh", "-c", "cat /" + name}
				out.Reset()
				if err := m.Shell(t.Context(), key, s); err != nil || out.String() != want.files[name] {
					t.Errorf("%s has %q, %v", name, &out, err)
				}
			}
			// What was made for it is a result like any other.
			if o := m.run(project); strings.Count(o.steps(), "r") != 5+3-strings.Count(o.steps(), "s") || o.rep.Hits < want.ran {
				t.Errorf("the steps were %s", o.steps())
			}
		})
	}
}

// A failing step before it is the error.
func TestStateBeforeFails(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	plan := m.plan(`((from scratch) (run (shell "true")) (run (shell "false")) (run (shell "true")))`)
	_, err := m.StateBefore(t.Context(), plan, plan.Steps[2])
	var step *build.StepError
	if !errors.As(err, &step) || step.Step.Number != 2 {
		t.Errorf("the error is %v", err)
	}
	if _, err := m.StateBefore(t.Context(), plan, plan.Steps[1]); err != nil {
		t.Error(err)
	}
}

// A session runs in a result's files with a step's context; what it changes is dropped.
func TestShell(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	o := m.run(image)
	var seen executor.Process
	m.exec.before = func(command *string, p executor.Process) {
		seen = p
		seen.Argv = slices.Clone(p.Argv)
		*command = "true"
	}
	c := o.plan.Stages[0].Contexts[len(o.plan.Stages[0].Contexts)-1]
	if err := m.Shell(t.Context(), o.rep.Key, build.Session{Context: c}); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%q %q %s %d:%d", seen.Argv, seen.Env, seen.Dir, seen.UID, seen.GID)
	if want := `["/bin/sh"] ["A=1" "B=2" "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] /w/sub 5:6`; got != want {
		t.Errorf("the process is %s, want %s", got, want)
	}
	m.exec.before = nil
	var out bytes.Buffer
	for range 2 {
		out.Reset()
		s := build.Session{Context: c, Argv: []string{"sh", "-c", "echo more >> /w/one; cat /w/one; exit 3"}, Output: &out}
		err := m.Shell(t.Context(), o.key(1), s)
		var exit *executor.ExitError
		if !errors.As(err, &exit) || exit.Code != 3 || out.String() != "one\nmore\n" {
			t.Errorf("it printed %q, %v", &out, err)
		}
	}
	for _, key := range []string{strings.Repeat("0", 64), "nokey"} {
		if err := m.Shell(t.Context(), key, build.Session{Context: c}); err == nil {
			t.Errorf("a shell in %s", key)
		}
	}
}

// Log and Record know keys, input keys too, and say of others that there is nothing.
func TestLog(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	o := m.run(chain)
	for _, key := range []string{o.key(5), o.plan.Steps[4].Key.String()} {
		var out bytes.Buffer
		if err := m.Log(t.Context(), key, &out); err != nil || out.String() != "a\n" {
			t.Errorf("the log is %q, %v", &out, err)
		}
	}
	if err := m.Log(t.Context(), strings.Repeat("0", 64), io.Discard); !errors.Is(err, cas.ErrNotFound) {
		t.Errorf("the error is %v", err)
	}
	rec, err := m.Record(o.key(5))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := keys.Sum([]byte(rec.Preimage)); err != nil || id.String() != o.key(5) {
		t.Errorf("the preimage is of %s, %v", id, err)
	}
	if id, err := keys.Sum([]byte(rec.Input)); err != nil || id != o.plan.Steps[4].Key {
		t.Errorf("the input preimage is of %s, %v", id, err)
	}
}

func readJSON(t *testing.T, name string, v any) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}

// readDir gives the content of files below a directory, by path.
func readDir(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		if d.Type() == fs.ModeSymlink {
			target, err := os.Readlink(name)
			files[rel] = "-> " + target
			return err
		}
		data, err := os.ReadFile(name)
		files[rel] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// unpack unpacks a tar of an OCI layout.
func unpack(t *testing.T, name, dir string) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(to, 0o755)
		} else {
			var data []byte
			if data, err = io.ReadAll(tr); err == nil {
				err = errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, data, 0o644))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
