package userns

import "testing"

func TestContains(t *testing.T) {
	const rootless = "         0       1000          1\n         1     100000      65536\n"
	for _, c := range []struct {
		m    string
		id   int
		want bool
	}{
		{rootless, 0, true},
		{rootless, 1, true},
		{rootless, 65536, true},
		{rootless, 65537, false},
		{"         0          0 4294967295\n", 4294967294, true},
		{"1000 1000 1\n", 0, false},
		{"1000 1000 1\n", 1000, true},
		{"", 0, false},
	} {
		if got := contains(c.m, c.id); got != c.want {
			t.Errorf("contains(%q, %d) = %t", c.m, c.id, got)
		}
	}
}
