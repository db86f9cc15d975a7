package conformance

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// mountTests are about secrets, caches, and what mounting leaves behind.
func mountTests() []executorTest {
	return []executorTest{
		{"MountPoints", testMountPoints},
		{"MountPointLinks", testMountPointLinks},
		{"Secrets", testSecrets},
		{"SecretsNeverOnDisk", testSecretsNeverOnDisk},
		{"CacheKeepsChanges", testCacheKeepsChanges},
		{"CacheOwner", testCacheOwner},
		{"CacheHides", testCacheHides},
		{"CacheFirstWins", testCacheFirstWins},
		{"CacheShared", testCacheShared},
		{"CacheLocked", testCacheLocked},
		{"CacheNames", testCacheNames},
		{"CacheGenerations", testCacheGenerations},
		{"MountsInsideCaches", testMountsInsideCaches},
		{"CacheSharedPoints", testCacheSharedPoints},
		{"CachesHidden", testCachesHidden},
		{"SystemLinks", testSystemLinks},
		{"SystemTargets", testSystemTargets},
		{"CacheLinks", testCacheLinks},
		{"DirectoryInProc", testDirectoryInProc},
	}
}

// bareBusybox is a root file system of busybox alone: nothing is there to be mounted on, and all times are at.
func bareBusybox(t testing.TB, st *cas.Store, at time.Time, more ...tar.Header) layers.Layer {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("%v (apt-get install busybox-static)", err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	entries := append([]tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o711, Uid: 3, Gid: 4},
		{Name: "bin/", Typeflag: tar.TypeDir},
		{Name: "bin/busybox", Linkname: string(program), Mode: 0o755},
	}, more...)
	for _, applet := range []string{"sh", "cat", "true", "ls", "stat", "mkdir", "touch", "rm", "chmod"} {
		entries = append(entries, tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777})
	}
	for i := range entries {
		entries[i].ModTime = at
	}
	return loadTar(t, st, entries...)
}

func secret(target, value string) executor.Mount {
	return executor.Mount{Target: target, Secret: &executor.Secret{Data: []byte(value)}}
}

func (b *rig) cache(target, name, sharing string) executor.Mount {
	return executor.Mount{Target: target, Cache: &executor.Cache{Domain: b.domain, Name: name, Sharing: sharing}}
}

func with(p executor.Process, mounts ...executor.Mount) executor.Process {
	p.Mounts = mounts
	return p
}

func testMountPoints(t *testing.T, b *rig) {
	at := time.Date(2001, 2, 3, 4, 5, 6, 123456789, time.UTC)
	r := b.open(t, bareBusybox(t, b.st, at, tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o750}, tar.Header{Name: "srv/a/", Typeflag: tar.TypeDir}))
	mounts := []executor.Mount{
		secret("/run/secrets/one", "1"), secret("/etc/two", "2"), b.cache("/var/cache/three", "three", ""), b.cache("/srv/a/four", "four", ""),
	}
	p := with(script("cat /run/secrets/one /etc/two; touch /var/cache/three/f /srv/a/four/f"), mounts...)
	p.Network = executor.NetworkHost
	wantOutput(t, r, p, "12")
	if l := Freeze(t, r); !l.IsZero() {
		t.Errorf("the layer has %q", contents(t, b.st, l))
	}
	tree := files(t, r)
	for _, name := range []string{".", "etc", "srv/a"} {
		if info, err := tree.Lstat(name); err != nil || !info.ModTime().Equal(at) {
			t.Errorf("%s: %v, %v", name, info.ModTime(), err)
		}
	}
	for _, name := range []string{"run", "proc", "dev", "sys", "var", "etc/hosts", "etc/resolv.conf", "etc/two", "srv/a/four"} {
		if _, err := tree.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What the process makes beside a mount point stays, with the directories on the way; so does a changed directory.
	p.Argv[2] = "touch /run/x /etc/y; chmod 700 /var"
	run(t, r, p)
	wantContents(t, b.st, Freeze(t, r), "etc", "etc/y", "run", "run/x", "var")
	// Times as the process sees them.
	wantOutput(t, r, with(script("stat -c %Y / /srv /srv/a"), mounts...), strings.Repeat("981173106\n", 1)+statTimes(t, r, "srv", "srv/a"))
}

