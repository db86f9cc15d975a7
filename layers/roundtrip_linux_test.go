package layers

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// An op changes files below a root. It may fail: then it is as if it were not there.
type op struct {
	text string
	do   func(root string)
}

var opNames = []string{"a", "b", "c", "d", "with space", "new\nline", "bad\xff\xfeutf8", "ü", strings.Repeat("long", 60), "..dots", ".hidden", "-dash"}

type generator struct{ *rand.Rand }

func (g generator) path() string {
	var p []string
	for range 1 + g.IntN(3) {
		n := 4
		if g.IntN(4) == 0 {
			n = len(opNames)
		}
		p = append(p, opNames[g.IntN(n)])
	}
	return strings.Join(p, "/")
}

func (g generator) id() int {
	return []int{0, 1, 1000, 65534, 70000, 3_000_000_000}[g.IntN(6)]
}

func (g generator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.Uint32())
	}
	return b
}

// acl is a POSIX ACL as the kernel takes it, for user 1000 beside the three of the mode.
func acl() []byte {
	b := []byte{2, 0, 0, 0}
	for _, e := range [][3]uint32{{1, 6, ^uint32(0)}, {2, 7, 1000}, {4, 4, ^uint32(0)}, {16, 5, ^uint32(0)}, {32, 0, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

// netBindCap is the file capability cap_net_bind_service+ep.
func netBindCap() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	b = binary.LittleEndian.AppendUint32(b, 1<<10)
	return append(b, make([]byte, 12)...)
}

// writeFile does not wait for a pipe's reader.
func writeFile(path string, data []byte) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	f.Write(data)
}

// removeAll is os.RemoveAll, which opens a path's directory before it looks whether it is one, and waits if it is a pipe.
func removeAll(path string) {
	if fi, err := os.Stat(filepath.Dir(path)); err == nil && fi.IsDir() {
		os.RemoveAll(path)
	}
}

func (g generator) op() op {
	p, q := g.path(), g.path()
	mk := func(format string, args []any, do func(root string)) op {
		return op{fmt.Sprintf(format, args...), do}
	}
	one := func(name string, do func(p string)) op {
		return mk(name+" %q", []any{p}, func(root string) { do(root + "/" + p) })
	}
	two := func(name string, do func(p, q string)) op {
		return mk(name+" %q %q", []any{p, q}, func(root string) { do(root+"/"+p, root+"/"+q) })
	}
	switch g.IntN(28) {
	case 0, 1, 2:
		return one("mkdir", func(p string) { os.Mkdir(p, 0o755) })
	case 3, 4:
		data := g.bytes(g.IntN(300))
		return one(fmt.Sprintf("write %d", len(data)), func(p string) { writeFile(p, data) })
	case 5:
		data := g.bytes(8)
		return one("append", func(p string) {
			if f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0); err == nil {
				f.Write(data)
				f.Close()
			}
		})
	case 6:
		n := int64(g.IntN(500))
		return one(fmt.Sprintf("truncate %d", n), func(p string) { os.Truncate(p, n) })
	case 7:
		at := int64(g.IntN(3 << 20))
		return one(fmt.Sprintf("sparse at %d", at), func(p string) {
			if f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0o600); err == nil {
				f.WriteAt([]byte("data"), at)
				f.Truncate(at + 5000)
				f.Close()
			}
		})
	case 8, 9:
		mode := uint32([]int{0, 0o755, 0o644, 0o4755, 0o2755, 0o1777, 0o7777, 0o400}[g.IntN(8)])
		return one(fmt.Sprintf("chmod %o", mode), func(p string) { unix.Fchmodat(unix.AT_FDCWD, p, mode, 0) })
	case 10:
		u, v := g.id(), g.id()
		return one(fmt.Sprintf("chown %d:%d", u, v), func(p string) { os.Lchown(p, u, v) })
	case 11:
		sec, nsec := int64(g.IntN(3_000_000_000))-1_000_000_000, int64(g.IntN(1e9))
		return one(fmt.Sprintf("touch %d.%09d", sec, nsec), func(p string) {
			unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{}, {Sec: sec, Nsec: nsec}}, unix.AT_SYMLINK_NOFOLLOW)
		})
	case 12, 13:
		return two("link", func(p, q string) { os.Link(p, q) })
	case 14:
		target := g.path()
		if g.IntN(2) == 0 {
			target = "/nonexistent/" + target // never a file of the host
		}
		return one(fmt.Sprintf("symlink to %q", target), func(p string) { os.Symlink(target, p) })
	case 15, 16, 17:
		return two("rename", func(p, q string) { os.Rename(p, q) })
	case 18:
		return two("exchange", func(p, q string) { unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, q, unix.RENAME_EXCHANGE) })
	case 19:
		return one("unlink", func(p string) { unix.Unlink(p) })
	case 20:
		return one("rmdir", func(p string) { unix.Rmdir(p) })
	case 21:
		return one("rm -r", func(p string) { removeAll(p) })
	case 22:
		return one("rm -r and mkdir", func(p string) { removeAll(p); os.Mkdir(p, 0o711) })
	case 23:
		return one("rm -r and write", func(p string) { removeAll(p); writeFile(p, []byte("was a directory?")) })
	case 24:
		kind := []uint32{unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK}[g.IntN(4)]
		dev := unix.Mkdev(512+uint32(g.IntN(3584)), uint32(g.IntN(1<<20))) // majors that no driver has
		return one(fmt.Sprintf("mknod %o %x", kind, dev), func(p string) { unix.Mknod(p, kind|0o644, int(dev)) })
	case 25:
		key := []string{"user.x", "user.a=b%", "trusted.t", "user.empty", "trusted.ü \n"}[g.IntN(5)]
		value := g.bytes(g.IntN(40))
		if key == "user.empty" {
			value = nil
		}
		return one(fmt.Sprintf("setxattr %q %q", key, value), func(p string) { unix.Lsetxattr(p, key, value, 0) })
	case 26:
		key := []string{"system.posix_acl_access", "system.posix_acl_default"}[g.IntN(2)]
		return one("setfacl "+key, func(p string) { unix.Lsetxattr(p, key, acl(), 0) })
	default:
		return one("setcap", func(p string) { unix.Lsetxattr(p, "security.capability", netBindCap(), 0) })
	}
}

