package conformance

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/ocurrent/obx/cas/userns"
	"github.com/ocurrent/obx/executor/rootless"
)

// rootlessVariable has the tests of a package run as an ordinary user, in that user's namespace.
const rootlessVariable = "OBX_TEST_ROOTLESS"

// An OrdinaryUser is one of this test's own, with subordinate ids: its commands see an /etc/passwd and /etc/subuid with it.
type OrdinaryUser struct {
	Dir string // which it owns

	// Subordinate is what is said of it in /etc/subuid and /etc/subgid, without its name; "" for nothing.
	Subordinate string

	// Setup is shell commands that root runs before, where only the user sees what is mounted.
	Setup string
}

const ordinaryUID = "54321"

// NewOrdinaryUser makes a user, and its directory.
func NewOrdinaryUser() (*OrdinaryUser, error) {
	for _, p := range []string{"unshare", "setpriv", "newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(p); err != nil {
			return nil, fmt.Errorf("%w: try `make test-deps`", err)
		}
	}
	dir, err := os.MkdirTemp("", "obx-user-")
	if err != nil {
		return nil, err
	}
	return &OrdinaryUser{Dir: dir, Subordinate: "700000:65536"}, exec.Command("chown", ordinaryUID+":"+ordinaryUID, dir).Run()
}

// Command is a command that the user runs, with the directory as its home.
func (u *OrdinaryUser) Command(argv ...string) *exec.Cmd {
	const script = `set -e
dir=$1 user=$2 sub=$3 setup=$4; shift 4
etc=$(mktemp -d)
mount -t tmpfs etc "$etc"
{ cat /etc/passwd; echo "ordinary:x:$user:$user::$dir:/bin/sh"; } > "$etc/passwd"
if [ -n "$sub" ]; then echo "ordinary:$sub"; fi > "$etc/subid"
touch /etc/subuid /etc/subgid
mount --bind "$etc/passwd" /etc/passwd
mount --bind "$etc/subid" /etc/subuid
mount --bind "$etc/subid" /etc/subgid
umount -l "$etc"
rmdir "$etc"
eval "$setup"
exec setpriv --reuid "$user" --regid "$user" --clear-groups "$@"`
	cmd := exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, "sh", u.Dir, ordinaryUID, u.Subordinate, u.Setup}, argv...)...)
	cmd.Dir = u.Dir
	cmd.Env = append(Environ(), "HOME="+u.Dir, "USER=ordinary", "TMPDIR="+u.Dir)
	return cmd
}

// Put gives the user a file that it can read and execute.
func (u *OrdinaryUser) Put(file string) (string, error) {
	at := filepath.Join(u.Dir, filepath.Base(file))
	out, err := exec.Command("install", "-m", "0755", file, at).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return at, nil
}

// Close removes what the user has, whichever of its ids it belongs to.
func (u *OrdinaryUser) Close() error { return os.RemoveAll(u.Dir) }

// Rootless has all tests of a program run in the namespace of an ordinary user, if $OBX_TEST_ROOTLESS is set: TestMain calls it first. The commands of this
// module are those that the tests need; cmd/obx is the one of BuildOBX.
func Rootless(commands ...string) {
	if os.Getenv(rootlessVariable) == "" || userns.Inside() {
		return
	}
	if os.Geteuid() != 0 {
		fmt.Println("FAIL:", rootless.Enter())
		os.Exit(1)
	}
	err := rootlessAgain(commands)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Println("FAIL: run tests as an ordinary user:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func rootlessAgain(commands []string) (err error) {
	u, err := NewOrdinaryUser()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.Close()) }()
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if self, err = u.Put(self); err != nil {
		return err
	}
	for _, c := range commands {
		file := filepath.Join(u.Dir, path.Base(c))
		if c == "cmd/obx" {
			err = buildOBX(file)
		} else {
			err = buildProgram(file, runtime.GOARCH, c)
		}
		if err != nil {
			return err
		}
	}
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(arg string) bool {
		return strings.HasPrefix(arg, "-test.testlogfile=") // `go test` has it where only root can write
	})
	cmd := u.Command(append([]string{self}, args...)...)
	cmd.Dir = here
	cmd.Env = append(cmd.Env, builtVariable+"="+u.Dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// RunRootless runs tests of this package as an ordinary user.
func RunRootless(t *testing.T, pattern string) {
	t.Helper()
	RequireRoot(t)
	if userns.Inside() {
		t.Skip("this is a user namespace already")
	}
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run", pattern)
	cmd.Env = append(os.Environ(), rootlessVariable+"=1")
	out, err := cmd.CombinedOutput()
	ran := strings.Count(string(out), "--- PASS")
	if err != nil || ran < 2 {
		t.Fatalf("%d tests passed, %v:\n%s", ran, err, out)
	}
	t.Logf("%d tests passed, %d were skipped", ran, strings.Count(string(out), "--- SKIP"))
}