func statTimes(t *testing.T, r executor.Root, names ...string) string {
	t.Helper()
	// Asked without mounts that need a mount point there.
	p := script("stat -c %Y " + "/" + strings.Join(names, " /"))
	return run(t, r, p)
}

func testMountPointLinks(t *testing.T, b *rig) {
	link := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}
	}
	r := b.open(t, b.base, loadTar(t, b.st,
		link("var/run", "/run"), link("abs", "/real"), link("up", "../../../../../real"), link("etc/hosts", "/real/hosts"),
		tar.Header{Name: "real/", Typeflag: tar.TypeDir}, link("dangling", "not/there"), link("loop", "loop"),
	))
	outside := t.TempDir()
	wantOutput(t, r, with(script("cat /run/s /real/a /real/b/c /real/hosts /not/there"), secret("/var/run/s", "1"),
		secret("/abs/a", "2"), secret("/up/b/c", "3"), secret("/dangling", "5")),
		"123127.0.0.1 localhost builder5")
	if l := Freeze(t, r); !l.IsZero() {
		t.Errorf("the layer has %q", contents(t, b.st, l))
	}
	// A target in a directory outside: it is made inside.
	wantOutput(t, r, with(script("cat "+outside+"/x"), secret(outside+"/x", "in")), "in")
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside of the root there is %v, %v", entries, err)
	}
	for _, target := range []string{"/loop/x", "/", "relative", "/proc/../.."} {
		var bad *executor.StartError
		if _, err := try(t, r, with(script("true"), secret(target, "x"))); !errors.As(err, &bad) {
			t.Errorf("a secret on %s: %v", target, err)
		}
	}
}

func testSecrets(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	step(t, r, "mkdir /d; echo mine > /d/file; chmod 600 /d/file")
	custom := secret("/d/custom", "custom")
	custom.Secret.Mode = 0o400
	binary := "a\x00b\xff\n\n"
	p := with(script("cat /s; cat /d/file; stat -c '%a %u:%g' /s /d/custom; cat /d/binary"), secret("/s", "no newline"),
		secret("/d/file", "hidden"), custom, secret("/d/binary", binary))
	wantOutput(t, r, p, "no newlinehidden644 0:0\n400 0:0\n"+binary)
	for _, s := range []string{"echo x > /s", "rm /s", "chmod 777 /s", "echo x >> /d/file"} {
		p.Argv[2] = s
		if out, err := try(t, r, p); err == nil {
			t.Errorf("%s succeeds: %s", s, out)
		}
	}
	p.Argv[2], p.UID = "cat /s; cat /d/custom", 1000
	out, err := try(t, r, p)
	wantExit(t, err, executor.ExitError{Reason: executor.Exited, Code: 1})
	if !strings.HasPrefix(out, "no newline") {
		t.Errorf("a user reads %q", out)
	}
	if l := Freeze(t, r); !l.IsZero() {
		t.Errorf("the layer has %q", contents(t, b.st, l))
	}
	wantFile(t, r, "d/file", "mine\n")
	big := strings.Repeat("0123456789", 100_000)
	wantOutput(t, r, with(script("cat /s"), secret("/s", big)), big)
}

