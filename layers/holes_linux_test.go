package layers

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
)

// sparseFile makes a file of so many bytes that has data at some offsets alone.
func sparseFile(t testing.TB, path string, size int64, data ...int64) {
	t.Helper()
	f, err := os.Create(path)
	check(t, err)
	defer f.Close()
	check(t, f.Truncate(size))
	for _, at := range data {
		_, err := f.WriteAt([]byte("data"), at)
		check(t, err)
	}
}

// needHoles skips where the file system cannot have the largest file of a test.
func needHoles(t testing.TB, dir string) {
	t.Helper()
	if err := os.Truncate(dir+"/big", 1<<40); err != nil {
		t.Skip("files of 1 TiB: ", err)
	}
}

// A step that makes a file of 1 TiB with nothing in it costs nobody the time to write, hash or copy its zeros, and the error names the file.
func TestHolesHaveABound(t *testing.T) {
	needRoot(t)
	tmp := scratch(t)
	in := mkdir(t, tmp, "in")
	sparseFile(t, in+"/big", 4096, 0)
	needHoles(t, in)
	tree := openTree(t, in)
	st := openStore(t)
	for name, do := range map[string]func() error{
		"pack": func() error {
			_, _, err := pack(t.Context(), io.Discard, Compression{}, func(ctx context.Context, w io.Writer) error { return WriteChange(ctx, w, in) })
			return err
		},
		"write":        func() error { return WriteTree(t.Context(), io.Discard, tree) },
		"copy a tree":  func() error { return CopyTree(t.Context(), mkdir(t, tmp, "tree"), tree) },
		"copy a layer": func() error { return CopyDir(t.Context(), tmp+"/copy", in) },
		"open to hash": func() error { _, err := tree.Open("big"); return err },
		"copy in a step": func() error {
			_, err := MakeCopy(t.Context(), st, Copy{From: tree, Parent: tree, Dst: "/x", Items: []Item{{Src: "big", Name: "big"}}})
			return err
		},
	} {
		began := time.Now()
		err := do()
		if err == nil || !strings.Contains(err.Error(), "big") || !strings.Contains(err.Error(), "at most 64 GiB of holes are written as zeros, and this makes 1024") {
			t.Errorf("%s: %v", name, err)
		}
		if d := time.Since(began); d > 10*time.Second {
			t.Errorf("%s took %v", name, d)
		}
	}
	t.Run("many files", func(t *testing.T) {
		in := mkdir(t, tmp, "many")
		sparseFile(t, in+"/a", 1<<20, 0)
		w := newTarWriter(io.Discard)
		w.holes = maxHoles
		at, err := foreign.NewCursor(in, 0)
		check(t, err)
		defer at.Close()
		c := changeWriter{tarWriter: w, ctx: t.Context(), at: at}
		if err := c.dir(); err == nil || !strings.Contains(err.Error(), "a: it is sparse") {
			t.Errorf("got %v", err)
		}
	})
}

// What is copied on this machine keeps its holes, and nothing but them.
func TestHolesStay(t *testing.T) {
	needRoot(t)
	const mib = 1 << 20
	for name, data := range map[string][]int64{
		"one hole":           nil,
		"data at both ends":  {0, 64*mib - 4},
		"data in the middle": {20 * mib},
		"many extents":       {0, 8 * mib, 16*mib - 2, 24 * mib, 40*mib + 1},
	} {
		t.Run(name, func(t *testing.T) {
			tmp := scratch(t)
			in, out := mkdir(t, tmp, "in"), mkdir(t, tmp, "out")
			sparseFile(t, in+"/f", 64*mib, data...)
			same := func(path string) {
				t.Helper()
				var st unix.Stat_t
				check(t, unix.Stat(path, &st))
				if st.Blocks*512 > 8*mib {
					t.Errorf("%s takes %d KiB", path, st.Blocks/2)
				}
				want, err := os.ReadFile(in + "/f")
				check(t, err)
				got, err := os.ReadFile(path)
				check(t, err)
				if !bytes.Equal(got, want) {
					t.Errorf("%s has other bytes", path)
				}
			}
			fd, err := openRoot(in)
			check(t, err)
			defer unix.Close(fd)
			to, err := openRoot(out)
			check(t, err)
			defer unix.Close(to)
			check(t, duplicateFile(fd, "f", to, "f", 64*mib))
			same(out + "/f")

			check(t, CopyDir(t.Context(), tmp+"/copy", in))
			same(tmp + "/copy/f")
			check(t, CopyTree(t.Context(), mkdir(t, tmp, "tree"), openTree(t, in)))
			same(tmp + "/tree/f")

			m := copier{dirWriter: &dirWriter{ctx: t.Context()}}
			m.noClone.Store(true)
			src, err := os.Open(in + "/f")
			check(t, err)
			defer src.Close()
			dst, err := create(to, "step")
			check(t, err)
			defer unix.Close(dst)
			sum, err := m.content(dst, src, 64*mib)
			check(t, err)
			same(out + "/step")
			if want := digestOf(t, in+"/f"); sum != want {
				t.Errorf("it is hashed as %s, want %s", sum, want)
			}
		})
	}
}

// A tar's own holes stay holes, and a few bytes cannot unpack to much work.
func TestUnpackSparse(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip(err)
	}
	for _, form := range [][]string{
		{"--format=gnu"},
		{"--format=pax", "--sparse-version=0.0"},
		{"--format=pax", "--sparse-version=0.1"},
		{"--format=pax", "--sparse-version=1.0"},
	} {
		t.Run(strings.Join(form, " "), func(t *testing.T) {
			tmp := t.TempDir()
			archive := func(size int64) *os.File {
				sparseFile(t, tmp+"/big", size, 5<<20)
				file := filepath.Join(tmp, "x.tar")
				out, err := exec.Command("tar", append(form, "-S", "-C", tmp, "-cf", file, "big")...).CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				f, err := os.Open(file)
				check(t, err)
				t.Cleanup(func() { f.Close() })
				return f
			}
			check(t, untar(t.Context(), archive(100<<20), mkdir(t, tmp, "out"), untarOptions{}))
			var st unix.Stat_t
			check(t, unix.Stat(tmp+"/out/big", &st))
			if st.Size != 100<<20 || st.Blocks*512 > 2<<20 {
				t.Errorf("%d bytes in %d blocks", st.Size, st.Blocks)
			}
			began := time.Now()
			err := untar(t.Context(), archive(1<<40), mkdir(t, tmp, "refused"), untarOptions{})
			if err == nil || !strings.Contains(err.Error(), "more content than allowed") || time.Since(began) > 5*time.Second {
				t.Errorf("got %v after %v", err, time.Since(began))
			}
		})
	}
}

func digestOf(t testing.TB, path string) digest.Digest {
	t.Helper()
	f, err := os.Open(path)
	check(t, err)
	defer f.Close()
	d, err := digest.FromReader(f)
	check(t, err)
	return d
}
