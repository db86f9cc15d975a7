package cachedir

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/ocurrent/obx/cas/foreign"
	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/layers"
)

// TestDeepCaches takes a snapshot of what is deeper than a path, and puts it into another directory.
func TestDeepCaches(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("requires root: copies owners")
	}
	tmp := t.TempDir()
	dir, name := conformance.DeepTree(t)
	want := conformance.ChangeBytes(t, dir)
	if err := Snapshot(filepath.Join(tmp, "seen"), dir); err != nil {
		t.Fatal(err)
	}
	if got := conformance.ChangeBytes(t, filepath.Join(tmp, "seen")); !bytes.Equal(got, want) {
		t.Error("the snapshot differs")
	}
	for range 2 { // into nothing, and into the same
		change := filepath.Join(tmp, "change")
		if err := layers.CopyDir(t.Context(), change, dir); err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(tmp, "target")
		if err := os.MkdirAll(target, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := Apply(context.Background(), target, change); err != nil {
			t.Fatal(err)
		}
		tree, err := layers.DirTree(target)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tree.Lstat(name); err != nil {
			t.Errorf("what was applied: %.80v", err)
		}
		if err := tree.Close(); err != nil {
			t.Fatal(err)
		}
		if err := foreign.RemoveAll(t.Context(), change); err != nil {
			t.Fatal(err)
		}
	}
}
