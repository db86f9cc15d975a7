package userns

import "testing"

func TestEnd(t *testing.T) {
	const rootless = "         0       1000          1\n         1     100000      65536\n"
	for _, c := range []struct {
		m        string
		id, want int
	}{
		{rootless, 0, 1},
		{rootless, 1, 65537},
		{rootless, 65536, 65537},
		{rootless, 65537, 65537},
		{"         0          0 4294967295\n", 4294967294, 4294967295},
		{"1000 1000 1\n", 0, 0},
		{"1000 1000 1\n", 1000, 1001},
		{"", 0, 0},
	} {
		if got := idMap(c.m).end(c.id); got != c.want {
			t.Errorf("%q ends after %d at %d; want %d", c.m, c.id, got, c.want)
		}
	}
}