func testSecretsNeverOnDisk(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	const value = "a value that occurs nowhere else"
	done := make(chan error)
	ctx := t.Context()
	go func() {
		done <- r.Run(ctx, with(script("sleep 1; wc -c < /run/secrets/s"), secret("/run/secrets/s", value)), io.Discard)
	}()
	find := func(when string) {
		t.Helper()
		err := filepath.WalkDir(b.st.Dir(), func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil // comes and goes
			}
			if contains(name, value) {
				t.Errorf("%s: the secret is in %s", when, name)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	time.Sleep(500 * time.Millisecond)
	find("while the step runs")
	if err := <-done; err != nil {
		t.Error(err)
	}
	find("after it")
}

// contains reports whether a file has a text. It does not read holes: disks of machines are mostly that.
func contains(name, text string) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	const seekData = 3
	var before []byte
	buf := make([]byte, 1<<20)
	for at := int64(0); ; {
		if at%(16<<20) == 0 {
			data, err := f.Seek(at, seekData)
			if err != nil {
				return false // the rest is a hole
			}
			if data = data / int64(len(buf)) * int64(len(buf)); data > at {
				at, before = data, nil
			}
		}
		n, err := f.ReadAt(buf, at)
		before = append(before, buf[:n]...)
		if bytes.Contains(before, []byte(text)) {
			return true
		}
		if err != nil {
			return false
		}
		before = append([]byte(nil), before[max(0, len(before)-len(text)):]...)
		at += int64(n)
	}
}

func testCacheKeepsChanges(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	c := b.cache("/c", "things", "")
	wantOutput(t, r, with(script("ls /c; echo one > /c/a; mkdir /c/d; echo x > /c/d/x"), c), "")
	wantOutput(t, r, with(script("cat /c/a; echo two > /c/b; rm /c/a; rm -r /c/d; mkdir /c/d"), c), "one\n")
	// A failed step keeps what it wrote.
	_, err := try(t, r, with(script("ls /c /c/d; echo three > /c/c; exit 3"), c))
	wantExit(t, err, executor.ExitError{Reason: executor.Exited, Code: 3})
	wantOutput(t, r, with(script("ls -A /c /c/d; cat /c/c"), c), "/c:\nb\nc\nd\n\n/c/d:\nthree\n")
	// A cancelled one does not.
	p := with(script("echo x > /c/cancelled; sleep 60"), c)
	p.Limits.Timeout = 0
	if l := Freeze(t, r); !l.IsZero() {
		t.Errorf("the layer has %q", contents(t, b.st, l))
	}
	// Other names and domains are other caches.
	other := b.cache("/c", "things", "")
	other.Cache.Domain = "other"
	wantOutput(t, r, with(script("ls /c /e"), other, b.cache("/e", "more", "")), "/c:\n\n/e:\n")
	// The same cache twice in one step: two views of the same generation.
	wantOutput(t, r, with(script("cat /c/b /e/b"), c, b.cache("/e", "things", "")), "two\ntwo\n")
}

func testCacheOwner(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	for _, sharing := range []string{"", "shared"} {
		c := b.cache("/c", "things", sharing)
		p := with(script("stat -c '%u:%g %a' /c; touch /c/f; grep ' /c ' /proc/mounts | grep nosuid | grep -c nodev"), c)
		p.UID, p.GID = 1000, 1001
		wantOutput(t, r, p, "1000:1001 755\n1\n")
		p.UID, p.GID = 2000, 2001
		p.Argv[2] = "stat -c %u:%g /c /c/f"
		wantOutput(t, r, p, "2000:2001\n1000:1001\n")
	}
}

func testCacheHides(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	step(t, r, "mkdir /c; echo mine > /c/f")
	wantOutput(t, r, with(script("ls /c; echo x > /c/g"), b.cache("/c", "things", "")), "")
	if l := Freeze(t, r); !l.IsZero() {
		t.Errorf("the layer has %q", contents(t, b.st, l))
	}
	wantOutput(t, r, script("cat /c/f; ls /c"), "mine\nf\n")
}

func testCacheFirstWins(t *testing.T, b *rig) {
	c := b.cache("/c", "things", "")
	// Both begin with the same generation, and end one after the other.
	type user struct {
		begun chan struct{}
		end   *os.File
		done  chan error
	}
	begin := func(name string) user {
		r := b.open(t, b.base)
		in, end, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); end.Close() })
		u := user{make(chan struct{}), end, make(chan error, 1)}
		p := with(script("echo begun; read line; echo x > /c/"+name), c)
		p.Stdin = in
		go func() { u.done <- r.Run(t.Context(), p, &firstWrite{told: u.begun}) }()
		return u
	}
	users := []user{begin("a"), begin("b")}
	for _, u := range users {
		select {
		case <-u.begun:
		case err := <-u.done:
			t.Fatalf("a step ends at once: %v", err)
		}
	}
	for _, u := range users {
		if _, err := u.end.WriteString("end\n"); err != nil {
			t.Fatal(err)
		}
		if err := <-u.done; err != nil {
			t.Error(err)
		}
	}
	wantOutput(t, b.open(t, b.base), with(script("ls /c"), c), "a\n")
}

