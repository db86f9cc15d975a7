package layers

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
)

// stackOf unpacks layers into a store and puts them on top of each other.
func stackOf(t *testing.T, st *cas.Store, layers ...[]tar.Header) ([]string, error) {
	t.Helper()
	var descs []ocispec.Descriptor
	var tars [][]byte
	for _, l := range layers {
		raw := tarball(t, l...)
		tars = append(tars, raw)
		descs = append(descs, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(raw), Size: int64(len(raw))})
	}
	return stacked(t.Context(), st, descs, tars)
}

// kinds gives the first letters of the names of directories: u for layers as they were unpacked, s for what a stack has made.
func kinds(dirs []string) string {
	var b strings.Builder
	for _, d := range dirs {
		b.WriteByte(d[0])
	}
	return b.String()
}

func (o at) dir(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o711, ModTime: time.Unix(int64(o), 0)}
}

type at int64 // a time

// TestStack looks at how many directories a chain becomes, and at what they are together.
func TestStack(t *testing.T) {
	needRoot(t)
	fifo := tar.Header{Typeflag: tar.TypeFifo, Name: "d/p", Mode: 0o600}
	for _, tt := range []struct {
		name   string
		layers [][]tar.Header
		kinds  string
		want   string
	}{
		{"ordinary layers, with no entry for the root", [][]tar.Header{{dir("d"), file("d/a")}, {dir("d"), file("d/b")}, {file("c")}},
			"uuu", "c f 640 3; d d 750; d/a f 640 3; d/b f 640 3"},
		{"a directory that all only imply", [][]tar.Header{{file("d/a")}, {file("d/b")}, {file("d/.wh.a")}},
			"uuu", "d d 755; d/b f 640 3"},
		{"directories that layers in a row imply", [][]tar.Header{{at(7).dir("d"), at(8).dir("e")}, {file("d/x/b")}, {file("e/c")}, {fifo}},
			"uuuus", "d d 711; d/p p 600; d/x d 755; d/x/b f 640 3; e d 711; e/c f 640 3"},
		{"one that says what the directory is, between them", [][]tar.Header{{at(7).dir("d")}, {file("d/b")}, {dir("./"), dir("d"), file("d/c")}, {file("d/e")}},
			"uusuus", "d d 750; d/b f 640 3; d/c f 640 3; d/e f 640 3"},
		{"a directory that is implied and then hidden", [][]tar.Header{{at(7).dir("d")}, {file("d/b")}, {file(".wh.d")}},
			"uuu", ""},
		{"an opaque root", [][]tar.Header{{dir("d")}, {file("e")}, {file(".wh..wh..opq"), file("f")}, {file("g")}},
			"uu", "f f 640 3; g f 640 3"},
		{"an opaque root, through a link below", [][]tar.Header{{symlink("d", "..")}, {file("d/.wh..wh..opq"), file("f")}},
			"s", "f f 640 3"},
		{"a way through a link below", [][]tar.Header{{symlink("l", "/d/e")}, {file("l/a"), file("l/.wh.b"), dir("l/c")}},
			"us", "d d 755; d/e d 755; d/e/a f 640 3; d/e/c d 750; l l /d/e"},
		{"a link below that is replaced after it was used", [][]tar.Header{{symlink("l", "d")}, {file("l/a"), dir("l"), file("l/a")}},
			"us", "d d 755; d/a f 640 3; l d 750; l/a f 640 3"},
		{"a hard link to a file below, and one to that", [][]tar.Header{{file("d/a")}, {link("b", "d/a"), file("d/.wh.a"), link("c", "b")}},
			"us", "b f 640 3; c f 640 3; d d 755"},
		{"whiteouts in what does not exist, or is a file", [][]tar.Header{{file("f")}, {file("x/y/.wh.a"), file("z/.wh..wh..opq"), file("f/.wh.b")}},
			"us", "f f 640 3"},
		{"the same layer twice", [][]tar.Header{{file("a")}, {file(".wh.a")}, {file("a")}},
			"uu", "a f 640 3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st := openStore(t)
			dirs, err := stackOf(t, st, tt.layers...)
			check(t, err)
			if got := kinds(dirs); got != tt.kinds {
				t.Errorf("directories %s, want %s", got, tt.kinds)
			}
			again, err := stackOf(t, st, tt.layers...)
			check(t, err)
			if !slices.Equal(dirs, again) {
				t.Errorf("the chain has other directories the second time: %s and then %s", dirs, again)
			}
			var lower []string
			for _, d := range dirs {
				lower = append(lower, st.LayerPath(d))
			}
			if len(lower) == 1 {
				lower = append([]string{t.TempDir()}, lower...)
			}
			path, unmount := mountOverlay(t, "", "", lower...)
			defer unmount()
			// The files of a layer that was applied again have a name there too.
			got := regexp.MustCompile(` n\d+`).ReplaceAllString(describe(t, path, ""), "")
			if got != tt.want {
				t.Errorf("\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestStackRefuses(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name   string
		layers [][]tar.Header
		want   string
	}{
		{"a hard link to nothing", [][]tar.Header{{file("a")}, {link("b", "c")}}, `"b": hard link to "c": neither`},
		{"a hard link to what was hidden", [][]tar.Header{{file("a")}, {file(".wh.a")}, {link("b", "a")}}, `"b": hard link to "a": neither`},
		{"a hard link to a directory below", [][]tar.Header{{dir("a")}, {link("b", "a")}}, `"b": hard link to "a": it is a directory`},
		{"an entry below a file below", [][]tar.Header{{file("a")}, {file("a/b")}}, `"a/b": a, in the layers below: not a directory`},
		{"a circle of links below", [][]tar.Header{{symlink("a", "b"), symlink("b", "a")}, {file("a/x")}}, `"a/x": `},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st := openStore(t)
			_, err := stackOf(t, st, tt.layers...)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "put layer u-") {
				t.Errorf("error %v, want one with %q and the layer", err, tt.want)
			}
		})
	}
}

