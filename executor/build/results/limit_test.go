package results

import (
	"testing"
)

// A limit that is as good as none is none for the logs together, too.
func TestLogLimitIsHuge(t *testing.T) {
	if n := NewLogTotal(1 << 60).take(1000); n != 1000 {
		t.Errorf("of 1000 bytes, %d are shown", n)
	}
}
