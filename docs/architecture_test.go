package docs_test

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

var (
	walked   = regexp.MustCompile("(?m)^(\\d+)\\. `([A-Za-z.]+)` \\(`([^`]+)`\\)")
	fileName = regexp.MustCompile("`([a-z]+/[A-Za-z0-9_/.-]*\\.(?:go|md|txt|ps1))`")
)

// Each function on the way of a spec is in the file that ARCHITECTURE.md names, and the walk is short.
func TestWalk(t *testing.T) {
	packages := goPackages(t)
	steps := walked.FindAllStringSubmatch(read(t, "../ARCHITECTURE.md"), -1)
	if len(steps) < 8 || len(steps) > 12 {
		t.Errorf("the walk has %d functions", len(steps))
	}
	for _, m := range steps {
		p := packages[path.Dir(m[3])]
		if p == nil || !slices.Contains(p.funcs[m[2]], m[3]) {
			t.Errorf("%s has no function %s", m[3], m[2])
		}
	}
}

// The files that ARCHITECTURE.md names are there.
func TestArchitectureFiles(t *testing.T) {
	names := fileName.FindAllStringSubmatch(read(t, "../ARCHITECTURE.md"), -1)
	if len(names) < 20 {
		t.Errorf("%d files are named", len(names))
	}
	for _, m := range names {
		if _, err := os.Stat(filepath.Join("..", filepath.FromSlash(m[1]))); err != nil {
			t.Error(err)
		}
	}
}
