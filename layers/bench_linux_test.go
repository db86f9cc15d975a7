package layers

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas"
)

// Each benchmark runs the tool that it is measured against in turns with it, and reports the quotient of the medians
// ("x-cp", "x-tar"): the machine's mood touches both alike. They run on an ext4 made for them, because one from which
// many files were deleted creates files several times slower.

// freshFS gives directories on an ext4 that was just made. Mount and loop device go with their descriptors.
func freshFS(b *testing.B, size int64) string {
	b.Helper()
	needRoot(b)
	image := filepath.Join(b.TempDir(), "image")
	check(b, os.WriteFile(image, nil, 0o600))
	check(b, os.Truncate(image, size))
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image).CombinedOutput(); err != nil {
		b.Skipf("requires mkfs.ext4: %v: %s", err, out)
	}
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	check(b, err)
	defer file.Close()
	loop := attachLoop(b, file)
	defer loop.Close()
	fsfd, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	check(b, err)
	defer unix.Close(fsfd)
	check(b, unix.FsconfigSetString(fsfd, "source", loop.Name()))
	check(b, unix.FsconfigCreate(fsfd))
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	check(b, err)
	b.Cleanup(func() { unix.Close(fd) })
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd) // for other processes too
}

func attachLoop(b *testing.B, file *os.File) *os.File {
	b.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		b.Skip("requires loop devices: ", err)
	}
	defer control.Close()
	for range 100 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		check(b, err)
		loop, err := os.OpenFile(fmt.Sprint("/dev/loop", n), os.O_RDWR, 0)
		check(b, err)
		config := unix.LoopConfig{Fd: uint32(file.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
		if err := unix.IoctlLoopConfigure(int(loop.Fd()), &config); err == nil {
			return loop
		}
		loop.Close() // another was faster
	}
	b.Fatal("no free loop device")
	return nil
}

// against runs ours and theirs in turns and reports the medians' quotient. Each gets a number of its own.
func against(b *testing.B, tool string, ours, theirs func(n int)) {
	b.Helper()
	var a, c []time.Duration
	n := 0
	for b.Loop() {
		start := time.Now()
		ours(n)
		a = append(a, time.Since(start))
		b.StopTimer()
		start = time.Now()
		theirs(n)
		c = append(c, time.Since(start))
		b.StartTimer()
		n++
	}
	slices.Sort(a)
	slices.Sort(c)
	floor := c[len(c)/2]
	b.ReportMetric(float64(floor.Milliseconds()), tool+"-ms")
	b.ReportMetric(float64(a[len(a)/2].Milliseconds()), "ours-ms")
	b.ReportMetric(float64(a[len(a)/2])/float64(floor), "x-"+tool)
}

func command(b *testing.B, stdin io.Reader, name string, arg ...string) {
	b.Helper()
	cmd := exec.Command(name, arg...)
	cmd.Stdin = stdin
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%s: %v: %s", name, err, out)
	}
}

// manyFiles makes folders of 100 files each.
func manyFiles(b *testing.B, dir string, files, size int) {
	b.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, size)
	for i := range files {
		folder := fmt.Sprintf("%s/d%03d", dir, i/100)
		if i%100 == 0 {
			check(b, os.MkdirAll(folder, 0o755))
		}
		for j := range data {
			data[j] = "0123456789abcdef"[r.IntN(16)]
		}
		check(b, os.WriteFile(fmt.Sprintf("%s/f%05d.txt", folder, i), data, 0o644))
	}
}

// items hashes a directory as package keys does.
func items(t testing.TB, fsys Tree, src, name string) Item {
	t.Helper()
	fi, err := fsys.Lstat(src)
	check(t, err)
	it := Item{Src: src, Name: name, Mode: fi.Mode().Type(), Exec: fi.Mode()&0o111 != 0}
	switch {
	case fi.IsDir():
		entries, err := fsys.ReadDir(src)
		check(t, err)
		for _, e := range entries {
			it.Children = append(it.Children, items(t, fsys, filepath.Join(src, e.Name()), e.Name()))
		}
	case fi.Mode().IsRegular():
		f, err := fsys.Open(src)
		check(t, err)
		defer f.Close()
		it.Digest, err = digest.FromReader(f)
		check(t, err)
	default:
		it.Link, err = fsys.ReadLink(src)
		check(t, err)
	}
	return it
}

func BenchmarkCopy10k(b *testing.B) {
	dir := freshFS(b, 8<<30)
	src, parent := mkdir(b, dir, "src"), mkdir(b, dir, "parent")
	manyFiles(b, src, 10_000, 2000)
	from, err := DirTree(src)
	check(b, err)
	defer from.Close()
	to, err := DirTree(parent)
	check(b, err)
	defer to.Close()
	it := items(b, from, ".", "")
	c := Copy{From: from, Parent: to, Dst: "/src/", Items: []Item{it}}
	against(b, "cp", func(n int) {
		check(b, makeCopy(context.Background(), mkdir(b, dir, fmt.Sprint("ours", n)), c))
	}, func(n int) {
		command(b, nil, "cp", "-a", src, filepath.Join(dir, fmt.Sprint("cp", n)))
	})
}

