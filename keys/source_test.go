package keys_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

// show prints a tree, one file a line.
func show(indent string, n keys.Node) string {
	kind := map[fs.FileMode]string{0: "file", fs.ModeDir: "dir", fs.ModeSymlink: "link"}[n.Kind]
	if n.Exec {
		kind = "exec"
	}
	line := strings.TrimRight(fmt.Sprintf("%s%s %q %s", indent, kind, n.Name, n.Link), " ") + "\n"
	for _, c := range n.Children {
		line += show(indent+"  ", c)
	}
	return line
}

func TestHashSources(t *testing.T) {
	tree := files(
		"a.txt", "A", "run.sh", "x:#!", "top", "->a.txt", "dirlink", "->d",
		"d/one", "1", "d/.hidden", "h", "d/sub/two", "2", "d/sub/one", "1", "d/empty/", "", "d/up", "->../a.txt", "d/gone", "->nowhere",
		"a-b", "", "a/b", "",
	)
	for _, row := range []struct {
		name, src, exclude, want string
	}{
		{"a file", "a.txt", "", `file "a.txt"`},
		{"an executable file", "run.sh", "", `exec "run.sh"`},
		{"a link as the last component is a link", "dirlink", "", `link "dirlink" d`},
		{"a link with a slash is still a link", "dirlink/", "", `link "dirlink" d`},
		{"several sources", "a.txt top", "", `file "a.txt"
link "top" a.txt`},
		{"a file in a directory has its base name", "d/sub/two", "", `file "two"`},
		{"a directory, sorted, links and empty directories kept", "d", "", `dir "d"
  file ".hidden"
  dir "empty"
  link "gone" nowhere
  file "one"
  dir "sub"
    file "one"
    file "two"
  link "up" ../a.txt`},
		{"exclusions match base names at every depth", "d", "one .hidden empty gone up", `dir "d"
  dir "sub"
    file "two"`},
		{"exclusions are no globs and no paths", "a", "* a/b ./b", `dir "a"
  file "b"`},
		{"exclusions do not apply to the sources", "d/one a", "one a b", `file "one"
dir "a"`},
		{"all of it", ".", "d", `dir ""
  dir "a"
    file "b"
  file "a-b"
  file "a.txt"
  link "dirlink" d
  exec "run.sh"
  link "top" a.txt`},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := &spec.Copy{Src: strings.Fields(row.src), Exclude: strings.Fields(row.exclude)}
			sources, err := keys.HashSources(context.Background(), tree, c, options(nil))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, s := range sources {
				got += show("", s.Node)
			}
			if got != row.want+"\n" {
				t.Errorf("got\n%swant\n%s", got, row.want)
			}
		})
	}
	t.Run("sources are cleaned", func(t *testing.T) {
		sources, err := keys.HashSources(context.Background(), tree, &spec.Copy{Src: []string{"/d//./sub/", ""}}, options(nil))
		if err != nil || sources[0].Src != "d/sub" || sources[1].Src != "." {
			t.Errorf("%v, %v", sources, err)
		}
	})
	t.Run("sizes and digests", func(t *testing.T) {
		sources, err := keys.HashSources(context.Background(), tree, &spec.Copy{Src: []string{"a.txt"}}, options(nil))
		if n := sources[0].Node; err != nil || n.Size != 1 || n.Digest != digest.FromString("A") {
			t.Errorf("%v, %v", sources, err)
		}
	})
}