// A firstWrite tells of the first bytes that come.
type firstWrite struct {
	told chan struct{}
	once sync.Once
}

func (f *firstWrite) Write(p []byte) (int, error) {
	f.once.Do(func() { close(f.told) })
	return len(p), nil
}

func testCacheShared(t *testing.T, b *rig) {
	c := b.cache("/c", "things", "shared")
	wait := "i=0; while [ ! -e /c/$0 ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done; [ -e /c/$0 ]"
	done := make(chan error)
	for _, names := range [][2]string{{"a", "b"}, {"b", "a"}} {
		r := b.open(t, b.base)
		p := with(script(""), c)
		p.Argv = []string{"/bin/sh", "-c", "touch /c/" + names[0] + "; " + wait, names[1]}
		if b.m.Machine {
			p.Argv[2] = "touch /c/" + names[0] + "; sleep 1; rm -f /c/gone; mkdir -p /c/d; echo x > /c/d/" + names[0]
		}
		go func() { done <- r.Run(t.Context(), p, io.Discard) }()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Errorf("two steps do not see each other: %v", err)
		}
	}
	r := b.open(t, b.base)
	if b.m.Machine { // of both steps, though they ran at the same time
		wantOutput(t, r, with(script("ls /c /c/d; rm -r /c/d; mkdir /c/d; echo y > /c/d/y; rm /c/a"), c), "/c:\na\nb\nd\n\n/c/d:\na\nb\n")
		wantOutput(t, r, with(script("ls /c /c/d; rm -r /c/d; touch /c/a"), c), "/c:\nb\nd\n\n/c/d:\ny\n")
	}
	wantOutput(t, r, with(script("ls /c"), c), "a\nb\n")
	wantOutput(t, r, with(script("ls /c"), b.cache("/c", "things", "")), "") // private uses are apart

	// A file that takes another's name is the one that a later step sees, also of one that has read the old one.
	wantOutput(t, r, with(script("echo old > /c/index"), c), "")
	wantOutput(t, r, with(script("cat /c/index; echo new content > /c/new; mv /c/new /c/index"), c), "old\n")
	wantOutput(t, r, with(script("cat /c/index"), c), "new content\n")
}

func testCacheLocked(t *testing.T, b *rig) {
	c := b.cache("/c", "things", "locked")
	done := make(chan error)
	for range 3 {
		r := b.open(t, b.base)
		p := with(script("mkdir /c/busy || exit 9; sleep 0.2; rmdir /c/busy; echo x >> /c/count"), c, b.cache("/again", "things", "locked"))
		go func() { done <- r.Run(t.Context(), p, io.Discard) }()
	}
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	wantOutput(t, b.open(t, b.base), with(script("cat /c/count"), c), "x\nx\nx\n")
}

func testCacheNames(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	for _, name := range []string{"a/b c:d%", "../evil", "..", ".", "/etc", "ü\n\x01", strings.Repeat("long", 100)} {
		c := b.cache("/c", name, "")
		wantOutput(t, r, with(script("cat /c/f 2>/dev/null; echo x > /c/f"), c), "")
		wantOutput(t, r, with(script("cat /c/f"), c), "x\n")
	}
}

