package conformance

import (
	"slices"
	"testing"

	"github.com/ocurrent/obx/cas/userns"
)

// testRefused holds that a process is noted that wanted to make what its user namespace cannot have. It gets the kernel's error, and goes on.
func testRefused(t *testing.T, b *rig) {
	for commands, want := range map[string][]string{
		"mkfifo /p; : >/f; chown 5:6 /f; chgrp 7 /f; chown 65535 /f; chown -h 3 /f":   nil,
		"mknod /n c 1 3; mknod /m b 7 0":                                              {"a device node"},
		": >/f; chown 100000 /f; chown -h 100000 /f; chgrp 100001 /f; chown 1:1 /f":   {"a file of the group 100001", "a file of the user 100000"},
		"mkdir /d; : >/d/f; chown -R 4294967294:9 /d":                                 {"a file of the user 4294967294"},
		"(mknod /n c 1 3 & chown 100000 /bin & wait); sh -c 'mknod /m c 1 3'; exit 3": {"a device node", "a file of the user 100000"},
	} {
		var got []string
		p := script(commands)
		p.Refused = func(wanted []string) { got = append(got, wanted...) }
		_, err := try(t, b.open(t, b.base), p)
		if !userns.Inside() {
			want = nil
		} else if want == nil && err != nil {
			t.Errorf("%s: %v", commands, err)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s: %q were refused; want %q", commands, got, want)
		}
	}
}
