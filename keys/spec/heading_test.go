package spec

import (
	"strings"
	"testing"
)

// What OCaml's Format prints for working directories and strings that are odd; the golden log has the others.
func TestHeadingIn(t *testing.T) {
	long := "/" + strings.Repeat("w", 70)
	for _, c := range []struct {
		name string
		dir  string
		op   Op
		want string
	}{
		{"it fits", "/", &Copy{Src: []string{strings.Repeat("s", 50)}, Dst: "/1234"},
			"/: (copy (src " + strings.Repeat("s", 50) + ") (dst /1234))"},
		{"it does not", "/", &Copy{Src: []string{strings.Repeat("s", 50)}, Dst: "/12345"},
			"/: (copy (src " + strings.Repeat("s", 50) + ")\n         (dst /12345))"},
		{"a directory that leaves no room", long, &Copy{Src: []string{"s"}, Dst: "d"},
			long + ": (copy \n  (src s)\n  (dst d))"},
		{"the same for a run", long, &Run{Command: "make", Network: []string{"host"}},
			long + ": (run \n  (network host)\n  (shell make))"},
		{"and for an operation of one line", long, &Env{Name: "A", Value: "v"}, long + ": \n  (env A v)"},
		{"which is not broken otherwise", "/", &Env{Name: "A", Value: strings.Repeat("v", 100)},
			"/: (env A " + strings.Repeat("v", 100) + ")"},
		{"lines of strings", "/", &Run{Command: "a\n\tb\n"},
			"/: (run (shell  \"a\\\n               \\n\\tb\\\n               \\n\"))"},
		{"a final newline alone", "/", &Comment{Text: "a\n"}, `/: (comment "a\n")`},
		{"a string far to the right", "/", &Env{Name: strings.Repeat("N", 70), Value: "a\nb"},
			"/: (env " + strings.Repeat("N", 70) + "  \"a\\\n" + strings.Repeat(" ", 68) + "\\nb\")"},
		{"empty lists", "/", &Copy{From: "b", Dst: ""}, `/: (copy (from (build b)) (src) (dst ""))`},
		{"options", "/", &Run{Secrets: []Mount{{ID: "s", Target: "/t", Options: []Option{{"uid", "1"}, {"mode", "0400"}}}}},
			"/: (run (secrets (s (target /t) (buildkit_options ((uid 1) (mode 0400)))))\n        (shell \"\"))"},
		{"a user of Windows", `C:\`, &User{Name: "ContainerUser"}, `C:\: (user (name ContainerUser))`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := HeadingIn(c.dir, c.op); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestHeading(t *testing.T) {
	got := Heading(&Run{Command: "make", Network: []string{"host"}})
	if want := "(run (network host)\n     (shell make))"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got, want := HeadingFrom(From{Image: "a b\nc"}), "(from  \"a b\\\n      \\nc\")"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestQuote(t *testing.T) {
	for s, want := range map[string]string{
		"":             `""`,
		"a":            "a",
		"a'b,c=d:e@f":  "a'b,c=d:e@f",
		"#":            "#",
		"a#|b":         `"a#|b"`,
		"|#":           `"|#"`,
		"a b":          `"a b"`,
		"(":            `"("`,
		";":            `";"`,
		"é\x7f\x00":    `"\195\169\127\000"`,
		"\n\t\r\b\\\"": `"\n\t\r\b\\\""`,
		"'~$|#|":       `"'~$|#|"`,
	} {
		if got := Quote(s); got != want {
			t.Errorf("%q: got %s, want %s", s, got, want)
		}
	}
}
