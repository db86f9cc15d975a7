package spec

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
)

// Where OBuilder's conversion gives something that Docker understands otherwise, or not at all.
func TestDockerfile(t *testing.T) {
	for _, c := range []struct{ name, escape, ops, want string }{
		{"comment of several lines", "", `(comment "a\nb\n")`, "# a\n# b\n# \n"},
		{"paths with spaces", "", `(user (uid 1) (gid 2)) (copy (src "a b.c" c.d) (dst "/d\"e/"))`,
			"USER 1:2\nCOPY --chown=1:2 [ \"a b.c\", \"c.d\", \"/d\\\\\\\"e/\" ]\n"},
		{"paths that Docker would expand", "", `(copy (src a* "b[1]?" $c "d\\e" "" --f) (dst "/'"))`,
			`COPY a[*] b[[]1][?] \$c d\\e ./ ./--f /\'` + "\n"},
		{"variables", "", `(env A "$B ${C} \\$D \"e\" f\\g")`, `ENV A="\$B \${C} \\\$D \"e\" f\\g"` + "\n"},
		{"variables for Windows", "windows", "(env A \"$B `c` d\\\\\")", "ENV A=\"`$B ``c`` d\\\"\n"},
		{"mounts for a user of Windows", "windows", `(run (cache (c (target "C:\\c"))) (shell "a")) (user (name u)) (run (secrets (s)) (shell "b"))`,
			"RUN --mount=type=cache,id=c,target=C:\\c a\nUSER u\nRUN --mount=type=secret,id=s,target=/run/secrets/s b\n"},
		{"mounts with odd names", "", `(run (cache ("a b,\"c$" (target /c))) (shell x))`,
			`RUN --mount="type=cache,\"id=a b,\\\"\"c\\$\",target=/c,uid=0" x` + "\n"},
		{"options", "", `(run (secrets (p (target /p) (buildkit_options ((mode 0400))))) (cache (c (target /c) (buildkit_options ((sharing locked))))) (shell x))`,
			"RUN --mount=type=secret,id=p,target=/p,uid=0,mode=0400 --mount=type=cache,id=c,target=/c,uid=0,sharing=locked x\n"},
		{"lines of a command", "", `(run (shell "a && \\\n  b \\\\\n\n c"))`, "RUN a && \\\n    b \\\\ \\\n     \\\n    c\n"},
		{"lines of a command for Windows", "windows", `(run (shell "a\\\nb"))`, "RUN a\\ `\n    b\n"},
		{"shell", "", `(shell "a\"b" "<c>")`, `SHELL [ "a\"b", "<c>" ]` + "\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := mustParse(t, "((from x) "+c.ops+")")
			got, err := s.Dockerfile(DockerfileOptions{BuildKit: true, Escape: c.escape})
			_, got, _ = strings.Cut(got, "FROM x\n")
			if err != nil || got != c.want+"\n" {
				t.Errorf("%v got\n%s\nwant\n%s", err, got, c.want)
			}
		})
	}
}

