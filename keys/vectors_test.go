package keys_test

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

var update = flag.Bool("update", false, "write the keys in testdata/vectors.txt: a change is a new version of the format")

const vectorsFile = "testdata/vectors.txt"

// A vector is one section of the file: what goes in, line by line, and what must come out.
type vector struct {
	name string
	in   []string
	out  string
}

// TestVectors holds the format: if it fails, other machines and older caches have other keys than this program.
func TestVectors(t *testing.T) {
	text, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	head, vectors := readVectors(text)
	if len(vectors) < 10 {
		t.Fatalf("only %d vectors", len(vectors))
	}
	for i := range vectors {
		v := &vectors[i]
		t.Run(v.name, func(t *testing.T) {
			got := v.keys(t)
			if got != v.out && !*update {
				t.Errorf("got\n%swant\n%s", got, v.out)
			}
			v.out = got
		})
	}
	if *update && !t.Failed() {
		for _, v := range vectors {
			head += fmt.Sprintf("vector %s\n%s\n--\n%s\n", v.name, strings.Join(v.in, "\n"), v.out)
		}
		if err := os.WriteFile(vectorsFile, []byte(strings.TrimSuffix(head, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func readVectors(text []byte) (head string, vectors []vector) {
	output := false
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		line := lines.Text()
		if name, ok := strings.CutPrefix(line, "vector "); ok {
			vectors = append(vectors, vector{name: name})
			output = false
			continue
		}
		switch {
		case len(vectors) == 0:
			head += line + "\n"
		case line == "--":
			output = true
		case output && line != "":
			vectors[len(vectors)-1].out += line + "\n"
		case !output:
			vectors[len(vectors)-1].in = append(vectors[len(vectors)-1].in, line)
		}
	}
	return head, vectors
}

// keys makes the plan that a vector describes, and prints all its keys.
func (v *vector) keys(t *testing.T) string {
	t.Helper()
	o := keys.Options{Resolver: resolver{}}
	trees := map[string]fstest.MapFS{"": {}} // by the name of the build; "" is the source directory
	tree, text := "", ""
	for _, line := range v.in {
		if body, ok := strings.CutPrefix(line, "\t"); ok {
			text += body + "\n"
			continue
		}
		f := fields(t, line)
		arg := func(i int) string {
			if i < len(f) && f[i] != "-" {
				return f[i]
			}
			return ""
		}
		switch arg(0) {
		case "platform":
			o.Platform = ocispec.Platform{OS: arg(1), Architecture: arg(2), Variant: arg(3), OSVersion: arg(4)}
		case "salt":
			o.Salt = arg(1)
		case "base":
			o.Resolver.(resolver)[arg(1)] = keys.Base{Ref: arg(1), Digest: digest.Digest(arg(2))}
		case "spec":
		case "build":
			tree = arg(1)
			trees[tree] = fstest.MapFS{}
		case "file":
			mode, err := strconv.ParseUint(arg(2), 8, 32)
			if err != nil {
				t.Fatal(err)
			}
			trees[tree][arg(1)] = &fstest.MapFile{Mode: fs.FileMode(mode), Data: []byte(arg(3))}
		case "dir":
			trees[tree][arg(1)] = &fstest.MapFile{Mode: fs.ModeDir | 0o755}
		case "link":
			trees[tree][arg(1)] = &fstest.MapFile{Mode: fs.ModeSymlink | 0o777, Data: []byte(arg(2))}
		default:
			t.Fatalf("unknown line %q", line)
		}
	}
	o.Context = trees[""]
	s := parse(t, text)
	if err := s.Check(o.Platform.OS); err != nil {
		t.Fatal(err)
	}
	p, err := keys.New(context.Background(), s, o)
	if err != nil {
		t.Fatal(err)
	}

	var out strings.Builder
	show := func(what string, id keys.ID, preimage []byte) {
		fmt.Fprintf(&out, "%s %s\n\t%s\n", what, id, preimage)
		if sum, err := keys.Sum(preimage); err != nil || sum != id {
			t.Errorf("%s: Sum gives %s, %v", what, sum, err)
		}
	}
	for _, st := range p.Stages {
		show(fmt.Sprintf("base %q", st.Name), st.BaseKey, st.Preimage)
		content := st.BaseKey
		for _, step := range st.Steps {
			show(fmt.Sprintf("step %d", step.Number), step.Key, step.Preimage)
			var sources []keys.Source
			if step.From != nil {
				files := trees[step.From.Name]
				if files == nil {
					break // the vector is about input keys only
				}
				if sources, err = keys.HashSources(context.Background(), files, step.Op.(*spec.Copy), o); err != nil {
					t.Fatal(err)
				}
			}
			id, preimage := step.ContentKey(content, sources)
			if id != step.Key {
				show(fmt.Sprintf("content %d", step.Number), id, preimage)
			}
			content = id
		}
	}
	return out.String()
}

// fields splits a line at blanks; a field may be in Go's double quotes.
func fields(t *testing.T, line string) (out []string) {
	t.Helper()
	for line != "" {
		f, rest, _ := strings.Cut(line, " ")
		if strings.HasPrefix(line, `"`) {
			q, err := strconv.QuotedPrefix(line)
			if err != nil {
				t.Fatal(err)
			}
			f, _ = strconv.Unquote(q)
			rest = strings.TrimPrefix(line[len(q):], " ")
		}
		out, line = append(out, f), rest
	}
	return out
}

// TestVectorsCoverTheFormat makes sure that no field of the format is without a vector.
func TestVectorsCoverTheFormat(t *testing.T) {
	text, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	_, vectors := readVectors(text)
	var out string
	for _, v := range vectors {
		out += v.out
	}
	want := []string{
		"digest", "os", "arch", "variant", "os.version", "salt",
		"parent", "shell", "command", "workdir", "user", "env", "network", "secrets", "caches",
		"dst", "files", "from", "src", "exclude", "file", "link", "dir",
	}
	want = slices.DeleteFunc(want, func(f string) bool { return strings.Contains(out, "("+f+" ") })
	if len(want) > 0 {
		t.Errorf("no vector has %q", want)
	}
}
