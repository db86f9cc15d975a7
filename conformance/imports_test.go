package conformance

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/ocurrent/obx/"

// mayImport lists, for each package, the packages of obx that it may see. ARCHITECTURE.md draws it.
var mayImport = map[string][]string{
	"docs": {},
	"examples/library": {
		"keys", "keys/spec", "cas", "layers", "registry", "registry/images", "registry/repo", "executor", "executor/build",
		"executor/overlay", "executor/rootless",
	},
	"keys/spec":                  {},
	"keys":                       {"keys/spec"},
	"cas/foreign":                {},
	"cas/userns":                 {},
	"cas":                        {"cas/foreign", "cas/userns"},
	"layers":                     {"cas", "cas/foreign", "cas/userns"},
	"registry/reference":         {},
	"registry/internal/oci":      {"registry/reference"},
	"registry/internal/repotest": {"cas", "registry/repo"},
	"registry/repo":              {"cas", "cas/foreign", "cas/userns", "registry/internal/oci", "registry/reference"},
	"registry/images":            {"keys", "cas", "cas/foreign", "layers", "registry/internal/oci", "registry/reference", "registry/repo"},
	"registry":                   {"keys", "cas", "cas/foreign", "layers", "registry/internal/oci", "registry/repo", "registry/images"},
	"executor":                   {"layers"},
	"executor/rootless":          {"executor/internal/sandbox", "cas/userns"},
	"executor/overlay": {
		"executor", "executor/internal/cgroup", "executor/internal/rootfs", "executor/internal/sandbox", "executor/internal/seccomp",
		"executor/rootless", "layers", "cas", "cas/foreign", "cas/userns",
	},
	"executor/hcs": {"executor", "executor/internal/rootfs", "layers", "cas", "cas/foreign"},
	"executor/internal/rootfs": {
		"executor", "executor/internal/cgroup", "executor/internal/seccomp", "layers", "cas", "cas/foreign", "cas/userns",
	},
	"executor/internal/cgroup":        {"executor", "cas/userns"},
	"executor/internal/sandbox":       {"executor/internal/cgroup", "cas/userns"},
	"executor/internal/seccomp":       {"cas/userns"},
	"executor/internal/seccomp/probe": {"executor/internal/seccomp"},
	"executor/fake":                   {"executor", "layers", "cas"},
	"executor/build/results":          {"keys", "cas", "layers", "registry"},
	"executor/build": {
		"keys", "keys/spec", "cas", "cas/foreign", "layers", "registry", "registry/images", "registry/repo", "executor",
		"executor/build/publish", "executor/build/results",
	},
	"executor/build/publish": {"keys", "cas", "layers", "registry", "registry/images", "registry/repo", "executor/build/results"},
	"conformance": {
		"keys", "keys/spec", "cas", "layers", "registry", "registry/images", "registry/repo", "executor", "executor/build",
		"executor/fake", "executor/rootless", "cas/userns",
	},

	"executor/qemu": {
		"executor", "executor/internal/rootfs", "executor/qemu/cachedir", "executor/qemu/guest", "executor/qemu/layerdisk", "executor/qemu/qcow2",
		"executor/qemu/vm", "executor/qemu/wire", "layers", "cas",
	},
	"executor/qemu/vm": {
		"executor", "executor/qemu/agents", "executor/qemu/guest", "executor/qemu/layerdisk", "executor/qemu/wire",
		"executor/qemu/words", "cas",
	},
	"executor/qemu/agents":             {},
	"executor/qemu/cachedir":           {"layers", "cas/foreign"},
	"executor/qemu/guest":              {"executor", "executor/qemu/agents", "executor/qemu/wire", "executor/qemu/words", "layers"},
	"executor/qemu/layerdisk":          {"executor/internal/rootfs", "layers", "cas/foreign"},
	"executor/qemu/qcow2":              {"executor/qemu/words", "layers"},
	"executor/qemu/words":              {},
	"executor/qemu/internal/guesttest": {"executor/qemu/wire"},
	"executor/qemu/agent": {
		"executor", "executor/internal/rootfs", "executor/overlay", "executor/qemu/wire", "layers", "cas", "cas/foreign",
	},
	"executor/qemu/wire": {"executor"},
}

