package spec

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A golden is what OBuilder was seen to do with a spec. (Where errors are not empty, it refused the spec, with few
// exceptions that obx finds earlier; the places are obx's, for it gives none.)
type golden struct {
	Name       string
	Spec       string
	Errors     []string          // LINE:COL
	Log        []string          // the headings, in order
	Dockerfile map[string]string // by unix, unix.buildkit, windows, windows.buildkit
}

func goldens(t testing.TB) []golden {
	t.Helper()
	text, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var gs []golden
	if err := json.Unmarshal(text, &gs); err != nil {
		t.Fatal(err)
	}
	return gs
}

// realworld gives the specs that CI systems make, by file.
func realworld(t testing.TB) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/realworld/*.spec")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	specs := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		specs[file] = string(text)
	}
	return specs
}

func mustParse(t testing.TB, text string) *Spec {
	t.Helper()
	s, err := Parse("spec", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return s
}

// otherDockerfile has the cases whose Dockerfile is not OBuilder's, and why. What it is, TestDockerfile says, and conformance for the recorded cases.
var otherDockerfile = map[string]string{
	"203-build-simple":     "what is copied into a directory keeps its name, and exclusions are told",
	"214-example-upstream": "what is copied into a directory keeps its name",
}

func TestGolden(t *testing.T) {
	for _, g := range goldens(t) {
		t.Run(g.Name, func(t *testing.T) {
			s, err := Parse("spec", []byte(g.Spec))
			if err == nil {
				err = s.Check("linux")
			}
			var places []string
			if err != nil {
				for _, e := range err.(ErrorList) {
					places = append(places, e.Pos.String())
				}
			}
			if strings.Join(places, " ") != strings.Join(g.Errors, " ") {
				t.Fatalf("errors at %v, want %v: %v", places, g.Errors, err)
			}
			if err != nil {
				return
			}
			checkFormat(t, s)
			for i, line := range log(&s.Stage) {
				if line != g.Log[i] {
					t.Errorf("log\n%s\nwant\n%s", line, g.Log[i])
				}
			}
			if reason := otherDockerfile[g.Name]; reason != "" {
				return
			}
			for form, want := range g.Dockerfile {
				escape, kit, _ := strings.Cut(form, ".")
				got, err := s.Dockerfile(DockerfileOptions{BuildKit: kit != "", Escape: escape})
				if err != nil || got != want {
					t.Errorf("%s %v\n%s\nwant\n%s", form, err, got, want)
				}
			}
		})
	}
}

// log is what OBuilder's log has of a stage, without headings of builds.
func log(st *Stage) []string {
	var lines []string
	for _, b := range st.Builds {
		lines = append(lines, log(b.Stage)...)
	}
	lines = append(lines, HeadingFrom(st.From))
	dir := "/"
	for _, op := range st.Ops {
		lines = append(lines, HeadingIn(dir, op))
		if w, ok := op.(*Workdir); ok {
			switch {
			case strings.HasPrefix(w.Dir, "/"):
				dir = w.Dir
			case strings.HasSuffix(dir, "/"):
				dir += w.Dir
			default:
				dir += "/" + w.Dir
			}
		}
	}
	return lines
}

// TestRealworld: the Dockerfiles are OBuilder's, but for what keeps the names of directories and leaves out what is excluded.
func TestRealworld(t *testing.T) {
	for file, text := range realworld(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			s := mustParse(t, text)
			os := "linux"
			if strings.Contains(file, "windows") {
				os = "windows"
			}
			if err := s.Check(os); err != nil {
				t.Error(err)
			}
			for _, line := range strings.Split(checkFormat(t, s), "\n") {
				// What is longer has no blank to be broken at, or a comment behind it.
				if len(line) > width && strings.Contains(line, " && ") {
					t.Errorf("long line: %s", line)
				}
			}
			want := readFile(t, strings.TrimSuffix(file, ".spec")+".Dockerfile.buildkit")
			got, err := s.Dockerfile(DockerfileOptions{BuildKit: true})
			if err != nil || got != want {
				t.Errorf("Dockerfile %v\n%s\nwant\n%s", err, got, want)
			}
		})
	}
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
