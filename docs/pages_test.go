package docs_test

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/ocurrent/obx/docs"
)

func page(t *testing.T, name string) docs.Page {
	t.Helper()
	for _, p := range docs.Pages {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("there is no page %s", name)
	return docs.Page{}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// All files of the manual are pages, which the README lists, and which fit a terminal. Only tables and programs may be wide.
func TestPages(t *testing.T) {
	files, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(docs.Pages) {
		t.Errorf("there are %d pages and the files %q", len(docs.Pages), files)
	}
	readme := read(t, "../README.md")
	for _, p := range docs.Pages {
		text := p.Markdown()
		if !strings.HasPrefix(text, "# ") {
			t.Errorf("%s has no heading", p.Name)
		}
		if !strings.Contains(readme, "(docs/"+p.Name+".md)") {
			t.Errorf("the README does not list %s", p.Name)
		}
		program := false
		for i, line := range strings.Split(text, "\n") {
			if strings.HasPrefix(line, "```") {
				program = !program
			}
			most := 132
			if program || strings.HasPrefix(line, "|") {
				most = 160
			}
			if utf8.RuneCountInString(line) > most || strings.Contains(line, "\t") && !program {
				t.Errorf("%s:%d is too long, or has a tab", p.Name, i+1)
			}
		}
		if printed := p.Text(); strings.Contains(printed, "](") {
			t.Errorf("a link is left in what obx help %s prints", p.Name)
		}
	}
}

// What a page prints on a terminal is its text without the targets of links.
func TestText(t *testing.T) {
	printed := page(t, "windows").Text()
	if !strings.HasPrefix(printed, "# Windows") || strings.Contains(printed, ".md)") || !strings.Contains(printed, "obx help ") {
		t.Error(printed)
	}
	if text := page(t, "spec"); len(examples(text.Text())) != len(examples(text.Markdown())) {
		t.Error("an example is not printed as it is")
	}
}

// The README is short.
func TestReadme(t *testing.T) {
	lines := strings.Split(strings.TrimSuffix(read(t, "../README.md"), "\n"), "\n")
	if len(lines) > 150 {
		t.Errorf("the README has %d lines", len(lines))
	}
	for i, line := range lines {
		if utf8.RuneCountInString(line) > 100 {
			t.Errorf("README.md:%d is longer than 100 columns", i+1)
		}
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)#]*)(#[^)]*)?\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	inWord  = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// Links of the documents lead to files of the repository, and to headings in them.
func TestLinks(t *testing.T) {
	files, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, "../README.md", "../ARCHITECTURE.md", "../CHANGELOG.md", "../registry/FORMAT.md") {
		for _, m := range link.FindAllStringSubmatch(read(t, file), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			to := file
			if m[1] != "" {
				to = filepath.Join(filepath.Dir(file), filepath.FromSlash(m[1]))
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: %s: %v", file, m[0], err)
				continue
			}
			if m[2] == "" || path.Ext(to) != ".md" {
				continue
			}
			found := false
			for _, h := range heading.FindAllStringSubmatch(read(t, to), -1) {
				anchor := strings.ReplaceAll(inWord.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-")
				found = found || "#"+anchor == m[2]
			}
			if !found {
				t.Errorf("%s: %s: there is no such heading", file, m[0])
			}
		}
	}
}
