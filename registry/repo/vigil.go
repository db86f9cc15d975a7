package repo

import (
	"fmt"
	"sync"
	"time"
)

const tellEvery = time.Minute // at most, the user is told of one host

// A vigil measures how long a host has been waited for since it last did what it was asked: the time in which anybody waits for it, however many
// do. It ends patience with the host as a whole, so that one that answers slowly, asks for pauses and breaks connections does not cost the limit of
// each.
type vigil struct {
	host  string
	most  time.Duration
	tell  func(msg string) // may be nil
	after time.Duration    // of waiting, it is told

	mu      sync.Mutex
	waiters int
	since   time.Time // the first of them waits
	spent   time.Duration
	why     string
	timer   *time.Timer
	told    time.Time
}

// begin notes that somebody waits, and why, and returns what ends that.
func (v *vigil) begin(why string) (end func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.why = why
	if v.waiters++; v.waiters == 1 {
		v.since = time.Now()
		v.watch()
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.spent = v.total()
			if v.waiters--; v.waiters == 0 && v.timer != nil {
				v.timer.Stop()
			}
			v.since = time.Now()
		})
	}
}

// watch sets the clock for what the user is told. v.mu is held.
func (v *vigil) watch() {
	if v.tell == nil || v.waiters == 0 {
		return
	}
	d := max(v.after-v.total(), 0)
	if v.timer == nil {
		v.timer = time.AfterFunc(d, v.say)
	} else {
		v.timer.Reset(d)
	}
}

func (v *vigil) say() {
	v.mu.Lock()
	total := v.total()
	if v.waiters == 0 || total < v.after || !v.told.IsZero() && time.Since(v.told) < tellEvery {
		v.mu.Unlock()
		return
	}
	v.told = time.Now()
	msg := fmt.Sprintf("waiting for %s: %s; for %v now, and for %v at most", v.host, v.why, total.Round(time.Second), v.most)
	v.mu.Unlock()
	v.tell(msg)
}

// total is what was waited for. v.mu is held.
func (v *vigil) total() time.Duration {
	if v.waiters == 0 {
		return v.spent
	}
	return v.spent + time.Since(v.since)
}

// relents notes that the host has done what it was asked: patience begins anew.
func (v *vigil) relents() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.spent, v.since = 0, time.Now()
	v.watch()
}

// adds counts time in which a host was waited for after all.
func (v *vigil) adds(d time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.spent += d
}

// reason is what the host was waited for last.
func (v *vigil) reason() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.why
}

// left is how much longer anybody waits.
func (v *vigil) left() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.most - v.total()
}

// isOver reports that nobody waits any longer.
func (v *vigil) isOver() bool { return v.left() <= 0 }

// within calls cancel when patience ends, unless stop is called first. Patience that begins anew meanwhile counts.
func (v *vigil) within(cancel func()) (stop func()) {
	var (
		mu    sync.Mutex
		timer *time.Timer
		done  bool
	)
	var check func()
	check = func() {
		mu.Lock()
		defer mu.Unlock()
		if done {
			return
		}
		if left := v.left(); left > 0 {
			timer = time.AfterFunc(left, check)
			return
		}
		done = true
		cancel()
	}
	check()
	return func() {
		mu.Lock()
		defer mu.Unlock()
		done = true
		if timer != nil {
			timer.Stop()
		}
	}
}
