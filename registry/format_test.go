package registry_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/internal/repotest"
	"github.com/ocurrent/obx/registry/repo"
)

// formatKey is the key pair that signs the examples.
const formatKey = "example:0MJLUcbMUrnl2qbHNhMgdrRYfM1mPf0tISbXR1eJSqZGyN+Fx5qGXQIL6OlnwaK3qSMVvIfSgT1YXC6BmA8dNQ=="

var update = flag.Bool("update", false, "write the examples of FORMAT.md: what readers have to know is a new version of the format")

// TestFormatExamples holds the examples of FORMAT.md against what is really written.
func TestFormatExamples(t *testing.T) {
	repo := &repo.Memory{}
	c, _ := machine(t, repo)
	var err error
	if c.Signer, err = registry.ParseSigner([]byte(formatKey)); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 23, 17, 30, 0, 0, time.UTC)
	registry.SetClock(c, func() time.Time { return at })
	load := func(name, text string) layers.Layer {
		t.Helper()
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))})
		if err == nil {
			_, err = io.WriteString(w, text)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b.Bytes()), Size: int64(b.Len())}
		l, err := layers.Load(t.Context(), c.Store, desc, "", &b, layers.Bytes, layers.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	sum := func(preimage string) keys.ID {
		t.Helper()
		id, err := keys.Sum([]byte(preimage))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	base := sum(fmt.Sprintf("(obx/1 base/1 (digest %s) (os linux) (arch amd64))", digest.FromString("busybox")))
	run := func(parent keys.ID, command string) string {
		if strings.Contains(command, " ") {
			command = strconv.Quote(command)
		}
		return fmt.Sprintf("(obx/1 run/1 (parent %s) (command %s))", parent, command)
	}
	one := sum(run(base, "make"))
	two := sum(run(one, "make install"))
	input := run(one, "a copy from another stage")
	step := func(key keys.ID, op string, layers int, log string) registry.Step {
		return registry.Step{Key: key, Op: op, Layers: layers, Took: 1500 * time.Millisecond, Log: registry.Log{Data: []byte(log)}}
	}
	r := &registry.Result{
		Key: two, Preimage: run(one, "make install"), Platform: repotest.Linux("amd64"), Started: at, Took: 1500 * time.Millisecond, Builder: "obx 1.0",
		Layers: []layers.Layer{load("bin/busybox", "not really"), load("src/prog", "compiled"), load("bin/prog", "compiled")}, Base: 1,
		Steps: []registry.Step{
			step(one, `/: (run (shell "make"))`, 2, "cc -o prog prog.c\n"),
			step(two, `/: (run (shell "make install"))`, 3, "install prog /bin\n"),
		},
	}
	r.Steps[1].Input = sum(input)
	r.Config.Config.Env = []string{"PATH=/bin"}
	r.Config.History = []ocispec.History{{CreatedBy: "busybox"}, {CreatedBy: "make"}, {CreatedBy: "make install"}}
	failed := &registry.Result{
		Key: one, Preimage: run(base, "make"), Platform: repotest.Linux("amd64"), Exit: 2, Started: at, Took: time.Second, Builder: "obx 1.0",
		Steps: []registry.Step{step(one, `/: (run (shell "make"))`, -1, "make: *** No targets.  Stop.\n")},
	}
	alias := &registry.Result{Key: sum(input), Alias: two, Preimage: input, Platform: repotest.Linux("amd64")}
	push(t, c, r, failed, alias)
	im := &images.Resolver{Store: c.Store}
	busybox := keys.Base{Ref: "docker.io/library/busybox:latest", Digest: digest.FromString("busybox"), Platform: repotest.Linux("amd64")}
	if _, err := im.PublishName(t.Context(), c.Sender(), images.Name{For: repotest.Linux("amd64"), Base: busybox}); err != nil {
		t.Fatal(err)
	}

	if _, err := c.PushMount(t.Context(), "opam", load("archives/dune.tar", "dune"), nil); err != nil {
		t.Fatal(err)
	}

	document := func(ref string) []byte {
		t.Helper()
		_, b, err := repo.Manifest(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var image, record, name ocispec.Manifest
	nameTag := "name-" + digest.FromString(busybox.Ref+"\nlinux/amd64").Encoded()
	decode(t, document(nameTag), &name)
	decode(t, document(two.String()), &image)
	decode(t, document(two.String()+".rec"), &record)
	rc, err := repo.Blob(t.Context(), image.Config)
	if err != nil {
		t.Fatal(err)
	}
	config, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	// Shown shorter.
	payload := func(ref string) []byte {
		t.Helper()
		var m ocispec.Manifest
		decode(t, document(ref), &m)
		var env struct {
			Payload []byte `json:"payload"`
		}
		decode(t, m.Config.Data, &env)
		return env.Payload
	}
	short := regexp.MustCompile(`("(?:data|payload)": ?")([^"]{40})[^"]*`)
	mountTag := "mount-" + digest.FromString("default\nopam").Encoded()
	examples := map[string]string{
		"mount":    short.ReplaceAllString(indent(t, document(mountTag)), "$1$2..."),
		"content":  indent(t, payload(mountTag)),
		"image":    indent(t, document(two.String())),
		"config":   indent(t, config),
		"record":   short.ReplaceAllString(indent(t, document(two.String()+".rec")), "$1$2..."),
		"envelope": short.ReplaceAllString(indent(t, record.Config.Data), "$1$2..."),
		"ok":       indent(t, payload(two.String()+".rec")),
		"failed":   indent(t, payload(one.String()+".rec")),
		"alias":    indent(t, payload(alias.Key.String()+".rec")),
		"name":     short.ReplaceAllString(indent(t, document(nameTag)), "$1$2..."),
		"meaning":  indent(t, name.Config.Data),
		"key":      c.Signer.Public().String(),
	}

	const file = "FORMAT.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// The marker of an example, and the fence behind it.
	block := regexp.MustCompile("(?s)(<!-- example: ([a-z]+) -->\n```[a-z]*\n)(.*?)(```)")
	used := make(map[string]bool)
	current := block.ReplaceAllStringFunc(string(text), func(s string) string {
		m := block.FindStringSubmatch(s)
		used[m[2]] = true
		return m[1] + examples[m[2]] + "\n" + m[4]
	})
	for name := range examples {
		if !used[name] {
			t.Errorf("%s does not show the example %q", file, name)
		}
	}
	if current == string(text) {
		return
	}
	if !*update {
		t.Fatalf("the examples of %s are not what is written: go test -run TestFormatExamples -update ./registry", file)
	}
	if err := os.WriteFile(file, []byte(current), 0o644); err != nil {
		t.Fatal(err)
	}
}

func decode(t testing.TB, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
}

// indent shows JSON on lines, but short lists on one.
func indent(t testing.TB, b []byte) string {
	t.Helper()
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		t.Fatal(err)
	}
	tuple := regexp.MustCompile(`\[\n\s+("[A-Za-z0-9_-]{43}",[^\[\]]*)\n\s+\]`)
	space := regexp.MustCompile(`\n\s+`)
	return tuple.ReplaceAllStringFunc(out.String(), func(s string) string {
		s = space.ReplaceAllString(s, " ")
		return "[" + strings.TrimSpace(s[1:len(s)-1]) + "]"
	})
}
