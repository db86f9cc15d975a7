package overlay

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWatchNothing gives watch sockets on which no listener comes, as when a process is killed before it has its filter.
func TestWatchNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		send   func(socket *os.File) error
		failed bool
	}{
		"the end":  {func(*os.File) error { return nil }, false},
		"no files": {func(s *os.File) error { return unix.Sendmsg(int(s.Fd()), []byte{0}, nil, nil, 0) }, true},
	} {
		ours, theirs, err := socketPair(unix.SOCK_SEQPACKET)
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		if err := tt.send(theirs); err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		if r, err := watch(ours); r != nil || err != nil != tt.failed || r.all() != nil {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	if all := unheard.all(); !slices.Equal(all, unheard.list) || len(all) != 1 {
		t.Errorf("unheard are %q", all)
	}
}
