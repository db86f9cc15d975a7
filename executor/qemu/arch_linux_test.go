package qemu

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/agents"
	"github.com/ocurrent/obx/executor/qemu/guest"
	"github.com/ocurrent/obx/executor/qemu/vm"
	"github.com/ocurrent/obx/layers"
)

// TestArchitectures runs programs of another architecture: the agent, which complains of where it is, and one that looks for what it can call.
func TestArchitectures(t *testing.T) {
	conformance.RequireRoot(t)
	for _, arch := range []string{"arm64", "riscv64"} {
		t.Run(arch, func(t *testing.T) {
			st := conformance.OpenStore(t)
			o := vm.Options{Store: st, Arch: arch, Kernel: conformance.Kernel(t, arch), BootTimeout: 5 * time.Minute, Warn: func(s string) { t.Error(s) }}
			e, err := New(o, guest.Account{})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			if p := e.Platform(); p.Architecture != arch {
				t.Errorf("the platform is %v", p)
			}
			program, err := agents.Program("linux", arch)
			if err != nil {
				t.Fatal(err)
			}
			dir, err := os.MkdirTemp(st.TempDir(), "layer-")
			if err == nil {
				err = os.Mkdir(filepath.Join(dir, "fs"), 0o755)
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "fs", "program"), program, 0o755)
			}
			probes := conformance.Probes(t, arch)
			for name, program := range probes {
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, "fs", "probe-"+name), program, 0o755)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			name, err := st.CommitLayer(dir, "")
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				r, err := e.Open(t.Context(), []layers.Layer{{Dir: name}})
				if err != nil {
					t.Fatal(err)
				}
				var out bytes.Buffer
				start := time.Now()
				err = r.Run(t.Context(), executor.Process{Argv: []string{"/program"}, Dir: "/"}, &out)
				t.Logf("%v", time.Since(start))
				var exit *executor.ExitError
				if !errors.As(err, &exit) || exit.Code != 1 || !strings.HasPrefix(out.String(), "obx agent: ") {
					t.Errorf("%v: %q", err, out.String())
				}
				for name := range probes {
					out.Reset()
					if err := r.Run(t.Context(), executor.Process{Argv: []string{"/probe-" + name, "none"}, Dir: "/", FastSync: true}, &out); err != nil {
						t.Errorf("%s: %v\n%s", name, err, out.String())
					}
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
