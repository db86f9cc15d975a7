package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	inCode    = regexp.MustCompile("`obx ([^`]+)`")
	inBlock   = regexp.MustCompile(`(?m)^    (?:[a-z-]+\$ )?(?:\.build/)?obx (.*)$`)
	flagLine  = regexp.MustCompile(`(?m)^    -?-([a-z][a-z-]*)`)
	shellWord = regexp.MustCompile(`(?:"[^"]*"|[^\s"])+`)
)

// The README and the pages call commands that there are, with flags that they have, and name topics that there are.
func TestPagesCommands(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	for _, file := range append(files, "../../README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		page := strings.ReplaceAll(string(text), "\\\n", " ") // lines that are continued
		for _, m := range append(inBlock.FindAllStringSubmatch(page, -1), inCode.FindAllStringSubmatch(page, -1)...) {
			calls++
			if err := checkCall(m[1]); err != nil {
				t.Errorf("%s: obx %s: %v", filepath.Base(file), m[1], err)
			}
		}
		run := runCommand()
		for _, m := range flagLine.FindAllStringSubmatch(page, -1) {
			if f := run.Flags(); f.Lookup(m[1]) == nil && (len(m[1]) > 1 || f.ShorthandLookup(m[1]) == nil) {
				t.Errorf("%s: obx run has no flag %s", filepath.Base(file), m[1])
			}
		}
	}
	if calls < 80 {
		t.Errorf("the pages have %d calls", calls)
	}
}

// checkCall looks whether a line calls a command as it can be called. What follows the call, after two spaces or an operator of the shell, is cut off.
func checkCall(line string) error {
	for _, end := range []string{"  ", " > ", " | ", " < ", " && ", "...", ", obx "} {
		line, _, _ = strings.Cut(line, end)
	}
	line = strings.NewReplacer("[", "", "]", "").Replace(strings.Join(strings.Fields(line), " "))
	words := shellWord.FindAllString(line, -1)
	root := newRoot(nil)
	if words[0] == "help" {
		if words = words[1:]; len(words) == 0 || words[0] == "NAME" || words[0] == "COMMAND" {
			return nil
		}
		_, _, err := root.Find(words)
		return err
	}
	cmd, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	if cmd == root {
		return unknownCommand(root, line)
	}
	return cmd.ParseFlags(rest)
}
