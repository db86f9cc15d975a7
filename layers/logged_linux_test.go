package layers

import (
	"archive/tar"
	"reflect"
	"testing"
	"time"
)

func TestLogged(t *testing.T) {
	lines := []logged{
		{At: "a\xff/b", Header: &tar.Header{
			Typeflag: tar.TypeReg, Name: "./a\xff/b", Size: 1, Mode: 0o4755, Uid: -1, Gid: 1 << 31, ModTime: time.Unix(-5, 999_999_999),
			PAXRecords: map[string]string{"SCHILY.xattr.user.\xfe": "\x00\xff", "empty": ""},
		}},
		{At: "a\xff/b", Kept: 7},
		{Header: &tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "a\xff/b", ModTime: time.Unix(1<<40, 0)}},
		{At: "dev", Header: &tar.Header{Typeflag: tar.TypeChar, Name: "dev", Devmajor: 1 << 20, Devminor: 3, ModTime: time.Unix(0, 0)}},
	}
	var b []byte
	for _, l := range lines {
		b = l.append(b)
	}
	s := &logReader{rest: b}
	for i, want := range lines {
		if got, err := s.line(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("line %d = %+v (%+v), %v; want %+v (%+v)", i, got, got.Header, err, want, want.Header)
		}
	}
	if len(s.rest) > 0 {
		t.Errorf("%d bytes are left", len(s.rest))
	}
	one := lines[0].append(nil)
	for n := range len(one) {
		if got, err := (&logReader{rest: one[:n]}).line(); err == nil {
			t.Errorf("of %d bytes, %d are read as %+v", len(one), n, got)
		}
	}
	if got, err := (&logReader{rest: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}}).line(); err == nil {
		t.Errorf("a text of a negative length is read as %+v", got)
	}
}
