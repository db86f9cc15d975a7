package overlay_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/overlay"
)

// TestRuntimetest has the OCI's own test look, from inside, whether a container is what its configuration says: that which obx gives to runtimes.
func TestRuntimetest(t *testing.T) {
	conformance.RequireRoot(t)
	tester := conformance.Program(t, "OBX_RUNTIMETEST", "runtimetest")
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	// A runc that keeps what it is given.
	dir := t.TempDir()
	config := filepath.Join(dir, "config.json")
	putRuntimes(t, dir, "cp config.json "+config+"; exec "+runc+" \"$@\"", "runc")
	run := func(runtime string, spec []byte) (out string, err error) {
		r := openBusybox(t, overlay.Options{Runtime: runtime})
		put := shell("cat > /runtimetest; chmod 755 /runtimetest")
		in, err := os.Open(tester)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		put.Stdin = in
		var said bytes.Buffer
		if err := r.Run(t.Context(), put, &said); err != nil {
			t.Fatalf("%v\n%s", err, said.String())
		}
		p := shell("")
		p.Argv = []string{"/runtimetest", "--compliance-level", "must", "--path", "/run"}
		p.Mounts = []executor.Mount{{Target: "/run/config.json", Secret: &executor.Secret{Data: spec}}}
		err = r.Run(t.Context(), p, &said)
		return said.String(), err
	}
	_, _ = run(filepath.Join(dir, "runc"), nil) // it has no configuration yet
	data, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		t.Fatal(err)
	}
	// It gives up at a path that this kernel does not have.
	spec.Linux.ReadonlyPaths = slices.DeleteFunc(spec.Linux.ReadonlyPaths, func(name string) bool {
		_, err := os.Lstat(name)
		return err != nil
	})
	if data, err = json.Marshal(spec); err != nil {
		t.Fatal(err)
	}
	// What fails under both. Where the configuration has a "cgroup" there is a tmpfs with one for each hierarchy, or a "cgroup2".
	known := []string{"mounts[4] (/sys/fs/cgroup) found"}
	line := regexp.MustCompile(`(?m)^(not ok|ok) [0-9]+ - (.*)$`)
	passed := map[string]int{}
	for _, runtime := range []string{"runc", overlay.Builtin} {
		out, err := run(runtime, data)
		var failed []string
		for _, m := range line.FindAllStringSubmatch(out, -1) {
			if m[1] == "ok" {
				passed[runtime]++
			} else {
				failed = append(failed, m[2])
			}
		}
		if err != nil || !slices.Equal(failed, known) {
			t.Errorf("%v; under %s these fail:\n%q\nwant\n%q\n%s", err, runtime, failed, known, out)
		}
	}
	t.Logf("checks that hold: %v", passed)
	if passed["runc"] < 250 || passed[overlay.Builtin] != passed["runc"] {
		t.Errorf("there are %v checks that hold; want as many under both", passed)
	}
}
