package conformance

import (
	"os"
	"path/filepath"
	"testing"
)

func TestContains(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const huge = 1 << 40
	if err := f.Truncate(huge); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{5, 1<<20 - 3, 100<<20 + 7, huge - 4} {
		if _, err := f.WriteAt([]byte("find"), at); err != nil {
			t.Fatal(err)
		}
		if !contains(f.Name(), "find") {
			t.Errorf("not found at %d", at)
		}
		if _, err := f.WriteAt([]byte("gone"), at); err != nil {
			t.Fatal(err)
		}
		if contains(f.Name(), "find") {
			t.Error("found what is not there")
		}
	}
}
