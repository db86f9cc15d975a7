package layers

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/ocurrent/obx/cas/foreign"
)

// TestLargeHeaders writes what plain tar fields cannot hold, and reads it again.
func TestLargeHeaders(t *testing.T) {
	var buf bytes.Buffer
	stop := errors.New("stop")
	want := tar.Header{
		Typeflag: tar.TypeReg, Name: "big", Size: 9 << 30, Mode: 0o6755, Uid: 4_000_000_000, Gid: 3_000_000,
		ModTime: time.Unix(-1_000_000_000, 123_456_789),
	}
	h := want
	w := newTarWriter(&buf)
	err := w.add((&foreign.Level{}).Child(want.Name), &h, inode{}, map[string]string{"user.a=b": "x\x00\n", "user.e": ""}, func(io.Writer) error { return stop })
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	got, err := tar.NewReader(&buf).Next()
	if err != nil {
		t.Fatal(err)
	}
	if got.Size != want.Size || got.Mode != want.Mode || got.Uid != want.Uid || got.Gid != want.Gid || !got.ModTime.Equal(want.ModTime) {
		t.Errorf("%+v", got)
	}
	x, err := paxXattrs(got)
	if err != nil || len(x) != 2 || x["user.a=b"] != "x\x00\n" {
		t.Errorf("%q %v", x, err)
	}
}