func TestSourceErrors(t *testing.T) {
	tree := files("a.txt", "A", "d/one", "1", "dirlink", "->d", "q/ok", "")
	tree["q/p"] = &fstest.MapFile{Mode: fs.ModeNamedPipe | 0o644}
	tree["q/s"] = &fstest.MapFile{Mode: fs.ModeSocket | 0o644}
	tree["dev"] = &fstest.MapFile{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o644}
	for i := range 15 {
		tree[fmt.Sprintf("many/p%02d", i)] = &fstest.MapFile{Mode: fs.ModeNamedPipe}
	}
	_, err := keys.New(context.Background(), parse(t, `((from busybox)
 (copy (src nope) (dst /a))
 (copy (src a.txt ../x d/../a.txt nope/x) (dst /a/))
 (copy (src a.txt/x dirlink/one) (dst /a/))
 (copy (src q) (dst /a))
 (copy (src dev) (dst /a))
 (copy (src q) (exclude p s) (dst /a))
 (copy (src many) (dst /a)))`), options(tree))
	want := `build.spec:2:2: source "nope" not found in the source directory
build.spec:3:2: source "../x": ".." is not allowed in a source
build.spec:3:2: source "d/../a.txt": ".." is not allowed in a source
build.spec:3:2: source "nope/x" not found in the source directory
build.spec:4:2: source "a.txt/x": "a.txt" is a file, not a directory
build.spec:4:2: source "dirlink/one": "dirlink" is a link, not a directory
build.spec:5:2: "q/p" is a named pipe: only files, directories and links can be copied
build.spec:5:2: "q/s" is a socket: only files, directories and links can be copied
build.spec:6:2: "dev" is a device: only files, directories and links can be copied
`
	for i := range 10 {
		want += fmt.Sprintf("build.spec:8:2: \"many/p%02d\" is a named pipe: only files, directories and links can be copied\n", i)
	}
	want += "build.spec:8:2: and 5 more files that cannot be copied"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if list := (spec.ErrorList)(nil); !errors.As(err, &list) {
		t.Errorf("%T is no ErrorList", err)
	}

	t.Run("no source directory", func(t *testing.T) {
		_, err := keys.New(context.Background(), parse(t, `((from busybox) (copy (src a) (dst /a)))`), options(nil))
		if err == nil || err.Error() != "build.spec:1:17: there is no source directory to copy from" {
			t.Error(err)
		}
	})
	t.Run("a build that is not in scope", func(t *testing.T) {
		_, err := keys.New(context.Background(), parse(t, `((from busybox) (copy (from (build x)) (src a) (dst /a)))`), options(nil))
		if err == nil || err.Error() != `build.spec:1:17: unknown build "x"` {
			t.Error(err)
		}
	})
	t.Run("files of a build", func(t *testing.T) {
		_, err := keys.HashSources(context.Background(), tree, &spec.Copy{From: "dev", Src: []string{"nope", "q"}}, options(nil))
		if err == nil || !strings.HasPrefix(err.Error(), `source "nope" not found in build "dev"`+"\n"+`"q/p" is`) {
			t.Error(err)
		}
	})
	t.Run("a hasher that fails", func(t *testing.T) {
		o := options(tree)
		o.Hasher = hasherFunc(func(string) (digest.Digest, error) { return "", fs.ErrPermission })
		_, err := keys.New(context.Background(), parse(t, `((from busybox) (copy (src d) (dst /a)))`), o)
		if err == nil || err.Error() != "build.spec:1:17: cannot read \"d/one\": permission denied" {
			t.Error(err)
		}
	})
	t.Run("a hasher of another kind", func(t *testing.T) {
		o := options(tree)
		o.Hasher = hasherFunc(func(string) (digest.Digest, error) { return "md5:00", nil })
		_, err := keys.New(context.Background(), parse(t, `((from busybox) (copy (src d) (dst /a)))`), o)
		if err == nil || !strings.Contains(err.Error(), "is no SHA-256") {
			t.Error(err)
		}
	})
}

type hasherFunc func(name string) (digest.Digest, error)

func (f hasherFunc) Digest(name string, _ fs.FileInfo, _ func() (io.ReadCloser, error)) (digest.Digest, error) {
	return f(name)
}

func TestWindowsNames(t *testing.T) {
	tree := files("d/Make", "", "d/make", "", "d/a:b", "", "d/ok", "", "e/É", "", "e/é", "", "e/u\u0308", "", "e/ü", "")
	o := options(tree)
	text := `((from servercore) (copy (src d e) (dst /a/)))`
	plan(t, text, o)
	o.Platform = windows
	_, err := keys.New(context.Background(), parse(t, text), o)
	want := `build.spec:1:20: "d/a:b" cannot be copied: Windows has no such file names
build.spec:1:20: "d/Make" and "d/make" cannot both be copied: Windows takes their names for the same
build.spec:1:20: "e/É" and "e/é" cannot both be copied: Windows takes their names for the same
build.spec:1:20: "e/` + "u\u0308" + `" and "e/ü" cannot both be copied: Windows takes their names for the same`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// CheckSources tells of a spec with other mistakes what New would tell, but for what Check tells, and reads no file.
func TestCheckSources(t *testing.T) {
	s, _ := spec.ParsePartial("f", []byte(`((build b ((from scratch) (copy (src x/y) (dst /))))
 (from scratch)
 (rnu)
 (copy (src here /here /gone) (dst /d/))
 (copy (from (build b)) (src nosuch) (dst /))
 (copy (src ../x) (dst /)))`))
	list := keys.CheckSources(s, keys.Options{Context: fstest.MapFS{"here": {}, "x": {}}, ContextName: "DIR"})
	want := `f:1:27: source "x/y": "x" is a file, not a directory
f:4:2: source "/gone" not found in DIR: with a / before it, it is looked for there all the same, and nowhere else on this machine`
	if list.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", list, want)
	}
}
