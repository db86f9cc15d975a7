package rootfs

import "testing"

func TestRuntimeWarning(t *testing.T) {
	for version, warned := range map[string]bool{
		"runc version 1.1.5+ds1":    true,
		"runc version 1.2.7":        true,
		"runc version 1.2.8":        false,
		"runc version 1.3.0-rc.1":   true,
		"runc version 1.3.2":        true,
		"runc version 1.3.3+dev":    false,
		"runc version 1.4.0-rc.2":   true,
		"runc version 1.4.0-rc.3":   false,
		"runc version 1.4.0":        false,
		"runc version 1.5.0":        false,
		"runc version unknown":      false,
		"crun version 1.8.1":        false,
		"runsc version release-202": false,
		"":                          false,
	} {
		if got := RuntimeWarning(version) != ""; got != warned {
			t.Errorf("%q: a warning: %v, want %v", version, got, warned)
		}
	}
}