func testCacheGenerations(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	c := b.cache("/c", "things", "")
	want := ""
	for range 25 {
		wantOutput(t, r, with(script("cat /c/log 2>/dev/null; echo x >> /c/log; rm -rf /c/d; mkdir /c/d; echo x > /c/d/`ls /c | wc -l`"), c), want)
		want += "x\n"
	}
	wantOutput(t, r, with(script("cat /c/log; ls /c"), c), want+"d\nlog\n")
}

func testMountsInsideCaches(t *testing.T, b *rig) {
	r := b.open(t, b.base)
	outer := b.cache("/c", "outer", "")
	mounts := []executor.Mount{secret("/c/token", "t"), b.cache("/c/deep/inner", "inner", ""), outer}
	wantOutput(t, r, with(script("cat /c/token; echo i > /c/deep/inner/f; echo o > /c/f"), mounts...), "t")
	wantOutput(t, r, with(script("ls -A /c"), outer), "f\n")
	wantOutput(t, r, with(script("cat /c/f /c/deep/inner/f"), mounts...), "o\ni\n")
	wantOutput(t, r, with(script("ls -A /c; cat /i/f"), outer, b.cache("/i", "inner", "")), "f\ni\n")
	if l := Freeze(t, r); !l.IsZero() {
		t.Errorf("the layer has %q", contents(t, b.st, l))
	}
}

// testCacheSharedPoints: of two steps that mount at the same places in one cache, the end of one takes nothing away from the other.
func testCacheSharedPoints(t *testing.T, b *rig) {
	if b.m.Machine {
		t.Skip("a machine has a snapshot of a cache")
	}
	mounts := []executor.Mount{b.cache("/c", "things", "shared"), b.cache("/c/inner", "inner", "shared"), secret("/c/token", "t")}
	in, end, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer end.Close()
	first := b.open(t, b.base)
	p := with(script("echo begun; read line"), mounts...)
	p.Stdin = in
	begun, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- first.Run(t.Context(), p, &firstWrite{told: begun}) }()
	<-begun
	time.AfterFunc(time.Second, func() { end.WriteString("end\n") })
	wantOutput(t, b.open(t, b.base), with(script("sleep 2; cat /c/token; touch /c/inner/f"), mounts...), "t")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// testCachesHidden: no cache is put over what is mounted already: the process would not find it where it looks for it.
func testCachesHidden(t *testing.T, b *rig) {
	r := b.open(t, b.base, loadTar(t, b.st,
		tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "/c/d", Mode: 0o777},
		tar.Header{Name: "same", Typeflag: tar.TypeSymlink, Linkname: "/c", Mode: 0o777},
	))
	for _, mounts := range [][]executor.Mount{
		{b.cache("/link", "inner", ""), b.cache("/c", "outer", "")},
		{b.cache("/c", "outer", ""), b.cache("/same", "other", "")},
	} {
		var bad *executor.StartError
		if out, err := try(t, r, with(script("touch /link/f; ls /c"), mounts...)); !errors.As(err, &bad) || !strings.Contains(err.Error(), "would hide") {
			t.Errorf("%v: %v, the step prints %q", mounts, err, out)
		}
	}
}

// testSystemLinks: an image has a link where the sandbox mounts, which leads to what an earlier step has left in a cache. A runtime would
// open there what it takes for a device.
func testSystemLinks(t *testing.T, b *rig) {
	cache := b.cache("/data", "devices", "")
	run(t, b.open(t, b.base), with(script("ln -s /proc/sys/vm/swappiness /data/null; mkdir /data/self"), cache))
	for _, dir := range []string{"dev", "proc", "sys"} {
		r := b.open(t, bareBusybox(t, b.st, time.Unix(0, 0), tar.Header{Name: "data/", Typeflag: tar.TypeDir},
			tar.Header{Name: dir, Typeflag: tar.TypeSymlink, Linkname: "/data", Mode: 0o777}))
		var bad *executor.StartError
		if out, err := try(t, r, with(script("ls -l /data"), cache)); !errors.As(err, &bad) || !strings.Contains(err.Error(), "/"+dir) {
			t.Errorf("/%s is a link: %v, the step prints %q", dir, err, out)
		}
	}
}

