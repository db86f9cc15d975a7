package spec

import (
	"errors"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

func TestReader(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"bare words", `a'b,c=d:e@f#g|h ~ $HOME 1+1 # | é`, `"a'b,c=d:e@f#g|h" "~" "$HOME" "1+1" "#" "|" "é"`},
		{"words touch", `a"b"(c)d;e`, `"a" "b" ("c") "d"`},
		{"escapes", `"\n\t\r\b\"\'\\\065\x41\xfF\000"`, `"\n\t\r\b\"'\\AA\xff\x00"`},
		{"unknown escapes stay", `"\q\ \$\é\(" `, `"\\q\\ \\$\\é\\("`},
		{"continuation", "\"a \\\n \t b\\\r\n  c\\n\\\n\n\"", `"a bc\n\n"`},
		{"raw newlines", "\"a\n  b\r\n\"", `"a\n  b\r\n"`},
		{"comments", "a ; b\nc #| d #| e |# \"|#\" |# f #;g h #; #; i j #;(k #;l (m)) n", `"a" "c" "f" "h" "n"`},
		{"hash before a semicolon ends a word", "a#;b\nc", `"a#" "c"`},
		{"line ends", "a\r\n;b\r\nc\fd\te", `"a" "c" "d" "e"`},
		{"byte order mark", "\ufeffa", `"a"`},
		{"NUL", "\"\x00\" a\x00b", `"\x00" "a\x00b"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newReader("f", c.text)
			doc := r.document()
			if len(r.errs) > 0 {
				t.Fatal(r.errs)
			}
			if got := dump(doc); got != "("+c.want+")" {
				t.Errorf("read %s, want (%s)", got, c.want)
			}
		})
	}
}

func TestParse(t *testing.T) {
	s := mustParse(t, `((build dev
  ((from debian@sha256:abc)
   (comment "hello")))
 (from busybox)
 (comment c)
 (workdir /w)
 (shell)
 (shell /bin/sh -c)
 (env A "")
 (user (gid 0b11) (uid 0x1_0))
 (user (uid 010) (gid -0o17))
 (user (name ContainerUser))
 (run (shell ls))
 (run (secrets (p) (q (target /q) (buildkit_options ((mode 0400) (uid 1)))))
      (network host) (cache (c (buildkit_options ()) (target /c))) (shell "a\
        b"))
 (copy (dst ./) (src a "b c") (exclude .git) (from (build dev)))
 (copy (from context) (src) (dst "")))`)
	at := func(line, col int) Pos { return Pos{line, col} }
	want := Stage{
		Pos: at(1, 1),
		Builds: []Build{{Pos: at(1, 2), Name: "dev", Stage: &Stage{
			Pos:  at(2, 3),
			From: From{at(2, 4), "debian@sha256:abc"},
			Ops:  []Op{&Comment{at(3, 4), "hello"}},
		}}},
		From: From{at(4, 2), "busybox"},
		Ops: []Op{
			&Comment{at(5, 2), "c"},
			&Workdir{at(6, 2), "/w"},
			&Shell{at(7, 2), nil},
			&Shell{at(8, 2), []string{"/bin/sh", "-c"}},
			&Env{at(9, 2), "A", ""},
			&User{Pos: at(10, 2), UID: 16, GID: 3},
			&User{Pos: at(11, 2), UID: 10, GID: -15},
			&User{Pos: at(12, 2), Name: "ContainerUser"},
			&Run{Pos: at(13, 2), Command: "ls"},
			&Run{
				Pos: at(14, 2), Command: "ab", Network: []string{"host"},
				Caches: []Mount{{at(15, 29), "c", "/c", nil}},
				Secrets: []Mount{
					{at(14, 16), "p", "/run/secrets/p", nil},
					{at(14, 20), "q", "/q", []Option{{"mode", "0400"}, {"uid", "1"}}},
				},
			},
			&Copy{Pos: at(17, 2), From: "dev", Src: []string{"a", "b c"}, Dst: "./", Exclude: []string{".git"}},
			&Copy{Pos: at(18, 2)},
		},
	}
	if !reflect.DeepEqual(s.Stage, want) {
		t.Errorf("got\n%#v\nwant\n%#v", s.Stage, want)
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"empty", " \n ; nothing\n", "3:1: no spec here: expected ((from IMAGE) OPERATION...)"},
		{"unclosed", "((from a)\n (run (shell b))", "1:1: opening parenthesis without a closing one"},
		{"unclosed inside", "((from a)\n (run (shell b)", "2:2: opening parenthesis without a closing one"},
		{"closed twice", "((from a)))\n)", "1:11: closing parenthesis without an opening one\n2:1: closing parenthesis without an opening one"},
		{"string", "((from \"a))", "1:8: string without an end"},
		{"string after a backslash", `((from "a\`, "1:8: string without an end"},
		{"block comment", "((from a)) #| #| |#", "1:12: block comment without an end"},
		{"string in a block comment", "((from a)) #| \" |#", "1:12: block comment without an end: a double quote in it opens a string that does not end"},
		{"nothing to take out", "((from a) #; )", "1:11: #; with no S-expression behind it"},
		{"comment mark in a word", "((from a#|b|#))", "1:8: #| in the bare word a#|b|#: put the word in double quotes, or a space before the comment"},
		{"end of a comment", "((from a) |#)", "1:11: |# in the bare word |#: put the word in double quotes, or a space before the comment"},
		{"carriage return", "((from a)\r(shell))", "1:10: carriage return that does not end a line"},
		{"two bad escapes",
			`((from "\08") (env "\xgg" "\256"))`,
			`1:9: bad escape in a string: write \ with three decimal digits, \x with two hexadecimal ones, or \\ for a backslash
1:21: bad escape in a string: write \ with three decimal digits, \x with two hexadecimal ones, or \\ for a backslash
1:28: bad escape in a string: \256 is more than \255`},
		{"deep", strings.Repeat("(", maxDepth+1), "1:501: nested deeper than 500 levels"},
		{"deep comments", strings.Repeat("#;", maxDepth+1), "1:1001: nested deeper than 500 levels"},
		{"no outer parentheses", "(from a)\n(shell)", "2:1: a second S-expression: a spec is one, ((from IMAGE) OPERATION...) with parentheses around all of it"},
		{"every mistake, in order", `((run (shell "a" b) (cach) (cahce (c)) (shell x))
 (from)
 (from b)
 (build c ((from d)))
 (build)
 (build (e) ((from f)))
 (env A)
 (env A (b))
 (user)
 (user (uid one) (gid 1) (gid 2))
 (workdir (a)))`, `1:2: (run ...) before (from ...) at 2:2
1:7: expected (shell COMMAND) with one argument, found 2: put the command in double quotes
1:22: unknown field cach of run: did you mean cache?
1:29: unknown field cahce of run: did you mean cache?
1:40: repeated field shell: the first is at 1:7
2:2: expected (from IMAGE), found 0 arguments
3:2: a second from in this stage: the first is at 2:2
4:2: build after from: nested builds come before (from ...) at 2:2
5:2: expected (build NAME ((from IMAGE) OPERATION...)), found 0 arguments
5:2: build after from: nested builds come before (from ...) at 2:2
6:2: build after from: nested builds come before (from ...) at 2:2
6:9: expected a name in (build NAME ((from IMAGE) OPERATION...)), found (e ...)
7:2: expected (env NAME VALUE), found 1 argument
8:9: expected a word or string in env, found (b ...)
9:2: expected (user (uid N) (gid N)), or (user (name NAME)) for Windows
10:13: expected a number in (uid N), found the word one
10:26: repeated field gid: the first is at 10:18
11:11: expected a word or string in (workdir DIR), found (a ...)`},
		{"capitals",
			"((from a) (Shell b) (COPY (src a) (dst b)))",
			"1:12: unknown operation Shell: did you mean shell?\n1:22: unknown operation COPY: did you mean copy?",
		},
		{"copy",
			"((from a) (copy (src b) (dst c d) (from e)) (copy (from (build \"\")) (src f) (dst g)) (copy (dsr h)))",
			`1:25: expected (dst PATH), found 2 arguments
1:41: expected (from context) or (from (build NAME)), found the word e: did you mean (from (build e))?
1:57: empty build name
1:86: copy without (src PATH...)
1:86: copy without (dst PATH)
1:93: unknown field dsr of copy: did you mean dst?`},
		{"mounts",
			"((from a) (run (cache (c) ((target /d)) (e (target)) (f (target /f) (target /g)) (h (target /h) (buildkit_options (a b)))) (shell \"\")))",
			`1:23: cache c without (target DIR)
1:27: expected (ID (target PATH)), found a list of lists
1:44: expected (target PATH), found 0 arguments
1:69: repeated field target: the first is at 1:57
1:97: expected (buildkit_options ((KEY VALUE)...)) with two pairs of parentheses`},
		{"empty user name", `((from a) (user (name "")))`, "1:17: empty user name"},
		{"huge number",
			`((from a) (user (uid 99999999999999999999) (gid 0x_1)))`,
			"1:22: expected a number in (uid N), found the word 99999999999999999999\n1:49: expected a number in (gid N), found the word 0x_1",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("f", []byte(c.text))
			var l ErrorList
			if !errors.As(err, &l) {
				t.Fatalf("got %v", err)
			}
			if got := strings.ReplaceAll(err.Error(), "f:", ""); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			var first *Error
			if !errors.As(err, &first) || first != l[0] {
				t.Errorf("the first error is not in reach: %v", first)
			}
		})
	}
}

func TestParseInt(t *testing.T) {
	for word, want := range map[string]int{
		"0": 0, "-0": 0, "+7": 7, "010": 10, "0x1F": 31, "0XfF": 255, "0o17": 15, "0b101": 5, "0u9": 9, "1_000_": 1000,
		"-12": -12, strconv.Itoa(math.MaxInt): math.MaxInt,
	} {
		if got, ok := parseInt(word); !ok || got != want {
			t.Errorf("%s: got %d, %v", word, got, ok)
		}
	}
	for _, word := range []string{"", "-", "+-1", "_1", "0x", "0x_1", "0b2", "1e3", "1.5", "9223372036854775808", " 1"} {
		if got, ok := parseInt(word); ok {
			t.Errorf("%q: got %d", word, got)
		}
	}
}

// dump prints a node with Go's quotes.
func dump(n *node) string {
	if !n.list {
		return gostring(n.text)
	}
	kids := make([]string, len(n.kids))
	for i, kid := range n.kids {
		kids[i] = dump(kid)
	}
	return "(" + strings.Join(kids, " ") + ")"
}
