package spec

import (
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// plainTree is a spec's tree without places and comments.
func plainTree(s *Spec) *Spec {
	var stage func(st *Stage) Stage
	mounts := func(ms []Mount) []Mount {
		var out []Mount
		for _, m := range ms {
			m.Pos = Pos{}
			out = append(out, m)
		}
		return out
	}
	stage = func(st *Stage) Stage {
		out := Stage{From: From{Image: st.From.Image}}
		for _, b := range st.Builds {
			inner := stage(b.Stage)
			out.Builds = append(out.Builds, Build{Name: b.Name, Stage: &inner})
		}
		for _, op := range st.Ops {
			switch o := op.(type) {
			case *Comment:
				c := *o
				c.Pos = Pos{}
				op = &c
			case *Workdir:
				c := *o
				c.Pos = Pos{}
				op = &c
			case *Shell:
				c := *o
				c.Pos = Pos{}
				op = &c
			case *Env:
				c := *o
				c.Pos = Pos{}
				op = &c
			case *User:
				c := *o
				c.Pos = Pos{}
				op = &c
			case *Run:
				c := *o
				c.Pos = Pos{}
				c.Caches, c.Secrets = mounts(c.Caches), mounts(c.Secrets)
				op = &c
			case *Copy:
				c := *o
				c.Pos = Pos{}
				op = &c
			}
			out.Ops = append(out.Ops, op)
		}
		return out
	}
	return &Spec{Stage: stage(&s.Stage)}
}

// comments lists what a file says in comments.
func comments(s *Spec) []string {
	var out []string
	s.doc.inside(func(c comment) {
		if c.datum != nil {
			p := &printer{}
			p.node(c.datum, 0)
			out = append(out, "#; "+p.out.String())
			c.datum.inside(func(c comment) { out = append(out, c.text) })
			return
		}
		out = append(out, c.text)
	})
	return out
}

// checkFormat holds the law of Format: the same tree, the same comments, and nothing more to do the second time.
func checkFormat(t *testing.T, s *Spec) string {
	t.Helper()
	out := s.Format()
	again, err := Parse(s.File, out)
	if err != nil {
		t.Fatalf("cannot read what Format printed: %v\n%s", err, out)
	}
	if got, want := plainTree(again), plainTree(s); !reflect.DeepEqual(got, want) {
		t.Fatalf("another tree\n%s", out)
	}
	if s.doc != nil {
		if got, want := comments(again), comments(s); !reflect.DeepEqual(got, want) {
			t.Fatalf("comments %q, were %q\n%s", got, want, out)
		}
	}
	if twice := again.Format(); string(twice) != string(out) {
		t.Fatalf("first\n%s\nthen\n%s", out, twice)
	}
	return string(out)
}

func TestFormat(t *testing.T) {
	files, err := filepath.Glob("testdata/format/*.spec")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			s := mustParse(t, readFile(t, file))
			got := checkFormat(t, s)
			if want := readFile(t, strings.TrimSuffix(file, ".spec")+".want"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			crlf := mustParse(t, strings.ReplaceAll(readFile(t, file), "\n", "\r\n"))
			if crlf := checkFormat(t, crlf); !strings.Contains(got, `\n`) && crlf != got {
				t.Errorf("with CRLF\n%s", crlf)
			}
		})
	}
}

// A program that changes what it parsed keeps the comments around its changes.
func TestFormatChanged(t *testing.T) {
	s := mustParse(t, `; top
((build old ; a build
  ((from a)
   (run (shell x)))) ; nested
 (from b) ; base
 ; first
 (run ; inside
      (shell "make")) ; behind
 (run (shell "stays")) ; too
 (workdir /gone) ; gone
 ; at the end
)`)
	s.Builds[0].Name = "new name"
	s.Builds[0].Stage.Ops = append(s.Builds[0].Stage.Ops, &Env{Name: "A", Value: "1"})
	s.From.Image = "c"
	s.Ops[0].(*Run).Network = []string{"host"}
	s.Ops = append(s.Ops[:2], &Copy{Src: []string{"."}, Dst: "/src/"})
	want := `; top
((build "new name" ; a build
  ((from a)
   (run (shell x))
   (env A 1))) ; nested
 (from c) ; base
 ; first
 ; inside
 (run (network host) (shell make)) ; behind
 (run (shell "stays")) ; too
 (copy (src .) (dst /src/))
 ; at the end
)
`
	if got := string(s.Format()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Any tree that a program makes is printed so that it can be read again.
func TestFormatMade(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		s := &Spec{Stage: *randomStage(r, 3)}
		checkFormat(t, s)
	}
}

func randomStage(r *rand.Rand, depth int) *Stage {
	st := &Stage{From: From{Image: randomText(r)}}
	for depth > 0 && r.IntN(3) == 0 {
		st.Builds = append(st.Builds, Build{Name: randomText(r), Stage: randomStage(r, depth-1)})
	}
	texts := func() []string {
		var out []string
		for range r.IntN(4) {
			out = append(out, randomText(r))
		}
		return out
	}
	mounts := func() []Mount {
		var out []Mount
		for range r.IntN(3) {
			m := Mount{ID: randomText(r), Target: randomText(r)}
			for range r.IntN(3) {
				m.Options = append(m.Options, Option{randomText(r), randomText(r)})
			}
			out = append(out, m)
		}
		return out
	}
	for range r.IntN(5) {
		switch r.IntN(8) {
		case 0:
			st.Ops = append(st.Ops, &Comment{Text: randomText(r)})
		case 1:
			st.Ops = append(st.Ops, &Workdir{Dir: randomText(r)})
		case 2:
			st.Ops = append(st.Ops, &Shell{Argv: texts()})
		case 3:
			st.Ops = append(st.Ops, &Env{Name: randomText(r), Value: randomText(r)})
		case 4:
			st.Ops = append(st.Ops, &User{UID: r.IntN(2000) - 10, GID: r.IntN(2000)})
		case 5:
			st.Ops = append(st.Ops, &User{Name: "u" + randomText(r)})
		case 6:
			st.Ops = append(st.Ops, &Run{Command: randomText(r), Network: texts(), Caches: mounts(), Secrets: mounts()})
		case 7:
			o := &Copy{Src: texts(), Dst: randomText(r), Exclude: texts()}
			if r.IntN(2) == 0 {
				o.From = "b" + randomText(r)
			}
			st.Ops = append(st.Ops, o)
		}
	}
	return st
}

func randomText(r *rand.Rand) string {
	pieces := []string{"a", "word", " ", "  ", "\n", "\n\n", "\t", "\\", "\"", "é", "\xff", "\x00", "(", ")", ";", "#|", "|#", "#;", " && ", " || ", "0", "\r"}
	var b strings.Builder
	for range r.IntN(1 << r.IntN(8)) {
		b.WriteString(pieces[r.IntN(len(pieces))])
	}
	return b.String()
}
