package docs_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/ocurrent/obx/keys/spec"
)

// examples are the indented blocks of a page that are specs, or operations of one. Grammar has words in capitals that no spec has.
func examples(page string) []string {
	var all []string
	var block []string
	for line := range strings.SplitSeq(page+"\n", "\n") {
		if text, ok := strings.CutPrefix(line, "    "); ok {
			block = append(block, text)
			continue
		}
		if text := strings.Join(block, "\n"); text != "" && !grammar.MatchString(text) {
			all = append(all, text)
		}
		block = nil
	}
	return all
}

var grammar = regexp.MustCompile(`:=|\[\(|\.\.\.\)`)

// Every example of the page is a spec, or operations of one, without a mistake.
func TestSpecExamples(t *testing.T) {
	all := examples(page(t, "spec").Markdown())
	if len(all) < 15 {
		t.Fatalf("there are %d examples", len(all))
	}
	for _, text := range all {
		whole := text
		if !strings.HasPrefix(text, "((") {
			whole = "((build tools ((from busybox))) (from busybox)\n" + text + "\n)"
		}
		s, err := spec.Parse("spec.md", []byte(whole))
		if err == nil {
			err = s.Check("linux")
		}
		if err != nil {
			t.Errorf("%v in\n%s", err, text)
			continue
		}
		if len(s.Warnings()) > 0 {
			t.Errorf("%v in\n%s", s.Warnings(), text)
		}
	}
}

// The page names every operation and field.
func TestSpecWhole(t *testing.T) {
	text := page(t, "spec").Markdown()
	for _, name := range []string{
		"(from ", "(build ", "(comment ", "(workdir ", "(shell ", "(env ", "(user ", "(uid ", "(gid ", "(name ", "(run ", "(copy ",
		"(src ", "(dst ", "(exclude ", "(cache ", "(network ", "(secrets ", "(target ", "(buildkit_options ",
	} {
		if !strings.Contains(text, name) {
			t.Errorf("nothing is said of %s", name)
		}
	}
}
