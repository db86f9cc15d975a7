package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ocurrent/obx/cas"
)

// minPrefix is how many digits of a key a user has to give.
const minPrefix = 6

// isKey reports whether s is a key or the beginning of one.
func isKey(s string) bool {
	return len(s) >= minPrefix && len(s) <= 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// findKey finds the recorded key that starts with prefix.
func findKey(st *cas.Store, domains []string, prefix string) (string, error) {
	if len(prefix) == 64 {
		return prefix, nil
	}
	var found []string
	for info, err := range st.Results() {
		if err != nil {
			return "", fmt.Errorf("list results: %w", err)
		}
		if slices.Contains(domains, info.Domain) && strings.HasPrefix(info.Result.Key, prefix) {
			found = append(found, info.Result.Key)
		}
	}
	slices.Sort(found)
	switch found = slices.Compact(found); len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", usage("obx cache ls lists what is recorded", "no recorded key starts with %s", prefix)
	}
	return "", usage("they are: "+strings.Join(found[:min(4, len(found))], ", "), "%d recorded keys start with %s", len(found), prefix)
}
