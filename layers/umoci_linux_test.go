package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
)

// TestSequences unpacks chains of random layers with umoci too, which applies each entry to a directory. OBX_TEST_SEQUENCES is how many,
// OBX_TEST_FIRST the first seed.
func TestSequences(t *testing.T) {
	needRoot(t)
	umoci, err := exec.LookPath("umoci")
	if err != nil {
		t.Skip("umoci is not installed: make test-deps")
	}
	count := 200
	if s := os.Getenv("OBX_TEST_SEQUENCES"); s != "" {
		if count, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	o := oracle{umoci: umoci, st: openStore(t), tmp: strings.Replace(scratch(t), "self", strconv.Itoa(os.Getpid()), 1)}
	both, faults := 0, 0
	first := uint64(0)
	if s := os.Getenv("OBX_TEST_FIRST"); s != "" {
		first, _ = strconv.ParseUint(s, 10, 64)
	}
	for i := range uint64(count) {
		seed := first + i
		s := newSequence(seed)
		failed, why := o.compare(t, s)
		if !failed {
			both++
		}
		if why != "" {
			s, why = o.shrink(t, s, why)
			t.Errorf("seed %d: %s\n%s", seed, why, s)
			if faults++; faults == 5 {
				t.FailNow()
			}
		}
	}
	t.Logf("umoci takes %d of %d", both, count)
	if both < count/2 {
		t.Errorf("umoci takes only %d of %d sequences", both, count)
	}
}

// A sequence is the entries of layers, base first.
type sequence [][]tar.Header

func (s sequence) String() string {
	var b strings.Builder
	for i, l := range s {
		fmt.Fprintf(&b, "layer %d\n", i)
		for _, h := range l {
			fmt.Fprintf(&b, "  %c %q %q %o %d:%d\n", h.Typeflag, h.Name, h.Linkname, h.Mode, h.Uid, h.Gid)
		}
	}
	return b.String()
}

func newSequence(seed uint64) sequence {
	r := rand.New(rand.NewPCG(seed, 12))
	path := func(last string) string { // files mostly have names that directories do not have
		names := make([]string, 1+r.IntN(3))
		for i := range names {
			names[i] = string("abcd"[r.IntN(4)])
		}
		if r.IntN(8) > 0 {
			names[len(names)-1] = string(last[r.IntN(len(last))])
		}
		return strings.Join(names, "/")
	}
	const dirs, other, any = "abcd", "efg", "abcdefg"
	var files []string
	s := make(sequence, 1+r.IntN(4))
	for l := range s {
		if r.IntN(4) == 0 {
			s[l] = append(s[l], tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755 &^ int64(r.IntN(8)), ModTime: time.Unix(int64(r.IntN(1e9)), 0)})
		}
		for range 1 + r.IntN(8) {
			h := tar.Header{
				Typeflag: tar.TypeReg, Name: path(other), Mode: 0o4777 &^ int64(r.IntN(0o1000)), Uid: r.IntN(3), Gid: r.IntN(3),
				ModTime: time.Unix(int64(r.IntN(1e9)), 0),
			}
			switch n := r.IntN(100); {
			case n < 22:
				h.Name = path(dirs)
				h.Typeflag, h.Mode = tar.TypeDir, h.Mode|0o700&0o1777
				if r.IntN(4) == 0 {
					h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": strconv.Itoa(r.IntN(100))}
				}
			case n < 40:
				h.Name = path(any)
				h.Typeflag = tar.TypeSymlink
				h.Linkname = []string{"", "/", "../", "./", "../../", ""}[r.IntN(6)] + path(dirs)
				if r.IntN(8) == 0 {
					h.Linkname = []string{"/", "..", "."}[r.IntN(3)]
				}
			case n < 50 && len(files) > 0:
				h = tar.Header{Typeflag: tar.TypeLink, Name: h.Name, Linkname: files[r.IntN(len(files))]}
			case n < 62:
				h.Name = path(any)
				h.Name = filepath.Join(filepath.Dir(h.Name), whiteoutPrefix+filepath.Base(h.Name))
			case n < 68:
				h.Name = filepath.Join(filepath.Dir(h.Name), opaqueMarker)
			case n < 70:
				h.Typeflag = tar.TypeFifo
			default:
				h.Size = int64(r.IntN(50)) // the content tells files apart
				files = append(files, h.Name)
			}
			s[l] = append(s[l], h)
		}
	}
	return s
}

type oracle struct {
	umoci string
	st    *cas.Store
	tmp   string
	n     int
}

