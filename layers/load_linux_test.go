package layers

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
)

func openStore(t testing.TB) *cas.Store {
	t.Helper()
	st, err := cas.Open(t.TempDir())
	check(t, err)
	t.Cleanup(func() { st.Close() })
	return st
}

// layerOf makes a layer directory of the store.
func layerOf(t testing.TB, st *cas.Store, words string) Layer {
	t.Helper()
	d, err := newLayerDir(st)
	check(t, err)
	plant(t, filepath.Join(d, "fs"), words)
	name, err := st.CommitLayer(d, "")
	check(t, err)
	return Layer{Dir: name}
}

func TestPackAndLoad(t *testing.T) {
	needRoot(t)
	for _, c := range []Compression{{}, {"zstd", 1}, {"gzip", 0}, {"gzip", 9}, {"none", 0}} {
		t.Run(c.String(), func(t *testing.T) {
			st, other := openStore(t), openStore(t)
			l, err := Pack(t.Context(), st, layerOf(t, st, "a d/b d/l->b"), c)
			check(t, err)
			if n, ok := st.HasBlob(l.Blob.Digest); !ok || n != l.Blob.Size || l.DiffID == "" || l.Size == 0 {
				t.Fatalf("packed %+v, blob of %d bytes", l, n)
			}
			if again, err := Pack(t.Context(), st, l, Compression{"gzip", 1}); err != nil || again.Blob.Digest != l.Blob.Digest {
				t.Errorf("packed again: %+v %v", again, err)
			}
			f, err := st.Blob(l.Blob.Digest)
			check(t, err)
			defer f.Close()
			got, err := Load(t.Context(), other, l.Blob, "", iotest.OneByteReader(f), Both, Limits{})
			check(t, err)
			if got.DiffID != l.DiffID || got.Size != l.Size || got.Dir != DirName(l.DiffID) {
				t.Errorf("loaded %+v, packed %+v", got, l)
			}
			if d := diffTrees(snapshot(t, st.LayerPath(l.Dir)), snapshot(t, other.LayerPath(got.Dir))); d != "" {
				t.Error(d)
			}
			if _, ok := other.HasBlob(l.Blob.Digest); !ok {
				t.Error("the blob is not stored")
			}
			third := openStore(t)
			_, err = f.Seek(0, io.SeekStart)
			check(t, err)
			files, err := Load(t.Context(), third, l.Blob, l.DiffID, f, Files, Limits{})
			check(t, err)
			if d := diffTrees(snapshot(t, st.LayerPath(l.Dir)), snapshot(t, third.LayerPath(files.Dir))); d != "" || files.Size != l.Size {
				t.Errorf("loaded %+v as files: %s", files, d)
			}
			if _, ok := third.HasBlob(l.Blob.Digest); ok {
				t.Error("the blob is stored too")
			}
			l.Dir = ""
			unpacked, err := Unpack(t.Context(), st, l)
			check(t, err)
			if unpacked.Dir != DirName(l.DiffID) || !st.HasLayer(unpacked.Dir) {
				t.Errorf("unpacked %+v", unpacked)
			}
		})
	}
}

