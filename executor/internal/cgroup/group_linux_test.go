package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestGroupsOfEach makes groups of version 1 in plain directories, for machines that mount their controllers in other ways than this one.
func TestGroupsOfEach(t *testing.T) {
	pids, memory := int64(7), int64(1<<20)
	limited := &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &pids}}
	both := &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &pids}, Memory: &specs.LinuxMemory{Limit: &memory, Swap: &memory}}
	for name, tt := range map[string]struct {
		mounts    map[string]string // of controllers
		resources *specs.LinuxResources
		dirs      []string
		files     map[string]string
	}{
		"each by itself": {
			map[string]string{"devices": "d", "memory": "m", "cpu": "c", "pids": "p"}, limited,
			[]string{"d/obx/run/step-shared", "m/obx/run/step-shared", "p/obx/run/step-1"},
			map[string]string{"d/obx/run/step-shared/devices.deny": "a", "p/obx/run/step-1/pids.max": "7"},
		},
		"devices with what is limited": { // the rules have to be where the process is
			map[string]string{"devices": "x", "memory": "m", "cpu": "c", "pids": "x"}, limited,
			[]string{"m/obx/run/step-shared", "x/obx/run/step-1"},
			map[string]string{"x/obx/run/step-1/devices.deny": "a", "x/obx/run/step-1/pids.max": "7"},
		},
		"all together": {
			map[string]string{"devices": "x", "memory": "x", "cpu": "x", "pids": "x"}, both,
			[]string{"x/obx/run/step-1"},
			map[string]string{
				"x/obx/run/step-1/devices.deny": "a", "x/obx/run/step-1/pids.max": "7", "x/obx/run/step-1/memory.limit_in_bytes": "1048576",
				"x/obx/run/step-1/memory.memsw.limit_in_bytes": "1048576",
			},
		},
		"no limits": {
			map[string]string{"devices": "x", "memory": "m", "cpu": "x", "pids": "x"}, nil,
			[]string{"m/obx/run/step-shared", "x/obx/run/step-shared"},
			map[string]string{"x/obx/run/step-shared/devices.deny": "a"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			m := Maker{System: System{Controllers: map[string]string{}}}
			for c, at := range tt.mounts {
				m.Controllers[c] = filepath.Join(top, at)
			}
			for range 2 { // the second finds the shared ones
				g, err := m.Make(Top+"/run/step-1", tt.resources)
				if err != nil {
					t.Fatal(err)
				}
				var dirs []string
				for _, d := range g.Dirs {
					dir, err := filepath.Rel(top, d.Path)
					if err != nil {
						t.Fatal(err)
					}
					dirs = append(dirs, dir)
				}
				if !slices.Equal(dirs, tt.dirs) {
					t.Errorf("the process joins %q, want %q", dirs, tt.dirs)
				}
				for file, want := range tt.files {
					if b, err := os.ReadFile(filepath.Join(top, file)); err != nil || string(b) != want {
						t.Errorf("%s has %q, %v; want %q", file, b, err, want)
					}
				}
			}
		})
	}
	if _, err := (&Maker{System: System{Controllers: map[string]string{"pids": t.TempDir()}}}).Make(Top+"/run/step-1", limited); err == nil {
		t.Error("a group without rules for devices")
	}
}
