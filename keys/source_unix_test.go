//go:build !windows

package keys_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

// A real directory, through os.Root: links that lead out are never followed. Windows has no execute bits, and Wine shows no links.
func TestRealDirectory(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "d", "sub"), 0o755),
		os.WriteFile(filepath.Join(dir, "d", "sub", "x"), []byte("x"), 0o755),
		os.Symlink(outside, filepath.Join(dir, "out")),
		os.Symlink(outside, filepath.Join(dir, "d", "out")),
	); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	sources, err := keys.HashSources(context.Background(), root.FS(), &spec.Copy{Src: []string{"."}}, options(nil))
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`dir ""
  dir "d"
    link "out" %[1]s
    dir "sub"
      exec "x"
  link "out" %[1]s
`, outside)
	if got := show("", sources[0].Node); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	_, err = keys.HashSources(context.Background(), root.FS(), &spec.Copy{Src: []string{"out/secret"}}, options(nil))
	if err == nil || err.Error() != `source "out/secret": "out" is a link, not a directory` {
		t.Error(err)
	}
}
