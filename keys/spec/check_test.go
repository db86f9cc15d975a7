package spec

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

func gostring(s string) string { return strconv.Quote(s) }

func manyMounts(n int, id string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "(%s (target /%s/%d)) ", id, id, i)
	}
	return b.String()
}

func manyVariables(n, length int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "(env V%d %s) ", i, strings.Repeat("x", length))
	}
	return b.String()
}

func TestCheck(t *testing.T) {
	for _, c := range []struct{ name, os, text, want string }{
		{"scope", "linux", `((build a ((build inner ((from x))) (from y) (copy (from (build a)) (src f) (dst g)) (copy (from (build b)) (src f) (dst g))))
 (build b ((from x) (copy (from (build a)) (src f) (dst g))))
 (build a ((from x) (copy (from (build a)) (src f) (dst g))))
 (from x)
 (copy (from (build b)) (src f) (dst g))
 (copy (from (build inner)) (src f) (dst g))
 (copy (from (build B)) (src f) (dst g))
 (copy (from (build else)) (src f) (dst g)))`, `1:58: unknown build a: the one at 1:2 is not in scope, ` +
			`a copy sees the builds of its own stage and earlier ones of the stages around it
1:98: unknown build b: the one at 2:2 is not in scope, a copy sees the builds of its own stage and earlier ones of the stages around it
6:14: unknown build inner: the one at 1:12 is not in scope, a copy sees the builds of its own stage and earlier ones of the stages around it
7:14: unknown build B: did you mean b?
8:14: unknown build else: there are b, a`},
		{"did you mean", "linux", `((build dev ((from x))) (build docs ((from x))) (from x) (copy (from (build devs)) (src a) (dst b)))`,
			"1:70: unknown build devs: did you mean dev?"},
		{"names", "linux", `((build "" ((from ""))) (from "a b"))`,
			"1:2: empty build name\n1:13: empty image name in (from IMAGE)\n1:25: space or control character in the image name \"a b\""},
		{"variables", "linux", `((from x) (env "" v) (env A=B v) (env "A\000" "\000") (env a.b-c ""))`,
			"1:16: empty variable name\n1:27: = in the variable name A=B: write (env NAME VALUE)\n1:39: NUL byte in env\n1:47: NUL byte in env"},
		{"NUL bytes", "linux", `((from x) (comment "\000") (workdir "\000") (shell a "\000") (run (shell "\000")) (copy (src "\000") (dst "\000") (exclude "\000")))`,
			"1:20: NUL byte in comment\n" +
				"1:37: NUL byte in workdir\n" +
				"1:54: NUL byte in shell\n" +
				"1:74: NUL byte in shell\n" +
				"1:94: NUL byte in src\n" +
				"1:107: NUL byte in dst\n" +
				"1:124: NUL byte in exclude"},
		{"users", "linux", `((from x) (user (uid -1) (gid 4294967295)) (user (uid 4294967294) (gid 0)) (user (name opam)))`,
			"1:22: uid -1 is not between 0 and 4294967294\n" +
				"1:31: gid 4294967295 is not between 0 and 4294967294\n" +
				"1:82: a user by name is for Windows only: expected (user (uid N) (gid N))"},
		{"users on Windows", "windows", `((from x) (user (name opam)) (user (uid 1000) (gid 1000)))`, ""},
		{"networks", "linux", `((from x) (run (shell a) (network)) (run (shell a) (network host)) (run (shell a) (network nat)) (run (shell a) (network host host)))`,
			"1:92: unknown network nat: (network host) is the host's, without a network field there is none\n" +
				"1:113: 2 networks in one run: (network host) is the host's, without a network field there is none"},
		{"networks on Windows", "windows", `((from x) (run (shell a) (network nat)))`, ""},
		{"targets", "linux", `((from x) (run (cache (a (target /c)) ("" (target "")) (b (target c)) (d (target //c/.)) (e (target /)))` +
			` (secrets (f (target /c/)) (g (target "/\000")) (a)) (shell x)))`,
			"1:39: empty name of a cache\n" +
				"1:43: empty target of cache \"\"\n" +
				"1:59: target c of cache b is not an absolute path\n" +
				"1:74: another mount of this run has the target //c/. too\n" +
				"1:93: cache e would hide the whole root directory\n" +
				"1:118: another mount of this run has the target /c/ too\n" +
				"1:135: NUL byte in the target of secret g"},
		{"targets on Windows", "windows", `((from x) (run (cache (a (target "C:\\c")) (b (target c:/C/)) (c (target /d)) (d` +
			` (target "\\D")) (e (target C:x))) (shell x)))`,
			"1:47: another mount of this run has the target c:/C/ too\n" +
				"1:82: another mount of this run has the target \"\\\\D\" too\n" +
				"1:101: target C:x of cache e is not an absolute path"},
		{"sharing", "linux", `((from x) (run (cache (a (target /a) (buildkit_options ((sharing locked) (mode 0777)))) (b (target /b)` +
			` (buildkit_options ((sharing any) (sharing shared))))) (secrets (c (buildkit_options ((sharing any))))) (shell x)))`,
			"1:104: unknown sharing any of cache b: expected shared, locked or private\n1:104: repeated option sharing of cache b"},
		{"sources", "linux", `((from x) (copy (src) (dst /)) (copy (src a ../b c/../d ..e) (dst /x/)) (copy (src a b) (dst "")) (copy` +
			` (src a b) (dst .)) (copy (src a) (dst a/..)))`,
			"1:17: copy without a source\n" +
				"1:45: .. in the source ../b: a copy cannot leave the source directory\n" +
				"1:50: .. in the source c/../d: a copy cannot leave the source directory\n" +
				"1:120: several sources need a destination that ends with /: did you mean ./?\n" +
				"1:143: .. in the destination a/.."},
		{"mounts at the limit", "linux", `((from x) (run (cache ` + manyMounts(60, "c") + `) (secrets ` + manyMounts(40, "s") + `) (shell x)))`, ""},
		{"too many mounts", "linux", `((from x)
 (run (cache ` + manyMounts(61, "c") + `) (secrets ` + manyMounts(40, "s") + `) (shell x)))`,
			"2:2: 101 caches and secrets in one run: at most 100 can be mounted"},
		{"too many mounts on Windows", "windows", `((from x) (run (cache ` + manyMounts(101, "c") + `) (shell x)))`,
			"1:11: 101 caches and secrets in one run: at most 100 can be mounted"},
		{"arguments at the limit", "linux", `((from x) (env A ` + strings.Repeat("x", maxArgument-2) + `)` +
			` (shell ` + strings.Repeat("x", maxArgument) + `) (run (shell ` + strings.Repeat("x", maxArgument) + `)))`,
			""},
		{"arguments", "linux", `((from x)
 (env A ` + strings.Repeat("x", maxArgument-1) + `)
 (shell a ` + strings.Repeat("x", maxArgument+1) + `)
 (run (shell ` + strings.Repeat("x", maxArgument+1) + `)))`,
			"2:9: the variable A has 131072 bytes: Linux takes 131071, so put it into a file\n" +
				"3:11: an argument has 131072 bytes: Linux takes 131071, so put it into a file\n" +
				"4:14: the command has 131072 bytes: Linux takes 131071, so put it into a file"},
		{"arguments on Windows", "windows", `((from x) (run (shell ` + strings.Repeat("x", maxArgument+1) + `)))`, ""},
		{"process", "linux", `((from x) ` + manyVariables(10, 1<<20/10-100) + ` (run (shell true)) (env V3 "") (run (shell true))
 (env V3 ` + strings.Repeat("x", 3000) + `) ` + manyVariables(1, 1<<20/10+1000) + ` (run (shell true)))`, ""},
		{"process over the limit", "linux", `((from x) ` + manyVariables(10, 1<<20/10) + `
 (run (shell true)) (env V3 "") (run (shell true)))`,
			"2:2: a command of 1048703 bytes with its shell and variables: Linux takes 1048576, so put long values into a file"},
		{"variables at the limit", "linux", `((from x) ` + manyVariables(1000, 1) + manyVariables(1000, 2) + ` (run (shell true)))`, ""},
		{"too many variables", "linux", `((from x) ` + manyVariables(1000, 1) + `
 (env A a))`, "2:2: more than 1000 variables in one stage"},
		{"paths", "linux", `((from x) (workdir ` + strings.Repeat("d", 256) + `) (workdir /) (copy (src a)` +
			` (dst ` + strings.Repeat("d", 256) + `/x)) (workdir /` + strings.Repeat("d/", 500) + `)
 (workdir ` + strings.Repeat("e/", 20) + `) (copy (src a) (dst /` + strings.Repeat("d", 255) + `)) (copy (src a) (dst x))
 (run (cache (c (target /` + strings.Repeat("d", 256) + `))) (secrets (s (target /` + strings.Repeat("d/", 600) + `))) (shell x)))`,
			"1:20: the working directory has a name of 256 bytes: Linux takes 255\n1:309: the destination has a name of 256 bytes: Linux takes 255\n" +
				"2:11: the working directory has 1040 bytes: a path can have 1024\n2:350: the destination has 1042 bytes: a path can have 1024\n" +
				"3:14: the target of cache c has a name of 256 bytes: Linux takes 255\n3:295: the target of secret s has 1201 bytes: a path can have 1024"},
		{"sources on Windows", "windows", `((from x) (copy (src "a\\..\\b") (dst "C:\\x")))`,
			"1:22: .. in the source \"a\\\\..\\\\b\": a copy cannot leave the source directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := mustParse(t, c.text).Check(c.os)
			got := ""
			if err != nil {
				got = strings.ReplaceAll(err.Error(), "spec:", "")
			}
			if got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// A program leaves places out: then messages tell which operation they are about.
func TestCheckMade(t *testing.T) {
	s := &Spec{Stage: Stage{
		Builds: []Build{{Name: "dev"}},
		From:   From{Image: "busybox"},
		Ops: []Op{
			&Copy{Src: []string{"a", "b"}, Dst: "/x"},
			&Run{Command: "make", Caches: []Mount{{ID: "c"}}},
			nil,
		},
	}}
	want := `build dev without a stage
several sources need a destination that ends with /: did you mean /x/? in (copy (src a b) (dst /x))
empty target of cache c in (run (cache (c (target ""))) (shell make))
operation of type <nil>`
	if err := s.Check("linux"); err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if (&Spec{File: "f"}).Check("linux").Error() != "f: empty image name in (from IMAGE)" {
		t.Error("a file without places")
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"run", "run", 0}, {"rnu", "run", 1}, {"runs", "run", 1}, {"", "copy", 4}, {"kitten", "sitting", 3}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%s %s: %d", c.a, c.b, got)
		}
	}
}
