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

// checkKey refuses what is no key, nor the beginning of one.
func checkKey(s string) error {
	if !isKey(s) {
		return usage(fmt.Sprintf("a key is %d to 64 hex digits", minPrefix), "%s is no key", s)
	}
	return nil
}

// findKey finds the recorded key that starts with prefix.
func findKey(st *cas.Store, domains []string, prefix string) (string, error) {
	if len(prefix) == 64 {
		return prefix, nil
	}
	var recorded []string
	for info, err := range st.Results() {
		if err != nil {
			return "", fmt.Errorf("list results: %w", err)
		}
		if slices.Contains(domains, info.Domain) {
			recorded = append(recorded, info.Result.Key)
		}
	}
	return onlyKey(recorded, prefix)
}

// onlyKey is the one recorded key that starts with prefix.
func onlyKey(recorded []string, prefix string) (string, error) {
	var found []string
	for _, key := range recorded {
		if strings.HasPrefix(key, prefix) {
			found = append(found, key)
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
