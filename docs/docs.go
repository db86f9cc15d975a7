// Package docs holds the pages of the manual. A page is read in a browser, from this directory, and on a terminal, where `obx help NAME` prints it:
// one text for both, so that they cannot differ.
package docs

import (
	"embed"
	"regexp"
	"strings"
)

// A Page is one page of the manual.
type Page struct {
	Name  string // of its file, without .md, and of its topic of `obx help`
	About string // what it tells, for a list
}

// Pages are all pages, in the order in which a newcomer may want them.
var Pages = []Page{
	{"spec", "The language of specs, and what surprises in it"},
	{"caches", "The store, sharing results, whom to trust, working without a network"},
	{"images", "Base images, and the images that obx writes"},
	{"rootless", "As an ordinary user, and in containers"},
	{"qemu", "Virtual machines, and disks as base images"},
	{"containerd", "Through a machine's containerd"},
	{"windows", "Windows containers"},
	{"security", "Who may be hostile, and what keeps whom from what"},
	{"obuilder", "Moving from OBuilder"},
	{"library", "obx as a Go library, with a whole program"},
}

//go:embed *.md
var files embed.FS

// Markdown is the page as its file has it.
func (p Page) Markdown() string {
	text, err := files.ReadFile(p.Name + ".md")
	if err != nil {
		panic(err) // the page is part of the program
	}
	return string(text)
}

// Text is the page for a terminal: links are gone, what they say stays.
func (p Page) Text() string {
	link := regexp.MustCompile(`\[([^\]]+)\]\([^)]+\)`)
	return strings.TrimSpace(link.ReplaceAllString(p.Markdown(), "$1"))
}