// TestUnpackKeepsLittle looks at what is beside an unpacked layer: an ordinary one leaves nothing open.
func TestUnpackKeepsLittle(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name    string
		headers []tar.Header
		want    string
	}{
		{"ordinary", []tar.Header{dir("./"), dir("d"), file("d/a"), file("d/.wh.b"), file("d/a")}, "epoch fs"},
		{"no root", []tar.Header{dir("d"), file("d/a"), symlink("d/l", "a")}, "epoch fs open"},
		{"no parent", []tar.Header{file("d/a")}, "entries epoch fs open"},
		{"replaced", []tar.Header{file("d/a"), file("d/a")}, "entries epoch fs open replaced"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st := openStore(t)
			dirs, err := stackOf(t, st, tt.headers)
			check(t, err)
			entries, err := os.ReadDir(filepath.Dir(st.LayerPath(dirs[0])))
			check(t, err)
			var names []string
			for _, e := range entries {
				names = append(names, e.Name())
			}
			if got := strings.Join(names, " "); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// TestReplayKeepsContent applies a layer again of which two entries have one name in the layer alone, and two with the layers below.
func TestReplayKeepsContent(t *testing.T) {
	needRoot(t)
	st := openStore(t)
	dirs, err := stackOf(t, st, []tar.Header{symlink("l", "d")},
		[]tar.Header{{Name: "l/x/a", Size: 1}, {Name: "l/x", Size: 2}, dir("l"), {Name: "l/x", Size: 4}, {Name: "l/y", Size: 5}})
	check(t, err)
	var buf bytes.Buffer
	for _, d := range dirs {
		buf.WriteString(describe(t, st.LayerPath(d), "") + "\n")
	}
	if got, want := buf.String(), "l l d\nd d 755; d/x f 0 2 n2; l d 750; l/x f 0 4 n2; l/y f 0 5 n2\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestReplayWithoutLog puts a layer on others, which it has to be applied to again, when its log is gone or cut.
func TestReplayWithoutLog(t *testing.T) {
	needRoot(t)
	for name, spoil := range map[string]func(string) error{
		"gone": os.Remove,
		"cut":  func(log string) error { return os.Truncate(log, 5) },
	} {
		st := openStore(t)
		link, err := stackOf(t, st, []tar.Header{symlink("l", "d")})
		check(t, err)
		through, err := stackOf(t, st, []tar.Header{file("l/x")})
		check(t, err)
		check(t, spoil(filepath.Join(filepath.Dir(st.LayerPath(through[0])), logFile)))
		s := NewStack(st, link)
		defer s.Close()
		if err := s.Add(t.Context(), through[0]); !errors.Is(err, errSequence) || !strings.Contains(err.Error(), through[0]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPackLeavesOpen packs a layer whose bytes are gone: what it left open stays open.
func TestPackLeavesOpen(t *testing.T) {
	needRoot(t)
	st := openStore(t)
	load := func(headers ...tar.Header) Layer {
		raw := tarball(t, headers...)
		l, err := Load(t.Context(), st, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: int64(len(raw))}, digest.FromBytes(raw),
			bytes.NewReader(raw), Files, Limits{})
		check(t, err)
		return Layer{Dir: l.Dir}
	}
	l, err := Pack(t.Context(), st, load(file("d/a"), file("e/.wh.b"), dir("f")), Compression{})
	check(t, err)
	blob, err := st.Blob(l.Blob.Digest)
	check(t, err)
	defer blob.Close()
	z, err := decompress(blob)
	check(t, err)
	defer z.Close()
	var names []string
	tr := tar.NewReader(z)
	for h, err := tr.Next(); err == nil; h, err = tr.Next() {
		names = append(names, h.Name)
	}
	if got, want := strings.Join(names, " "), "d/a e/.wh.b f/"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	_, err = Pack(t.Context(), st, load(link("a", "b")), Compression{})
	if err == nil || !strings.Contains(err.Error(), "hard links to files of the layers below") {
		t.Errorf("error %v", err)
	}
}
