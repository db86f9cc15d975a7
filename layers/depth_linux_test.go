package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/foreign"
)

// plantDeep makes directories of a name in each other, and files in the lowest: a file with two names, a link, a pipe and a socket.
func plantDeep(t *testing.T, dir, name string, n int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	check(t, err)
	for range n {
		check(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_CLOEXEC, 0)
		check(t, err)
		check(t, unix.Close(fd))
		fd = next
	}
	f, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	check(t, err)
	_, err = unix.Write(f, []byte("deep"))
	check(t, errors.Join(err, unix.Close(f),
		unix.Linkat(fd, "file", fd, "again", 0),
		unix.Symlinkat("file", fd, "link"),
		unix.Mknodat(fd, "pipe", unix.S_IFIFO|0o600, 0),
		unix.Mknodat(fd, "sock", unix.S_IFSOCK|0o600, 0)))
	check(t, unix.Close(fd))
}

// deepDir is a directory, in memory if there is one, that may become deeper than t.TempDir can delete.
func deepDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "obx-test-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { check(t, foreign.RemoveAll(context.Background(), dir)) })
	return dir
}

func packed(t *testing.T, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	check(t, WriteChange(t.Context(), &b, dir))
	return b.Bytes()
}

// fewDescriptors leaves room for a few more open files than there are.
func fewDescriptors(t *testing.T, more uint64) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	var was unix.Rlimit
	check(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	now := was
	now.Cur = uint64(len(entries)) + more
	check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &now))
	t.Cleanup(func() { check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was)) })
}

// TestDeepTrees has all that handles layers go through paths that are longer than the kernel takes, with few descriptors.
func TestDeepTrees(t *testing.T) {
	needRoot(t)
	for _, test := range []struct {
		name  string
		depth int
	}{{strings.Repeat("n", 255), 20}, {"d", 1000}} {
		t.Run(fmt.Sprint(test.depth), func(t *testing.T) {
			tmp := deepDir(t)
			fewDescriptors(t, 600)
			dir := mkdir(t, tmp, "dir")
			plantDeep(t, dir, test.name, test.depth)
			if empty, err := Seal(dir, mkdir(t, tmp, "lower")); err != nil || empty {
				t.Fatalf("seal: %v, %v", empty, err)
			}
			want := packed(t, dir)
			copied := tmp + "/copied"
			check(t, CopyDir(t.Context(), copied, dir))
			if !bytes.Equal(packed(t, copied), want) {
				t.Error("unpacking gave another layer")
			}
			flat := tmp + "/flat"
			check(t, flattenDirs(t.Context(), flat, []string{dir, copied}, false))
			if !bytes.Equal(packed(t, flat), want) {
				t.Error("flattening gave another layer")
			}
			tree, err := DirTree(dir)
			check(t, err)
			defer tree.Close()
			out := mkdir(t, tmp, "out")
			check(t, CopyTree(t.Context(), out, tree))
			long := strings.Repeat(test.name+"/", test.depth)
			copyOfTree, err := DirTree(out)
			check(t, err)
			defer copyOfTree.Close()
			f, err := copyOfTree.Open(long + "again")
			check(t, err)
			defer f.Close()
			if b, err := io.ReadAll(f); err != nil || string(b) != "deep" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

// TestTooDeep holds that depth has an end, and that it is told with the beginning of the path, at once.
func TestTooDeep(t *testing.T) {
	needRoot(t)
	begun := time.Now()
	tooDeep := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrTooDeep) {
			t.Errorf("%s: %.300v", what, err)
		} else if s := err.Error(); len(s) > 1000 || !strings.Contains(s, "d/d/d/d") {
			t.Errorf("%s: the message is %.1000q", what, s)
		}
	}
	tmp := deepDir(t)
	for _, test := range []struct {
		name  string
		depth int
	}{{"d", maxDepth}, {"d/" + strings.Repeat("n", 250), 0}} {
		dir := mkdir(t, tmp, fmt.Sprint(test.depth))
		if test.depth > 0 {
			plantDeep(t, dir, test.name, test.depth)
		} else {
			long := mkdir(t, dir, "d")
			for range 3 {
				long = mkdir(t, long, "d")
			}
			plantDeep(t, long, strings.Repeat("n", 250), maxPath/251+1)
		}
		_, err := Seal(dir)
		tooDeep("seal", err)
		tooDeep("pack", WriteChange(t.Context(), io.Discard, dir))
		tooDeep("flatten", flattenDirs(t.Context(), fmt.Sprint(tmp, "/flat", test.depth), []string{dir}, false))
		tree, err := DirTree(dir)
		check(t, err)
		tooDeep("write tree", WriteTree(t.Context(), io.Discard, tree))
		check(t, tree.Close())
	}
	for what, name := range map[string]string{
		"30,000 levels":        strings.Repeat("d/", 30_000),
		"one level too deep":   strings.Repeat("d/", maxDepth+1),
		"one file too deep":    strings.Repeat("d/", maxDepth) + "f",
		"a whiteout too deep":  strings.Repeat("d/", maxDepth) + ".wh.f",
		"one byte too long":    "d/d/d/d/" + strings.Repeat(strings.Repeat("n", 255)+"/", 255) + strings.Repeat("n", 257-8),
		"hundreds of kilobyte": "d/d/d/d/" + strings.Repeat(strings.Repeat("n", 200)+"/", 4000),
	} {
		kind := byte(tar.TypeReg)
		if strings.HasSuffix(name, "/") {
			kind = tar.TypeDir
		}
		tooDeep(what, ReadChange(t.Context(), tarOf(t, tar.Header{Typeflag: kind, Name: name}), fmt.Sprint(tmp, "/", len(name), kind), Limits{}))
	}
	if d := time.Since(begun); d > time.Minute {
		t.Errorf("it took %s", d)
	}
}

// TestAsDeepAsCanBe packs and unpacks the deepest trees that layers hold.
func TestAsDeepAsCanBe(t *testing.T) {
	needRoot(t)
	tmp := deepDir(t)
	for i, names := range [][]string{
		{strings.Repeat("d/", maxDepth), strings.Repeat("d/", maxDepth-1) + ".wh.f", strings.Repeat("d/", maxDepth) + opaqueMarker},
		{strings.Repeat(strings.Repeat("n", 255)+"/", 255) + strings.Repeat("n", 256-8) + "/fffffff"},
	} {
		var headers []tar.Header
		for _, name := range names {
			kind := byte(tar.TypeReg)
			if strings.HasSuffix(name, "/") {
				kind = tar.TypeDir
			}
			headers = append(headers, tar.Header{Typeflag: kind, Name: name, Mode: 0o644})
		}
		dir := fmt.Sprint(tmp, "/", i)
		check(t, ReadChange(t.Context(), tarOf(t, headers...), dir, Limits{}))
		if _, err := Seal(dir); err != nil {
			t.Errorf("%d: %.300v", i, err)
		}
		want := packed(t, dir)
		check(t, ReadChange(t.Context(), bytes.NewReader(want), dir+"again", Limits{}))
		if !bytes.Equal(packed(t, dir+"again"), want) {
			t.Errorf("%d: another layer", i)
		}
	}
}

func tarOf(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		check(t, w.WriteHeader(&h))
	}
	check(t, w.Close())
	return &b
}
