package vm

import (
	"strings"
	"testing"
)

func TestModinfo(t *testing.T) {
	for info, want := range map[string]string{
		"license=GPL\x00depends=\x00intree=Y\x00":                         "",
		"depends=virtio,virtio_ring\x00name=x\x00":                        "virtio virtio_ring",
		"softdep=pre: crc32c\x00depends=\x00":                             "crc32c",
		"depends=a\x00softdep=pre: b c post: d\x00softdep=post: e\x00x=y": "a b c",
	} {
		if got := strings.Join(modinfoNeeds(info), " "); got != want {
			t.Errorf("%q needs %q, want %q", info, got, want)
		}
	}
}
