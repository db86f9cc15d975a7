package build_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry"
)

// A log that a few bytes of a cache become is shown and kept as far as the limit, one by one and in all.
func TestLogBomb(t *testing.T) {
	t.Parallel()
	const (
		limit  = 1 << 20
		each   = 4 * limit
		steps  = 16
		whole  = 10
		byOne  = "\n[obx: this log is over its limit of 1048576 bytes; the rest is dropped]\n"
		byMany = "\n[obx: the logs of earlier runs are over their limit of 10485760 bytes in all; the rest is dropped]\n"
	)
	text := `((from scratch) (copy (src big) (dst /))`
	for i := range steps {
		text += fmt.Sprintf(` (run (shell "cat /big; echo %d"))`, i)
	}
	text += ")"
	big := bytes.Repeat([]byte("bomb"), each/4)
	source := fstest.MapFS{"big": {Data: big, Mode: 0o644}}
	r := &spyRepo{}
	evil := newMachine(t).share(r)
	evil.Source = source
	evil.run(text)

	want := func(what string, logs map[int]string) {
		t.Helper()
		total := 0
		for i := range steps {
			log := logs[i+2]
			total += len(log)
			switch end := string(big[:limit]) + byOne; {
			case i < whole && log != end:
				t.Errorf("%s: the log of step %d has %d bytes, and ends in %q", what, i+2, len(log), log[max(0, len(log)-80):])
			case i >= whole && log != byMany:
				t.Errorf("%s: the log of step %d has %d bytes, and ends in %q", what, i+2, len(log), log[max(0, len(log)-120):])
			}
		}
		if total > 11*limit {
			t.Errorf("%s: the logs have %d bytes", what, total)
		}
	}
	m := newMachine(t).share(r)
	m.Source, m.LogLimit = source, limit
	o := m.run(text)
	o.want("c" + strings.Repeat("c", steps))
	want("the cache's", o.logs)

	// The store keeps no more either: the last step's own log first.
	m.NeedFiles = true
	key := m.run(text).key(steps + 1)
	var log strings.Builder
	if err := m.Log(t.Context(), key, &log); err != nil || log.String() != string(big[:limit])+byOne {
		t.Errorf("the store's: %d bytes, %v", log.Len(), err)
	}
	size := func(m *machine) (n int64) {
		for _, info := range listStore(t, m) {
			if info.Mode().IsRegular() {
				n += info.Size()
			}
		}
		return n
	}
	if n := size(m); n > each+20*limit {
		t.Errorf("the store has %d bytes", n)
	}

	imported := newMachine(t)
	imported.LogLimit = limit
	if _, err := imported.Import(t.Context(), &registry.Cache{Repo: r, Store: imported.Store, Platform: m.exec.Platform()}, []keys.ID{idOf(t, key)}); err != nil {
		t.Fatal(err)
	}
	if n := size(imported); n > each+20*limit {
		t.Errorf("the store of an import has %d bytes", n)
	}

	// What the store has, made when the limit was higher, is shown by the same rule.
	here := newMachine(t)
	here.Source = source
	here.run(text)
	here.LogLimit = limit
	o = here.run(text)
	o.want(strings.Repeat("s", steps+1))
	want("the store's", o.logs)
}