// onlyIn lists, for each foreign module that is heavy or that shapes an interface, the packages that may see it.
var onlyIn = map[string][]string{
	"oras.land/oras-go/":    {"registry/repo"},
	"github.com/klauspost/": {"layers", "registry"},
	"github.com/opencontainers/runtime-spec/": {
		"executor/internal/rootfs", "executor/internal/cgroup", "executor/internal/sandbox", "executor/internal/seccomp", "executor/overlay", "executor/hcs",
	},
	"golang.org/x/crypto/ssh":       {"executor/qemu/guest"},
	"github.com/spf13/":             {"cmd/obx"},
	"github.com/Microsoft/hcsshim/": {"executor/hcs"},
	"github.com/moby/":              {"executor/internal/seccomp"},
	"github.com/containerd/":        {"layers", "executor/hcs"},
}

type goPackage struct {
	ImportPath string
	Doc        string
	Imports    []string
	GoFiles    []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Imports,GoFiles", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			if own, ok := strings.CutPrefix(imp, module); ok {
				allowed, listed := mayImport[name]
				if listed && !slices.Contains(allowed, own) {
					t.Errorf("%s imports %s", name, own)
				}
				if !listed && !strings.HasPrefix(name, "cmd/") {
					t.Errorf("%s is not in the table of this test", name)
				}
			}
			for mod, allowed := range onlyIn {
				if strings.HasPrefix(imp, mod) && !slices.Contains(allowed, name) {
					t.Errorf("%s imports %s, which belongs to %v", name, imp, allowed)
				}
			}
		}
	}
}

func TestEveryPackageHasADocComment(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// The drawing of ARCHITECTURE.md has packages once, with what is below them in the tree and not drawn by itself; each imports only what is below it in
// the drawing, on its own side of the bar. The table there has a row for each package.
func TestDrawing(t *testing.T) {
	text, err := os.ReadFile("../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, drawing, ok := strings.Cut(string(text), "<!-- packages -->\n```\n")
	drawing, table, closed := strings.Cut(drawing, "\n```\n")
	if !ok || !closed {
		t.Fatal("there is no drawing")
	}
	type place struct{ line, side int } // side is 0 where there is no bar
	places := map[string]place{}
	for i, line := range strings.Split(drawing, "\n") {
		sides := strings.Split(line, "|")
		for side, part := range sides {
			for _, name := range strings.Fields(part) {
				if _, is := mayImport[name]; !is && name != "cmd/obx" {
					continue // a word
				}
				if _, twice := places[name]; twice {
					t.Errorf("%s is drawn twice", name)
				}
				places[name] = place{i, side + 1}
				if len(sides) == 1 {
					places[name] = place{i, 0}
				}
			}
		}
	}
	// drawn is the package that stands for another in the drawing.
	drawn := func(name string) string {
		for at := name; at != "."; at = path.Dir(at) {
			if _, ok := places[at]; ok {
				return at
			}
		}
		return ""
	}
	for name := range mayImport {
		if drawn(name) == "" {
			t.Errorf("%s is not drawn", name)
		}
		if !strings.Contains(table, "\n| `"+name+"` |") {
			t.Errorf("the table has no row for %s", name)
		}
	}
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		from := drawn(name)
		for _, imp := range p.Imports {
			own, ok := strings.CutPrefix(imp, module)
			to := drawn(own)
			if !ok || from == "" || to == from {
				continue
			}
			if f, below := places[from], places[to]; below.line <= f.line || f.side != 0 && below.side != 0 && below.side != f.side {
				t.Errorf("%s imports %s, which is not drawn below it", name, own)
			}
		}
	}
}