// TestLoadWithoutUnpacking verifies as much.
func TestLoadWithoutUnpacking(t *testing.T) {
	needRoot(t)
	st, other := openStore(t), openStore(t)
	l, err := Pack(t.Context(), st, layerOf(t, st, "a"), Compression{})
	check(t, err)
	f, err := st.Blob(l.Blob.Digest)
	check(t, err)
	defer f.Close()
	got, err := Load(t.Context(), other, l.Blob, l.DiffID, f, Bytes, Limits{})
	check(t, err)
	if got.Dir != "" || got.Size != l.Size {
		t.Errorf("loaded %+v", got)
	}
	if got, err = Unpack(t.Context(), other, got); err != nil || !other.HasLayer(got.Dir) {
		t.Errorf("unpacked %+v, %v", got, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	needRoot(t)
	plain := tarball(t, file("a"))
	bomb := tarball(t, file("a"))
	bomb = append(bomb, make([]byte, 64<<20)...)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := z.Write(plain)
	check(t, err)
	check(t, z.Close())
	zipped := packed.Bytes()
	of := func(b []byte) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(b), Size: int64(len(b))}
	}
	with := func(d ocispec.Descriptor, f func(*ocispec.Descriptor)) ocispec.Descriptor { f(&d); return d }
	garbage := append(bytes.Clone(zipped), "garbage"...)
	broken := bytes.Clone(zipped)
	broken[len(broken)/2] ^= 1
	other := digest.FromString("other")
	for _, tt := range []struct {
		name   string
		blob   ocispec.Descriptor
		diffID digest.Digest
		data   io.Reader
		lim    Limits
		want   string
	}{
		{"another digest", with(of(zipped), func(d *ocispec.Descriptor) { d.Digest = other }), "", bytes.NewReader(zipped), Limits{}, string(other)},
		{"another diff id", of(zipped), other, bytes.NewReader(zipped), Limits{}, "instead of " + string(other)},
		{"fewer bytes", of(zipped), "", bytes.NewReader(zipped[:len(zipped)-5]), Limits{}, "5 bytes too few"},
		{"more bytes", of(zipped), "", bytes.NewReader(garbage), Limits{}, "more bytes than announced"},
		{"garbage after gzip", of(garbage), "", bytes.NewReader(garbage), Limits{}, "decompress"},
		{"broken gzip", of(broken), "", bytes.NewReader(broken), Limits{}, "decompress"},
		{"a gzip that ends early", of(zipped[:len(zipped)-9]), "", bytes.NewReader(zipped[:len(zipped)-9]), Limits{}, "decompress"},
		{"a media type of something else", with(of(zipped), func(d *ocispec.Descriptor) { d.MediaType = "application/json" }), "", bytes.NewReader(zipped), Limits{}, "application/json"},
		{"too much uncompressed", of(compressed(t, bomb)), "", bytes.NewReader(compressed(t, bomb)), Limits{Bytes: 1 << 20}, "more than 1048576 bytes"},
		{"a connection that breaks", of(zipped), "", io.MultiReader(bytes.NewReader(zipped[:50]), iotest.ErrReader(errors.New("reset"))), Limits{}, "reset"},
		{"no layer", of([]byte("no tar at all")), "", strings.NewReader("no tar at all"), Limits{}, ""},
	} {
		for _, form := range []Form{Both, Files, Bytes} {
			if tt.name == "no layer" && form == Bytes {
				continue // bytes are bytes
			}
			t.Run(tt.name, func(t *testing.T) {
				st := openStore(t)
				if seeker, ok := tt.data.(io.Seeker); ok {
					_, err := seeker.Seek(0, io.SeekStart)
					check(t, err)
				} else if form != Both {
					t.Skip("the reader is used up")
				}
				_, err := Load(t.Context(), st, tt.blob, tt.diffID, tt.data, form, tt.lim)
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want one with %q", err, tt.want)
				}
				if _, ok := st.HasBlob(tt.blob.Digest); ok {
					t.Error("the blob is there")
				}
				layers, err := filepath.Glob(filepath.Join(st.Dir(), "layers", "*"))
				check(t, err)
				if len(layers) != 0 {
					t.Errorf("layers are there: %v", layers)
				}
			})
		}
	}
}

func compressed(t testing.TB, b []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	check(t, err)
	defer z.Close()
	return z.EncodeAll(b, nil)
}

// TestLoadMedia reads what registries hold, labelled well or badly.
func TestLoadMedia(t *testing.T) {
	needRoot(t)
	plain := tarball(t, file("a"))
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(plain)
	check(t, z.Close())
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'x', 'y', 'z'}, compressed(t, plain)...)
	twice := append(bytes.Clone(compressed(t, plain[:700])), compressed(t, plain[700:])...)
	for _, mediaType := range []string{
		ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		"application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
	} {
		for _, data := range [][]byte{plain, zipped.Bytes(), compressed(t, plain), skippable, twice} {
			st := openStore(t)
			blob := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
			l, err := Load(t.Context(), st, blob, digest.FromBytes(plain), bytes.NewReader(data), Both, Limits{})
			check(t, err)
			if !exists(st.LayerPath(l.Dir) + "/a") {
				t.Errorf("%s: the file is missing", mediaType)
			}
		}
	}
}

// TestLoadAgain stores the blob of a layer whose directory is there, without unpacking it.
func TestLoadAgain(t *testing.T) {
	needRoot(t)
	st := openStore(t)
	plain := tarball(t, file("a"))
	load := func(data []byte) Layer {
		blob := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(data), Size: int64(len(data))}
		l, err := Load(t.Context(), st, blob, digest.FromBytes(plain), bytes.NewReader(data), Both, Limits{})
		check(t, err)
		return l
	}
	first := load(plain)
	before, err := os.Stat(st.LayerPath(first.Dir))
	check(t, err)
	packed := compressed(t, plain)
	second := load(packed)
	if _, ok := st.HasBlob(digest.FromBytes(packed)); !ok || second.Dir != first.Dir {
		t.Errorf("loaded %+v, then %+v", first, second)
	}
	after, err := os.Stat(st.LayerPath(first.Dir))
	check(t, err)
	if !os.SameFile(before, after) {
		t.Error("the directory was made again")
	}
}
