package spec

import "testing"

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"((from busybox) (shell /bin/sh -c) (run (shell \"echo one\")))",
		"; a\n((from a) ; b\n #| c #| \"|#\" |# |# (run (shell \"x\\\n   y\\065\\x41\\q\nz\")) #;(a) #; #; b c\n) ; d\n; e",
		"((build a ((from b) (copy (src .) (dst /))))\r\n\r\n (from c) (user (uid 0x10) (gid 1_0))\r\n)",
		"((from x)(run(cache(a(target /c)(buildkit_options((sharing shared)))))(network host)(secrets(p))(shell x)))",
		"((from x) (copy ; why\n (from (build b)) #| i |# (src a \"b c\") (dst /d/) (exclude #;e f) #|l|#) )",
		"((from x) (comment a'b,c=d:e@f#g|h) (env A+B ~) (user (name é)))",
		"((from x) (env DEPS \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb  ccccccccccccccccccc && (d || e) && f\n  g\n\n\"))",
		"\ufeff((from x)) #|a\nb|# #;c",
	} {
		f.Add(text)
	}
	for _, text := range realworld(f) {
		f.Add(text)
	}
	for _, g := range goldens(f) {
		f.Add(g.Spec)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse("spec", []byte(text))
		if err != nil {
			if l, ok := err.(ErrorList); !ok || len(l) == 0 || l[0].Pos.Line < 1 || l[0].Pos.Col < 1 {
				t.Fatalf("%#v", err)
			}
			part, _ := ParsePartial("spec", []byte(text))
			_ = part.Check("linux")
			return
		}
		for _, os := range []string{"linux", "windows"} {
			if err := s.Check(os); err != nil && err.(ErrorList)[0].Pos.Line < 1 {
				t.Fatalf("an error without a place: %v", err)
			}
		}
		for _, op := range s.Ops {
			HeadingIn("/", op)
		}
		_, _ = s.Dockerfile(DockerfileOptions{BuildKit: true})
		checkFormat(t, s)

		made := plainTree(s)
		checkFormat(t, made)
	})
}
