package rootless

import (
	"slices"
	"testing"
)

func TestRanges(t *testing.T) {
	p := person{"ann", "1000"}
	for _, c := range []struct {
		lines []string
		want  []idRange
		err   string
	}{
		{lines: nil},
		{lines: []string{"bob:100000:65536", "# ann:1:1", ""}},
		{lines: []string{"bob:100000:65536", "ann:165536:65536"}, want: []idRange{{1, 165536, 65536}}},
		{lines: []string{"1000:5:3", "ann:165536:65536"}, want: []idRange{{1, 5, 3}, {4, 165536, 65536}}},
		{lines: []string{"ann:5:0"}},
		{lines: []string{"annabel:5:3"}},
		{lines: []string{"bob:x:y", "ann:1"}, err: "line 2: not USER:FIRST:COUNT"},
		{lines: []string{"ann:x:3"}, err: `line 1: strconv.Atoi: parsing "x": invalid syntax`},
	} {
		got, err := p.ranges(c.lines)
		if !slices.Equal(got, c.want) || err == nil != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%q: got %v, %v", c.lines, got, err)
		}
	}
}
