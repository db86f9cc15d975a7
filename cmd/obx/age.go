package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// An age is a flag for a time that may be long: what Go calls a duration, or days, as 30d.
type age struct{ d *time.Duration }

func (a age) Set(s string) error {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return fmt.Errorf("not a number of days, as 30d")
		}
		*a.d = time.Duration(n) * 24 * time.Hour
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("not a time, as 30d or 12h")
	}
	*a.d = d
	return nil
}

func (a age) String() string {
	if a.d == nil || *a.d == 0 {
		return ""
	}
	return a.d.String()
}

func (a age) Type() string { return "time" }

func addAge(f *pflag.FlagSet, d *time.Duration, name, usage string) { f.Var(age{d}, name, usage) }