// A directory that is copied into another keeps its name, as do files; what is excluded is, or a comment says that it is not.
func TestDockerfileCopies(t *testing.T) {
	source := fstest.MapFS{
		"assets/a": {}, "conf.d/a": {}, "Makefile": {}, "a/b/deep/f": {}, "to-assets": {Mode: fs.ModeSymlink | 0o777, Data: []byte("assets")},
	}
	for _, c := range []struct{ ops, seen, unseen string }{
		{`(copy (src assets) (dst ./))`, "COPY assets ./assets\n", ""},
		{`(copy (src ./assets/) (dst /x/))`, "COPY ./assets/ /x/assets\n", ""},
		{`(copy (src a/b/deep) (dst /x/))`, "COPY a/b/deep /x/deep\n", ""},
		{`(copy (src assets) (dst /x))`, "COPY assets /x\n", ""},
		{`(copy (src assets) (dst .))`, "COPY assets .\n", ""},
		{`(copy (src .) (dst ./))`, "COPY . ./\n", ""},
		{`(copy (src ./) (dst /))`, "COPY ./ /\n", ""},
		{`(copy (src /) (dst /))`, "COPY / /\n", ""},
		{`(copy (src a.txt assets b.txt c.txt) (dst /x/))`, "COPY a.txt /x/\nCOPY assets /x/assets\nCOPY b.txt c.txt /x/\n", ""},
		{`(copy (src Makefile a.txt) (dst ./))`, "COPY Makefile a.txt ./\n", "COPY Makefile ./Makefile\nCOPY a.txt ./\n"},
		{`(copy (src conf.d) (dst /etc/))`, "COPY conf.d /etc/conf.d\n", "COPY conf.d /etc/\n"},
		{`(copy (src .git) (dst /x/))`, "COPY .git /x/.git\n", ""},
		{`(copy (src to-assets) (dst /x/))`, "# to-assets is a symbolic link: COPY copies what it leads to instead\nCOPY to-assets /x/\n", "COPY to-assets /x/to-assets\n"},
		{`(copy (from (build b)) (src /out/bin /out/x.so) (dst /usr/))`, "COPY --from=b /out/bin /usr/bin\nCOPY --from=b /out/x.so /usr/\n", ""},
		{`(user (uid 1) (gid 2)) (copy (src assets) (dst ./))`, "USER 1:2\nCOPY --chown=1:2 assets ./assets\n", ""},
	} {
		for i, o := range []DockerfileOptions{{Source: source}, {Source: fstest.MapFS{}}, {}} {
			want := c.seen
			if i > 0 && c.unseen != "" {
				want = c.unseen
			}
			got, err := mustParse(t, "((build b ((from x))) (from y) "+c.ops+")").Dockerfile(o)
			if _, got, _ = strings.Cut(got, "FROM y\n"); err != nil || got != want+"\n" {
				t.Errorf("%s: %v got\n%s\nwant\n%s", c.ops, err, got, want)
			}
		}
	}
	s := mustParse(t, `((from x) (copy (src .) (dst /x/) (exclude .git "a b" *.o)) (copy (src a.txt assets) (dst /x/) (exclude a.txt)))`)
	got, err := s.Dockerfile(DockerfileOptions{BuildKit: true, Source: source})
	if want := `# syntax=docker/dockerfile:1.19
FROM x
COPY --exclude=**/.git "--exclude=**/a b" --exclude=**/[*].o . /x/
COPY a.txt /x/
COPY --exclude=**/a.txt assets /x/assets

`; err != nil || got != want {
		t.Errorf("%v got\n%s\nwant\n%s", err, got, want)
	}
	got, err = s.Dockerfile(DockerfileOptions{Source: source})
	if want := `FROM x
# Not said below: (exclude .git "a b" *.o). Write it into .dockerignore, or convert with --buildkit
COPY . /x/
# Not said below: (exclude a.txt). Write it into .dockerignore, or convert with --buildkit
COPY a.txt /x/
COPY assets /x/assets

`; err != nil || got != want {
		t.Errorf("%v got\n%s\nwant\n%s", err, got, want)
	}
	s = mustParse(t, `((from x) (copy (src "a\\b") (dst "C:\\x\\")))`)
	if got, err := s.Dockerfile(DockerfileOptions{Escape: "windows"}); err != nil || !strings.Contains(got, "COPY a\\b C:\\x\\b\n") {
		t.Errorf("%v got\n%s", err, got)
	}
}

// Docker has one name space for stages and images, and few characters for names.
func TestDockerfileStages(t *testing.T) {
	s := mustParse(t, `((build a ((build "b c" ((from x)))
            (build a ((from x)))
            (from x)
            (copy (from (build "b c")) (src f) (dst g))
            (copy (from (build a)) (src f) (dst g))))
 (build x ((from y) (copy (from (build a)) (src f) (dst g))))
 (build 1 ((from y)))
 (build A ((from y)))
 (from x)
 (copy (from (build a)) (src f) (dst g))
 (copy (from (build x)) (src f) (dst g))
 (copy (from (build 1)) (src f) (dst g)))`)
	got, err := s.Dockerfile(DockerfileOptions{})
	want := `FROM x as b-c

FROM x as a-2

FROM x as a
COPY --from=b-c f g
COPY --from=a-2 f g

FROM y as x-2
COPY --from=a f g

FROM y as build-1

FROM y as A-3

FROM x
COPY --from=a f g
COPY --from=x-2 f g
COPY --from=build-1 f g

`
	if err != nil || got != want {
		t.Errorf("%v got\n%s\nwant\n%s", err, got, want)
	}
}

func TestDockerfileErrors(t *testing.T) {
	s := mustParse(t, "((from x)\n (env A \"b\nc\")\n (workdir \"d\ne\")\n (run (cache (\"f\ng\" (target /t))) (shell h)))")
	if _, err := s.Dockerfile(DockerfileOptions{}); err == nil || err.Error() !=
		"spec:2:2: a Dockerfile cannot hold a line break in ENV\nspec:4:2: a Dockerfile cannot hold a line break in WORKDIR" {
		t.Error(err)
	}
	if _, err := s.Dockerfile(DockerfileOptions{BuildKit: true}); err == nil || !strings.HasSuffix(err.Error(), "spec:6:2: a Dockerfile cannot hold a line break in --mount") {
		t.Error(err)
	}
	if _, err := s.Dockerfile(DockerfileOptions{Escape: "dos"}); err == nil {
		t.Error("escape dos")
	}
}