// compare unpacks with both, and says what differs.
func (o *oracle) compare(t *testing.T, s sequence) (failed bool, why string) {
	o.n++
	dir := fmt.Sprintf("%s/%d", o.tmp, o.n)
	defer os.RemoveAll(dir)
	layout := filepath.Join(dir, "layout")
	var tars [][]byte
	for _, l := range s {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		for _, h := range l {
			check(t, tw.WriteHeader(&h))
			_, err := tw.Write(bytes.Repeat([]byte{'x'}, int(h.Size)))
			check(t, err)
		}
		check(t, tw.Close())
		tars = append(tars, buf.Bytes())
	}
	descs := writeLayout(t, layout, tars)
	start := time.Now().Add(-time.Second)
	cmd := exec.Command(o.umoci, "raw", "unpack", "--image", layout+":latest", filepath.Join(dir, "rootfs"))
	said, uerr := cmd.CombinedOutput()

	got, err := o.unpack(t, descs, tars)
	switch {
	case err != nil && uerr == nil:
		return false, fmt.Sprintf("obx refuses what umoci takes: %v", err)
	case err != nil && !strings.Contains(err.Error(), `"`):
		return true, fmt.Sprintf("obx does not name the entry: %v", err)
	case err != nil:
		return true, ""
	case uerr != nil:
		lines := strings.Split(strings.TrimSpace(string(said)), "\n")
		return true, takenAnyway(s, lines[len(lines)-1])
	}
	want := snapshot(t, filepath.Join(dir, "rootfs"))
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			continue
		}
		wf, gf := strings.Fields(w), strings.Fields(g)
		if sec, err := strconv.ParseFloat(wf[2], 64); err == nil && sec >= float64(start.Unix()) {
			wf[2], gf[2] = "-", "-" // umoci has no time for it: no entry did
		}
		want[name], got[name] = strings.Join(wf, " "), strings.Join(gf, " ")
	}
	delete(want, "")
	delete(got, "")
	if maps.Equal(want, got) {
		return false, ""
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(mergeMaps(want, got))) {
		if want[name] != got[name] {
			fmt.Fprintf(&b, "\n  %s\n    obx   %s\n    umoci %s", name, got[name], want[name])
		}
	}
	return false, "the trees differ:" + b.String()
}

func mergeMaps(a, b map[string]string) map[string]string {
	m := maps.Clone(a)
	maps.Copy(m, b)
	return m
}

// takenAnyway says whether it is a fault that obx takes what umoci refuses. Before a hard link is made, umoci removes what has its name: this may
// be its target, or a symbolic link on the way there.
func takenAnyway(s sequence, said string) string {
	for _, l := range s {
		for _, h := range l {
			if h.Typeflag == tar.TypeLink && (filepath.Base(h.Name) == filepath.Base(h.Linkname) || strings.HasPrefix(h.Linkname, h.Name+"/")) &&
				strings.Contains(said, "unpack entry: "+filepath.Clean(h.Name)+": link: no such file or directory") {
				return ""
			}
		}
	}
	return "obx takes what umoci refuses: " + said
}

// unpack gives what the layers are on top of each other.
func (o *oracle) unpack(t *testing.T, descs []ocispec.Descriptor, tars [][]byte) (map[string]string, error) {
	dirs, err := stacked(t.Context(), o.st, descs, tars)
	if err != nil {
		return nil, err
	}
	paths := []string{}
	for _, d := range dirs {
		paths = append(paths, o.st.LayerPath(d))
	}
	return merged(t, paths...), nil
}

func stacked(ctx context.Context, st *cas.Store, descs []ocispec.Descriptor, tars [][]byte) ([]string, error) {
	stack := NewStack(st, nil)
	defer stack.Close()
	for i, desc := range descs {
		l, err := Load(ctx, st, desc, "", bytes.NewReader(tars[i]), Files, Limits{})
		if err == nil {
			err = stack.Add(ctx, l.Dir)
		}
		if err != nil {
			return nil, err
		}
	}
	err := stack.Flush(ctx)
	return stack.Dirs, err
}

// shrink leaves out entries as long as the two differ.
func (o *oracle) shrink(t *testing.T, s sequence, why string) (sequence, string) {
	for again := true; again; {
		again = false
		for l := range s {
			for i := range s[l] {
				less := slices.Clone(s)
				less[l] = slices.Delete(slices.Clone(s[l]), i, i+1)
				if _, w := o.compare(t, less); w != "" && strings.Fields(w)[1] == strings.Fields(why)[1] {
					s, why, again = less, w, true
					break
				}
			}
		}
	}
	return s, why
}

// writeLayout writes an OCI layout with one image, and describes its layers.
func writeLayout(t *testing.T, dir string, tars [][]byte) []ocispec.Descriptor {
	blobs := filepath.Join(dir, "blobs", "sha256")
	check(t, os.MkdirAll(blobs, 0o755))
	put := func(media string, b []byte) ocispec.Descriptor {
		d := digest.FromBytes(b)
		check(t, os.WriteFile(filepath.Join(blobs, d.Encoded()), b, 0o644))
		return ocispec.Descriptor{MediaType: media, Digest: d, Size: int64(len(b))}
	}
	object := func(media string, v any) ocispec.Descriptor {
		b, err := json.Marshal(v)
		check(t, err)
		return put(media, b)
	}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, b := range tars {
		d := put(ocispec.MediaTypeImageLayer, b)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
		manifest.Layers = append(manifest.Layers, d)
	}
	manifest.Config = object(ocispec.MediaTypeImageConfig, config)
	desc := object(ocispec.MediaTypeImageManifest, manifest)
	desc.Annotations = map[string]string{ocispec.AnnotationRefName: "latest"}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc}}
	b, err := json.Marshal(index)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "index.json"), b, 0o644))
	check(t, os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
	return manifest.Layers
}
