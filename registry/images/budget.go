package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// A budget bounds what may be read to answer one question, however many documents a registry, a cache or a layout names for it.
type budget struct {
	documents int
	bytes     int64
	time      time.Duration // with all pauses that hosts ask for
}

// resolveBudget is for what one name means for one platform. That takes one index mostly, of some kilobytes; a list of images whose
// platforms it does not tell takes two documents each. The time is for a mirror that does not answer and for a registry that asks for
// pauses, after all of which it does.
var resolveBudget = budget{64, 16 << 20, 5 * time.Minute}

// A spending is what was taken of a budget. It may be nil: then there is none. It is the error that says that nothing is left, too.
type spending struct {
	budget
	wanted string // what is looked for
	began  time.Time

	mu        sync.Mutex
	documents int
	bytes     int64
}

func (b budget) spend(wanted string) *spending {
	return &spending{budget: b, wanted: wanted, began: time.Now()}
}

func (s *spending) Error() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("read %d documents of %s in %v without finding %s: at most %d documents, %s and %v are spent on that",
		s.documents, sizeText(s.bytes), time.Since(s.began).Round(100*time.Millisecond), s.wanted, s.budget.documents, sizeText(s.budget.bytes), s.time)
}

func sizeText(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d KiB", (n+1023)>>10)
	}
	return fmt.Sprintf("%.3g MiB", float64(n)/(1<<20))
}

// next allows one more document.
func (s *spending) next() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.documents >= s.budget.documents || s.bytes >= s.budget.bytes || time.Since(s.began) >= s.time {
		return s
	}
	s.documents++
	return nil
}

// read counts the bytes of a document.
func (s *spending) read(n int) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes += int64(n)
}

// isSpent reports an error that comes of an empty budget.
func isSpent(err error) bool {
	var s *spending
	return errors.As(err, &s)
}

type spendingKey struct{}

// within does something that reads documents, with a budget of its own. What ends with the time ends with the error that says so.
func within[T any](ctx context.Context, b budget, wanted string, do func(context.Context) (T, error)) (T, error) {
	s := b.spend(wanted)
	bounded, cancel := context.WithTimeoutCause(context.WithValue(ctx, spendingKey{}, s), b.time, s)
	defer cancel()
	v, err := do(bounded)
	if err != nil && bounded.Err() != nil {
		err = cmp.Or(ctx.Err(), context.Cause(bounded))
	}
	return v, err
}

// spendingOf is what documents that are read with ctx go from.
func spendingOf(ctx context.Context) *spending {
	s, _ := ctx.Value(spendingKey{}).(*spending)
	return s
}