func (g generator) ops(n int) []op {
	ops := make([]op, n)
	for i := range ops {
		ops[i] = g.op()
	}
	return ops
}

// scenario is a base layer and two steps on it.
type scenario [3][]op

func (s scenario) String() string {
	var b strings.Builder
	for i, ops := range s {
		fmt.Fprintf(&b, "layer %d:\n", i)
		for _, o := range ops {
			fmt.Fprintf(&b, "  %s\n", o.text)
		}
	}
	return b.String()
}

// FuzzRoundTrip holds the law that what a step leaves and what its unpacked bytes show are the same file system. A
// test runs a hundred scenarios; -fuzz=RoundTrip runs on.
func FuzzRoundTrip(f *testing.F) {
	needRoot(f)
	tmp := scratch(f)
	for seed := range uint64(100) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		g := generator{rand.New(rand.NewPCG(seed, 1))}
		s := scenario{g.ops(40), g.ops(30), g.ops(20)}
		if bad := s.run(t, tmp); bad != "" {
			s, bad = s.shrink(t, tmp, bad)
			t.Fatalf("made smaller:\n%s%s", s, bad)
		}
	})
}

// TestRoundTripOnDisk plays a few on the file system that holds temporary files, which may not be one in memory.
func TestRoundTripOnDisk(t *testing.T) {
	needRoot(t)
	for seed := range uint64(5) {
		g := generator{rand.New(rand.NewPCG(seed, 2))}
		s := scenario{g.ops(40), g.ops(30), g.ops(20)}
		if bad := s.run(t, t.TempDir()); bad != "" {
			t.Errorf("%s%s", s, bad)
		}
	}
}

// shrink leaves out what does not matter.
func (s scenario) shrink(t *testing.T, tmp, bad string) (scenario, string) {
	for again := true; again; {
		again = false
		for i := range s {
			for j := 0; j < len(s[i]); j++ {
				less := s
				less[i] = slices.Delete(slices.Clone(s[i]), j, j+1)
				if b := less.run(t, tmp); b != "" {
					s, bad, again = less, b, true
					j--
				}
			}
		}
	}
	return s, bad
}

// run plays a scenario and says what broke the law.
func (s scenario) run(t *testing.T, tmp string) string {
	dir, err := os.MkdirTemp(tmp, "run")
	check(t, err)
	defer os.RemoveAll(dir)
	base := mkdir(t, dir, "base")
	for _, o := range s[0] {
		o.do(base)
	}
	if _, err := Seal(base); err != nil {
		return err.Error()
	}
	chain, unpacked := []string{base}, []string{base}
	for i, ops := range s[1:] {
		step := mkdir(t, dir, fmt.Sprint("step", i))
		upper, work := filepath.Join(step, "upper"), mkdir(t, step, "work")
		check(t, MakeUpper(upper, chain[len(chain)-1]))
		m, unmount := mountOverlay(t, upper, work, append([]string(nil), chain...)...)
		for _, o := range ops {
			o.do(m)
		}
		live := snapshot(t, m)
		unmount()
		if _, err := Seal(upper, chain...); err != nil {
			return err.Error()
		}
		chain = append(chain, upper)

		var packed, again bytes.Buffer
		check(t, WriteChange(context.Background(), &packed, upper))
		out := mkdir(t, step, "unpacked")
		if err := untar(context.Background(), bytes.NewReader(packed.Bytes()), out, untarOptions{}); err != nil {
			return err.Error()
		}
		unpacked = append(unpacked, out)
		next := merged(t, chain...)
		if d := diffTrees(live, next); d != "" {
			return fmt.Sprintf("step %d: the step and the next one see:\n%s", i, d)
		}
		if d := diffTrees(next, merged(t, unpacked...)); d != "" {
			return fmt.Sprintf("step %d: the next step and one on unpacked layers see:\n%s", i, d)
		}
		check(t, WriteChange(context.Background(), &again, out))
		if !bytes.Equal(packed.Bytes(), again.Bytes()) {
			return fmt.Sprintf("step %d: the unpacked layer packs into other bytes", i)
		}
	}
	want := merged(t, chain...)
	for _, c := range [][]string{chain, unpacked} {
		flat := filepath.Join(dir, "flat")
		check(t, flattenDirs(context.Background(), flat, c[1:], false))
		if d := diffTrees(want, merged(t, base, flat)); d != "" {
			return fmt.Sprintf("the layers and the flattened layers show:\n%s", d)
		}
		check(t, os.RemoveAll(flat))
		check(t, FlattenBaseDirs(context.Background(), flat, c))
		if d := diffTrees(want, snapshot(t, flat)); d != "" {
			return fmt.Sprintf("all layers and all flattened show:\n%s", d)
		}
		check(t, os.RemoveAll(flat))
	}
	return ""
}