func testSystemTargets(t *testing.T, b *rig) {
	r := b.open(t, b.base, loadTar(t, b.st,
		tar.Header{Name: "innocent", Typeflag: tar.TypeSymlink, Linkname: "/dev", Mode: 0o777},
		tar.Header{Name: "below", Typeflag: tar.TypeSymlink, Linkname: "proc/sys", Mode: 0o777},
	))
	for _, target := range []string{"/dev", "/dev/", "/dev/x", "/dev/shm/x/y", "//proc", "/proc/sys", "/x/../sys/fs", "/sys",
		"/innocent", "/innocent/null", "/below", "/below/kernel/core_pattern"} {
		for _, m := range []executor.Mount{secret(target, "x"), b.cache(target, "system", ""), b.cache(target, "system-shared", "shared")} {
			var bad *executor.StartError
			if out, err := try(t, r, with(script("head -c 1 /proc/kcore; ls -l /dev"), m)); !errors.As(err, &bad) {
				t.Errorf("a mount on %s: %v, the step prints %q", target, err, out)
			}
		}
	}
}

// testCacheLinks: what a step has left in a cache leads no mount elsewhere, and what an image has below a cache does not either.
func testCacheLinks(t *testing.T, b *rig) {
	for _, sharing := range []string{"", "shared", "locked"} {
		cache := b.cache("/data", "links-"+sharing, sharing)
		run(t, b.open(t, b.base), with(script("ln -s /etc /data/out; ln -s /proc/sys /data/sys; ln -s d /data/in; mkdir /data/d"), cache))
		r := b.open(t, b.base)
		for _, target := range []string{"/data/out/x", "/data/sys/x", "/data/in/x", "/data/in"} {
			var bad *executor.StartError
			if out, err := try(t, r, with(script("ls /etc/x"), cache, secret(target, "x"))); !errors.As(err, &bad) {
				t.Errorf("%s cache, a secret on %s: %v, the step prints %q", sharing, target, err, out)
			}
		}
	}
	r := b.open(t, b.base, loadTar(t, b.st, tar.Header{Name: "hidden/x", Typeflag: tar.TypeSymlink, Linkname: "/etc", Mode: 0o777}))
	wantOutput(t, r, with(script("cat /hidden/x/s; ls /etc/s 2>/dev/null || echo not in /etc"), b.cache("/hidden", "hidden", ""),
		secret("/hidden/x/s", "secret ")), "secret not in /etc\n")
}

// testDirectoryInProc: while a process is made, names in /proc lead to what its maker has open.
func testDirectoryInProc(t *testing.T, b *rig) {
	cache := b.cache("/data", "directory", "")
	run(t, b.open(t, b.base), with(script("ln -s /proc/self/fd/7 /data/link"), cache))
	r := b.open(t, b.base, loadTar(t, b.st,
		tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "/proc/self", Mode: 0o777},
		tar.Header{Name: "devices", Typeflag: tar.TypeSymlink, Linkname: "/dev/fd", Mode: 0o777},
		// What the image has below /proc and /dev, the process does not see.
		tar.Header{Name: "proc/1", Typeflag: tar.TypeSymlink, Linkname: "/tmp", Mode: 0o777},
		tar.Header{Name: "dev/fd/9/", Typeflag: tar.TypeDir, Mode: 0o755},
	))
	for _, dir := range []string{"/dev/fd", "/dev/fd/9", "/dev/fd/7/../..", "/devices/9", "/proc/1", "/proc/1/fd/7",
		"/missing/../proc", "/missing/../proc/self/fd/7", "/proc", "/proc/self/fd/7",
		"/proc/self/fd/7/../../..", "//proc/1/cwd", "/link", "/link/fd/8", "/data/link"} {
		p := with(script("pwd -P; ls ../../../.."), cache)
		p.Dir = dir
		var bad *executor.StartError
		if out, err := try(t, r, p); !errors.As(err, &bad) {
			t.Errorf("working directory %s: %v, the step prints %q", dir, err, out)
		}
	}
}
