package spec

import (
	"fmt"
	"strings"
	"testing"
)

// All mistakes are told at once: those of parentheses and quotes, of the grammar, and of names.
func TestRecover(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"grammar and names", `((build dev ((from debian) (runn (shell x))))
 (from busybox)
 (user (uid one) (gid -1))
 (copy (from (build devs)) (src ../a) (dst /a)))`, `1:29: unknown operation runn: did you mean run?
3:13: expected a number in (uid N), found the word one
3:23: gid -1 is not between 0 and 4294967294
4:14: unknown build devs: did you mean dev?
4:33: .. in the source ../a: a copy cannot leave the build's files`},
		{"a from that is misspelt", `((form busybox) (run (network hots) (shell x)))`, `1:3: unknown operation form: did you mean from?
1:31: unknown network hots: (network host) is the host's, without a network field there is none`},
		{"a build that is misspelt", `((biuld dev ((from a))) (stage docs ((from a))) (from b)
 (copy (from (build dev)) (src a) (dst a)) (copy (from (build docs)) (src a) (dst a)) (copy (from (build dcos)) (src a) (dst a)))`,
			`1:3: unknown operation biuld: did you mean build?
1:26: unknown operation stage: did you mean build?
2:99: unknown build dcos: did you mean docs?`},
		{"what is not understood is not called empty",
			`((build (e) ((from (x)))) (from (y)) (copy (src (a)) (dst b)) (run (cache (c (target (d)))) (shell x)))`,
			`1:9: expected a name in (build NAME ((from IMAGE) OPERATION...)), found (e ...)
1:33: expected a word or string in (from IMAGE), found (y ...)
1:49: expected a word or string in src, found (a ...)
1:86: expected a word or string in (target PATH), found (d ...)`},
		{"a build that comes too late", `((from a) (build dev ((from b))) (copy (from (build dev)) (src a) (dst b)))`,
			`1:11: build after from: nested builds come before (from ...) at 1:2`},
		{"a parenthesis is missing", `((from a)
 (run (shell "b")
 (copy (src ../x) (dst y))
 (workdri /z))`, `2:2: opening parenthesis without a closing one before line 3
3:13: .. in the source ../x: a copy cannot leave the source directory
4:3: unknown operation workdri: did you mean workdir?`},
		{"several parentheses are missing", `((build dev
  ((from a)
   (run (shell "b"))
 (from c)
 (copy (from (build dve)) (src x) (dst y)
 (run (shell x`, `1:2: opening parenthesis without a closing one before line 4
2:3: opening parenthesis without a closing one before line 4
5:2: opening parenthesis without a closing one before line 6
5:14: unknown build dve: did you mean dev?
6:7: opening parenthesis without a closing one`},
		{"operations at the margin", "(\n(from a)\n(run (shell b)\n(rnu (shell c)))", `3:1: opening parenthesis without a closing one before line 4
4:2: unknown operation rnu: did you mean run?`},
		{"a parenthesis too many", `((from a)
 (run (shell "b"))) ; done
 (copy (src ..) (dst y)))`, `2:19: closing parenthesis without an opening one: more follows
3:13: .. in the source ..: a copy cannot leave the source directory`},
		{"the spec ends too early", `((from a)
 (run (shell "b")))
 (copy (src ..) (dst y))`, `3:2: a second S-expression: a spec is one, ((from IMAGE) OPERATION...) with parentheses around all of it
3:13: .. in the source ..: a copy cannot leave the source directory`},
		{"no outer parentheses",
			"(from a)\n(run (shell x))\n(copy (src ..) (dst y))",
			`2:1: a second S-expression: a spec is one, ((from IMAGE) OPERATION...) with parentheses around all of it
3:12: .. in the source ..: a copy cannot leave the source directory`},
		{"a quote is missing", `((from a)
 (comment "two
   lines")
 (run (shell "make))
 (run (shell "make (test)"))
 (copy (src ..) (dst "y")))`, `4:14: string without an end
6:13: .. in the source ..: a copy cannot leave the source directory`},
		{"a quote is missing at the end", `((from a) (rnu (shell x)) (run (shell "make)))`, `1:12: unknown operation rnu: did you mean run?
1:39: string without an end`},
		{"instructions of a Dockerfile",
			`((from a) (ENTRYPOINT x) (add a b) (arg X) (volume /x) (env A=b) (inport x))`,
			`1:12: unknown operation ENTRYPOINT: a spec makes files; what else an image says is for --output
1:27: unknown operation add: (copy (src PATH...) (dst PATH)) copies files, (run ...) fetches or unpacks them
1:37: unknown operation arg: a spec has no arguments, (env NAME VALUE) sets a variable
1:45: unknown operation volume: a directory that outlives a step is a cache, (run (cache (ID (target DIR))) (shell COMMAND))
1:56: expected (env NAME VALUE), found 1 argument: did you mean (env A b)?
1:67: unknown operation inport: there are comment, workdir, shell, env, user, run, copy`},
		{"a carriage return", "((from a)\r(rnu))", "1:10: carriage return that does not end a line\n1:12: unknown operation rnu: did you mean run?"},
		{"a Dockerfile",
			"# syntax=docker/dockerfile:1\n\nFROM debian:12 AS dev\nRUN make\n",
			"3:1: this is a Dockerfile (FROM), and no spec: obx help spec shows how the same is written",
		},
		{"a Dockerfile with arguments", "arg V=12\nfrom debian:$V\n", "1:1: this is a Dockerfile (ARG), and no spec: obx help spec shows how the same is written"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, errs := ParsePartial("f", []byte(c.text))
			if err := s.Check("linux"); err != nil {
				errs = errs.Merge(err.(ErrorList))
			}
			if got := strings.ReplaceAll(errs.Error(), "f:", ""); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if s, err := Parse("f", []byte(c.text)); s != nil || err == nil {
				t.Errorf("Parse gave %v, %v", s, err)
			}
		})
	}
}

// What nobody would write costs no more than what it is long: a service checks specs of others. The time for twice the length is twice the time.
func BenchmarkLongMistakes(b *testing.B) {
	for name, text := range map[string]func(n int) string{
		"much on an indented line": func(n int) string {
			return "((from a)\n" + strings.Repeat(" ", 2*n) + "(run " + strings.Repeat("a ", n) + "(shell b))"
		},
		"a directory that grows": func(n int) string { return "((from a)" + strings.Repeat("(workdir longname)", n) + ")" },
	} {
		for _, n := range []int{25_000, 50_000} {
			b.Run(fmt.Sprint(name, "/", n), func(b *testing.B) {
				text := []byte(text(n))
				b.SetBytes(int64(len(text)))
				for b.Loop() {
					if s, errs := ParsePartial("f", text); len(errs) == 0 && s.Check("linux") == nil {
						b.Fatal("no mistake is found")
					}
				}
			})
		}
	}
}
