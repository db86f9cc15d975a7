package conformance

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDockerfileTrees builds specs with obx, and their Dockerfiles with buildah: the same files come out.
func TestDockerfileTrees(t *testing.T) {
	RequireRoot(t)
	if _, err := exec.LookPath("buildah"); err != nil {
		t.Skip("buildah is not installed")
	}
	tmp, err := os.MkdirTemp("", "obx-dockerfile-") // buildah wants names in lower case
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	base := filepath.Join(tmp, "busybox")
	if err := WriteBusyboxLayout(base); err != nil {
		t.Fatal(err)
	}
	obx := BuildOBX(t)
	for name, text := range map[string]string{
		"assets/css/a.css": "a", "assets/logo": "l", "conf.d/x.conf": "x", "Makefile": "all:", "a.txt": "hello", "dot.d/.keep": "", ".git/config": "c", "odd/a b": "1", "odd/$c": "2",
	} {
		file := filepath.Join(tmp, "ctx", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("logo", filepath.Join(tmp, "ctx/assets/link")); err != nil {
		t.Fatal(err)
	}
	for name, ops := range map[string]string{
		"directories and files": `(workdir /app) (copy (src assets) (dst ./)) (copy (src assets/) (dst /new/deep/))
			(copy (src assets a.txt conf.d Makefile) (dst /m/)) (copy (src assets/css conf.d/x.conf) (dst /d/)) (copy (src .git odd) (dst /h/))
			(copy (src assets) (dst /n)) (copy (src a.txt) (dst /n/b.txt)) (copy (src Makefile) (dst /n/Makefile.old))`,
		"all as a user": `(user (uid 7) (gid 8)) (workdir /all) (copy (src .) (dst ./)) (copy (src .) (dst /again)) (copy (src assets a.txt) (dst /u/))`,
		"of another build": `(copy (from (build dev)) (src /out/bin /out/lib.so /out/tree) (dst /usr/))
			(copy (from (build dev)) (src /out) (dst /o)) (copy (from (build dev)) (src /out/tree/.) (dst /t/))`,
		"into a directory that is there": `(copy (src assets) (dst /x/)) (copy (src assets) (dst /x/)) (copy (src a.txt) (dst ./))
			(run (shell "cat a.txt a.txt > b; chmod 600 b")) (copy (src conf.d) (dst /etc/))`,
	} {
		t.Run(name, func(t *testing.T) {
			text := `((build dev ((from busybox) (shell /bin/sh -c)
				(run (shell "mkdir -p /out/tree/sub; echo b > /out/bin; echo l > /out/lib.so; echo t > /out/tree/sub/t"))))
				(from busybox) (shell /bin/sh -c) ` + ops + ")"
			dir := t.TempDir()
			spec, file := filepath.Join(dir, "spec"), filepath.Join(dir, "Dockerfile")
			if err := os.WriteFile(spec, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			run := func(name string, args ...string) []byte {
				t.Helper()
				cmd := exec.Command(name, args...)
				cmd.Env = append(Environ(), "OBX_STORE="+filepath.Join(tmp, "store"))
				var errs strings.Builder
				cmd.Stderr = &errs
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, errs.String())
				}
				return out
			}
			run(obx, "run", "--base", "busybox=oci:"+base+":latest", "-o", "type=tar,dest="+dir+"/obx.tar", spec, tmp+"/ctx")
			dockerfile := strings.ReplaceAll(string(run(obx, "dockerfile", spec, tmp+"/ctx")), "FROM busybox", "FROM oci:"+base+":latest")
			if err := os.WriteFile(file, []byte(dockerfile), 0o644); err != nil {
				t.Fatal(err)
			}
			run("buildah", "--storage-driver", "vfs", "--root", tmp+"/root", "--runroot", tmp+"/run", "bud", "--isolation", "chroot", "--format", "docker",
				"-f", file, "-o", "type=tar,dest="+dir+"/buildah.tar", tmp+"/ctx")
			if want, got := filesOf(t, dir+"/obx.tar"), filesOf(t, dir+"/buildah.tar"); !maps.Equal(got, want) {
				for name, w := range want {
					if g, ok := got[name]; !ok {
						t.Errorf("%s is missing", name)
					} else if g != w {
						t.Errorf("%s is %v, want %v", name, g, w)
					}
				}
				for name := range got {
					if _, ok := want[name]; !ok {
						t.Errorf("%s is there", name)
					}
				}
				t.Log(dockerfile)
			}
		})
	}
}

// filesOf lists a tar, without what is of the sandbox.
func filesOf(t *testing.T, name string) map[string]row {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows := map[string]row{}
	tarRows(t, f, rows)
	maps.DeleteFunc(rows, func(name string, _ row) bool {
		for _, dir := range []string{"/dev", "/proc", "/sys", "/run", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/"} {
			if name == dir || dir != "/" && strings.HasPrefix(name, dir+"/") {
				return true
			}
		}
		return false
	})
	return rows
}
