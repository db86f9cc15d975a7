package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor/overlay"
)

func TestMain(m *testing.M) {
	if overlay.IsSupervisor() { // a script's obx is this program
		overlay.Supervise(nil)
		return
	}
	testscript.Main(m, map[string]func(){"obx": main})
}

// TestScripts runs the command line as users do, a behaviour a script.
func TestScripts(t *testing.T) {
	busybox, registry := filepath.Join(t.TempDir(), "busybox"), ""
	private := startPrivateRegistry(t)
	if os.Geteuid() == 0 {
		if err := conformance.WriteBusyboxLayout(busybox); err != nil {
			t.Fatal(err)
		}
		registry = conformance.StartRegistry(t)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("BUSYBOX", "oci:"+busybox+":latest")
			env.Setenv("CACHE", registry+"/"+strings.ToLower(filepath.Base(env.WorkDir)))
			env.Setenv("PRIVATE", private)
			return setup(env)
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "sandbox", "root":
				return os.Geteuid() == 0, nil
			case "skopeo":
				_, err := exec.LookPath("skopeo")
				return err == nil, nil
			}
			return false, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": status, "image": image},
	})
}

// startPrivateRegistry starts a registry that has nothing, and says so only to me, whose password is "right". It returns HOST:PORT.
func startPrivateRegistry(t *testing.T) string {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "right" {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			w.WriteHeader(http.StatusUnauthorized)
		} else if r.URL.Path != "/v2/" {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// status N CMD... runs a command that has to exit with N.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N CMD...")
	}
	got := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = strconv.Itoa(exit.ExitCode())
	}
	if got != args[0] {
		ts.Fatalf("exit status %s instead of %s", got, args[0])
	}
}

func setup(env *testscript.Env) error {
	env.Setenv("OBX_STORE", filepath.Join(env.WorkDir, "store"))
	config := filepath.Join(env.WorkDir, ".config", "obx", "config.json") // instead of this machine's
	if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(config, []byte("{}"), 0o644); err != nil {
		return err
	}
	env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, ".config"))
	env.Setenv("XDG_RUNTIME_DIR", filepath.Join(env.WorkDir, ".run"))
	env.Setenv("TZ", "UTC")
	env.Setenv("TERM", "xterm")
	env.Setenv("GORACE", "atexit_sleep_ms=0") // else each obx waits a second at its end
	// Scripts that become another user must reach their files, and obx.
	for _, dir := range []string{filepath.Dir(env.WorkDir), env.WorkDir} {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(env.WorkDir, ".tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	obx, err := exec.LookPath("obx")
	if err != nil {
		return err
	}
	return os.Chmod(filepath.Dir(filepath.Dir(obx)), 0o755)
}
