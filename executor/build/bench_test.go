package build_test

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkLookUp asks for the state of a build of 400 steps: with all results there, and with one lost near the bottom, as the
// worst case of looking for the deepest whole result. Both are linear in the number of steps.
func BenchmarkLookUp(b *testing.B) {
	m := newMachine(b)
	var text strings.Builder
	text.WriteString("((from scratch)")
	for i := range 400 {
		fmt.Fprintf(&text, `(run (shell "echo %d"))`, i)
	}
	text.WriteString(")")
	o := m.run(text.String())
	for _, lost := range []int{0, 2} {
		b.Run(fmt.Sprintf("lost=%d", lost), func(b *testing.B) {
			if lost > 0 {
				o.lose(lost)
			}
			for b.Loop() {
				if _, _, err := m.Status(b.Context(), o.plan); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