// image is a tar much like that of a distribution with a compiler: mostly small files, most bytes in large ones.
func image(b *testing.B, dir string) []byte {
	b.Helper()
	root := mkdir(b, dir, "image")
	manyFiles(b, root, 12_000, 6000)
	r := rand.NewChaCha8([32]byte{})
	for i := range 40 {
		data := make([]byte, 8<<20)
		r.Read(data[:4<<20])
		check(b, os.WriteFile(fmt.Sprint(root, "/large", i), data, 0o755))
	}
	var buf bytes.Buffer
	check(b, WriteChange(context.Background(), &buf, root))
	return buf.Bytes()
}

func BenchmarkUnpack(b *testing.B) {
	dir := freshFS(b, 16<<30)
	data := image(b, dir)
	b.SetBytes(int64(len(data)))
	against(b, "tar", func(n int) {
		check(b, untar(context.Background(), bytes.NewReader(data), mkdir(b, dir, fmt.Sprint("ours", n)), untarOptions{}))
	}, func(n int) {
		command(b, bytes.NewReader(data), "tar", "xf", "-", "-C", mkdir(b, dir, fmt.Sprint("tar", n)))
	})
}

func BenchmarkPack(b *testing.B) {
	dir := freshFS(b, 4<<30)
	image(b, dir)
	root := filepath.Join(dir, "image")
	for _, tc := range []struct {
		Compression
		theirs []string
	}{
		{Compression{}, []string{"zstd", "-q", "-3"}},
		{Compression{Level: 1}, []string{"zstd", "-q", "-1"}},
		{Compression{Algorithm: "gzip"}, []string{"pigz"}},
		{Compression{Algorithm: "none"}, []string{"cat"}},
	} {
		b.Run(tc.String(), func(b *testing.B) {
			if _, err := exec.LookPath(tc.theirs[0]); err != nil {
				tc.theirs = []string{"gzip"}
			}
			shell := fmt.Sprintf("tar cf - -C %s . | %s > /dev/null", root, joinWords(tc.theirs))
			against(b, "tar", func(int) {
				_, _, err := pack(context.Background(), io.Discard, tc.Compression, func(ctx context.Context, w io.Writer) error { return WriteChange(ctx, w, root) })
				check(b, err)
			}, func(int) {
				command(b, nil, "sh", "-c", shell)
			})
		})
	}
}

func joinWords(words []string) string {
	var b bytes.Buffer
	for _, w := range words {
		b.WriteString(w + " ")
	}
	return b.String()
}

// BenchmarkSeal is what freezing a step with 10,000 new files waits for.
func BenchmarkSeal(b *testing.B) {
	dir := freshFS(b, 1<<30)
	manyFiles(b, dir, 10_000, 10)
	for b.Loop() {
		_, err := Seal(dir)
		check(b, err)
	}
}

// BenchmarkLoad unpacks a compressed image while it is stored and hashed. Storing is durable, so the floor's is too.
func BenchmarkLoad(b *testing.B) {
	dir := freshFS(b, 16<<30)
	image(b, dir)
	for _, c := range []Compression{{}, {Algorithm: "gzip"}} {
		b.Run(c.String(), func(b *testing.B) {
			var packed bytes.Buffer
			diffID, size, err := pack(context.Background(), &packed, c, func(ctx context.Context, w io.Writer) error {
				return WriteChange(ctx, w, filepath.Join(dir, "image"))
			})
			check(b, err)
			blob := ocispec.Descriptor{MediaType: c.mediaType(), Digest: digest.FromBytes(packed.Bytes()), Size: int64(packed.Len())}
			b.SetBytes(size)
			against(b, "tar", func(n int) {
				st, err := cas.Open(mkdir(b, dir, c.String(), fmt.Sprint("store", n)))
				check(b, err)
				_, err = Load(context.Background(), st, blob, diffID, bytes.NewReader(packed.Bytes()), Both, Limits{})
				check(b, err)
				check(b, st.Close())
			}, func(n int) {
				out := mkdir(b, dir, c.String(), fmt.Sprint("tar", n))
				shell := fmt.Sprintf("tee %s.blob | tar --extract --file=- --%s -C %[1]s && sync %[1]s.blob", out, cmp.Or(c.Algorithm, "zstd"))
				command(b, bytes.NewReader(packed.Bytes()), "sh", "-c", shell)
			})
		})
	}
}
