package registry

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry/repo"
)

func sumOfText(s string) sum {
	d, err := sumOf(digest.FromString(s))
	if err != nil {
		panic(err)
	}
	return d
}

// samplePredicate uses every field of a result.
func samplePredicate(t testing.TB) *predicate {
	t.Helper()
	base, err := keys.Sum([]byte("(obx/1 base/1 (os linux) (arch amd64))"))
	if err != nil {
		t.Fatal(err)
	}
	preimage := fmt.Sprintf("(obx/1 run/1 (parent %s) (command make))", base)
	id, err := keys.Sum([]byte(preimage))
	if err != nil {
		t.Fatal(err)
	}
	return &predicate{
		Format: "obx.record/1", Key: id, Preimage: preimage, Parent: base, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Domain: "default", Status: statusOK,
		Image: &blobRef{sumOfText("image"), 400}, Config: &blobRef{sumOfText("config"), 300},
		Layers: []layerRef{
			{blobRef{sumOfText("base"), 1000}, sumOfText("base, unpacked"), 0, "gzip", 1},
			{blobRef{sumOfText("range"), 2000}, sumOfText("range, unpacked"), 8192, "zstd", 32},
			{blobRef{sumOfText("own"), 100}, sumOfText("own, unpacked"), 2048, "none", 1},
		},
		Base:    1,
		Steps:   []stepRef{{sumOfText("a"), "one", -1, 5, -1, sum{}}, {sum(id), "two", 3, 7, 1, sumOfText("input")}},
		Others:  []stepRef{{sumOfText("b"), "three", -1, 9, 0, sum{}}},
		Logs:    []logRef{{blobRef{sumOfText("log 1"), 40}, 70}, {blobRef{sumOfText("log 2"), 50}, 80}},
		Builder: "obx 1.0", Started: time.Date(2026, 11, 23, 17, 0, 0, 0, time.UTC), Took: 7,
	}
}

func TestPredicateRoundTrip(t *testing.T) {
	p := samplePredicate(t)
	b, err := p.encode()
	if err != nil {
		t.Fatal(err)
	}
	q, err := decodePredicate(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := q.encode()
	if err != nil || string(again) != string(b) {
		t.Errorf("%s\nbecame\n%s, %v", b, again, err)
	}
}

func TestPredicateIsChecked(t *testing.T) {
	failed := func(p *predicate) {
		p.Status, p.Exit, p.Image, p.Config, p.Layers, p.Base, p.Steps[1].Layers = statusFailed, 1, nil, nil, nil, 0, -1
	}
	alias := func(p *predicate) {
		*p = predicate{Format: p.Format, Key: p.Key, Preimage: p.Preimage, Parent: p.Parent, Domain: "d", Status: statusAlias, Alias: keys.ID{1}}
	}
	for _, tt := range []struct {
		name   string
		change func(p *predicate)
		err    string // "": it is fine
	}{
		{"nothing", func(p *predicate) {}, ""},
		{"a failure", failed, ""},
		{"an alias", alias, ""},
		{"no steps", func(p *predicate) { p.Steps = nil }, "no steps"},
		{"no steps: a base", func(p *predicate) {
			p.Steps, p.Parent = nil, keys.ID{}
			p.Preimage = "(obx/1 base/1 (digest " + digest.FromString("x").String() + ") (os linux) (arch amd64))"
			id, err := keys.Sum([]byte(p.Preimage))
			if err != nil {
				t.Fatal(err)
			}
			p.Key = id
		}, ""},
		{"older format", func(p *predicate) { p.Format = "obx.record/0" }, "unknown"},
		{"other format", func(p *predicate) { p.Format = "1" }, "unknown"},
		{"newer format", func(p *predicate) { p.Format = "obx.record/2" }, "newer"},
		{"another key", func(p *predicate) { p.Key[0]++ }, "preimage"},
		{"a preimage that is none", func(p *predicate) { p.Preimage = "(" }, "preimage"},
		{"another parent", func(p *predicate) { p.Parent[0]++ }, "parent"},
		{"no domain", func(p *predicate) { p.Domain = "" }, "domain"},
		{"escape codes", func(p *predicate) { p.Builder = "\x1b[2J" }, "builder"},
		{"a status of tomorrow", func(p *predicate) { p.Status = "maybe" }, "status"},
		{"an exit status of a success", func(p *predicate) { p.Exit = 1 }, "ok"},
		{"an alias of a success", func(p *predicate) { p.Alias = keys.ID{1} }, "ok"},
		{"a failure with exit status 0", func(p *predicate) { failed(p); p.Exit = 0 }, "no failure"},
		{"a failure with an image", func(p *predicate) { p.Status, p.Exit = statusFailed, 1 }, "no failure"},
		{"an alias of itself", func(p *predicate) { alias(p); p.Alias = p.Key }, "no alias"},
		{"an alias with steps", func(p *predicate) { s := p.Steps; alias(p); p.Steps = s }, "no alias"},
		{"no image", func(p *predicate) { p.Image = nil }, "no image"},
		{"no config", func(p *predicate) { p.Config = nil }, "no image"},
		{"an image of 5 MiB", func(p *predicate) { p.Image.Size = 5 << 20 }, "no image"},
		{"121 layers", func(p *predicate) { p.Layers = slices.Repeat(p.Layers[:1], 121) }, "121 layers"},
		{"base of more layers than there are", func(p *predicate) { p.Base = 4 }, "layers"},
		{"a negative size", func(p *predicate) { p.Layers[0].Size = -1 }, "size"},
		{"a size beyond belief", func(p *predicate) { p.Layers[0].Unpacked = 1 << 60 }, "size"},
		{"an unknown compression", func(p *predicate) { p.Layers[0].Compression = "lzma" }, "compression"},
		{"one blob, two diff ids", func(p *predicate) { p.Layers[1].Digest = p.Layers[0].Digest }, "diff id"},
		{"a log that is not there", func(p *predicate) { p.Steps[0].Log = 2 }, "cannot be"},
		{"a log of no bytes", func(p *predicate) { p.Logs[0].Unpacked = 0 }, "size"},
		{"two lines of heading", func(p *predicate) { p.Others[0].Op = "a\nb" }, "cannot be"},
		{"a step with more layers than there are", func(p *predicate) { p.Steps[0].Layers = 4 }, "layers"},
		{"steps that lose layers", func(p *predicate) { p.Steps[0].Layers = 0 }, "layers"},
		{"a step of another stage with layers", func(p *predicate) { p.Others[0].Layers = 2 }, "another stage"},
		{"another last step", func(p *predicate) { p.Steps[1].Key = sumOfText("x") }, "last step"},
		{"a last step without the last layer", func(p *predicate) { p.Steps[1].Layers = 2 }, "last step"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := samplePredicate(t)
			tt.change(p)
			b, err := p.encode()
			if err != nil {
				t.Fatal(err)
			}
			switch _, err = decodePredicate(b); {
			case tt.err == "" && err != nil:
				t.Error(err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("got %v, want %q", err, tt.err)
			}
		})
	}
}

func TestSubjectIsWhatIsDescribed(t *testing.T) {
	b, err := samplePredicate(t).encode()
	if err != nil {
		t.Fatal(err)
	}
	image := digest.FromString("image").Encoded()
	changed := strings.Replace(string(b), `"sha256":"`+image, `"sha256":"`+digest.FromString("other").Encoded(), 1)
	if changed == string(b) {
		t.Fatalf("no subject in %s", b)
	}
	if _, err := decodePredicate([]byte(changed)); err == nil {
		t.Error("another subject is accepted")
	}
}

func TestTags(t *testing.T) {
	id := samplePredicate(t).Key
	key := id.String()
	for _, tt := range []struct{ domain, tag string }{
		{"default", key},
		{"pr-7", key + ".pr-7"},
		{"rec", key + ".x-" + digest.FromString("rec").Encoded()[:32]},     // or its image would be the record of default
		{"x-1", key + ".x-" + digest.FromString("x-1").Encoded()[:32]},     // or it could be the hash of another
		{"Main", key + ".x-" + digest.FromString("Main").Encoded()[:32]},   // files may not tell it from main
		{"a.rec", key + ".x-" + digest.FromString("a.rec").Encoded()[:32]}, // or its image would be the record of a
		{strings.Repeat("a", 300), key + ".x-" + digest.FromString(strings.Repeat("a", 300)).Encoded()[:32]},
	} {
		tag := tagOf(id, tt.domain)
		if tag != tt.tag || len(tag+recordSuffix) > 128 {
			t.Errorf("%q is tagged %s, want %s", tt.domain, tag, tt.tag)
		}
		for _, suffix := range []string{"", recordSuffix} {
			got, _, isRecord, ok := parseTag(tag + suffix)
			if got != id || isRecord != (suffix != "") || !ok {
				t.Errorf("%s%s is read as %s, record %v, %v", tag, suffix, got, isRecord, ok)
			}
		}
	}
	for _, tag := range []string{"latest", "mount-" + key, key[1:], key + ".", key + ".a.b", key + "..rec", strings.ToUpper(key)} {
		if _, _, _, ok := parseTag(tag); ok {
			t.Errorf("%s is taken for a tag of obx", tag)
		}
	}
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"a\nb\tc\x1b":            "a b c ",
		"a\xffb":                 "a\uFFFDb",
		strings.Repeat("é", 101): strings.Repeat("é", 98) + "…",
	} {
		if got := text(in); got != want || !isText(got) {
			t.Errorf("%q became %q", in, got)
		}
	}
}

func TestSpans(t *testing.T) {
	for base := range maxImageLayers {
		steps := 600
		if base%9 == 0 {
			steps = 5000
		}
		for n := range steps {
			ss, err := spans(base, n)
			if err != nil {
				if base <= 108 {
					t.Fatalf("%d on %d: %v", n, base, err)
				}
				continue
			}
			if base+len(ss) > maxImageLayers || base+n <= maxImageLayers && len(ss) != n {
				t.Fatalf("%d on %d: %d spans", n, base, len(ss))
			}
			at := 0
			for _, s := range ss {
				if s.from != at || s.to <= at || s.from%(s.to-s.from) != 0 {
					t.Fatalf("%d on %d: %v", n, base, ss)
				}
				at = s.to
			}
			if at != n {
				t.Fatalf("%d on %d: %v", n, base, ss)
			}
		}
	}
}

// What was merged before stays so, whatever of it comes merged.
func TestGroupKeepsRanges(t *testing.T) {
	singles := func(n int) (ps []part) {
		for range n {
			ps = append(ps, part{members: 1})
		}
		return ps
	}
	for _, tt := range []struct {
		name string
		own  []part
		want string
	}{
		{"few", singles(3), "1 1 1"},
		{"merged before", append([]part{{members: 32}, {members: 32}, {members: 32}, {members: 32}}, singles(2)...), "1 1 1 1 1 1"},
		{"some merged before", append([]part{{members: 32}}, singles(98)...), "1 32 32 32 1 1"},
		{"by another rule", append([]part{{members: 16}, {members: 40}}, singles(98)...), strings.TrimSuffix(strings.Repeat("1 ", 100), " ")},
	} {
		groups, err := group(1, tt.own)
		if err != nil {
			t.Fatal(err)
		}
		var lens []string
		for _, g := range groups {
			lens = append(lens, fmt.Sprint(len(g)))
		}
		if got := strings.Join(lens, " "); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// TestMergedHistory has an image of four layers, of which the second and third are one, and a history that lacks the first.
func TestMergedHistory(t *testing.T) {
	hs := []ocispec.History{{CreatedBy: "b"}, {CreatedBy: "c"}, {CreatedBy: "d"}}
	var got []string
	for _, h := range mergedHistory(hs, []int{0, 1, -1, 2, 3}) {
		got = append(got, fmt.Sprint(h.CreatedBy, " ", h.EmptyLayer))
	}
	if want := []string{" false", "b true", "c false", "d false"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestKeyFiles(t *testing.T) {
	s, err := GenerateSigner("ci-1")
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseSigner(s.Marshal())
	if err != nil || !again.key.Equal(s.key) || again.Name != "ci-1" {
		t.Errorf("got %v, %v", again, err)
	}
	k, err := ParsePublicKey(s.Public().String())
	if err != nil || !k.key.Equal(s.key.Public()) || k.Name != "ci-1" {
		t.Errorf("got %v, %v", k, err)
	}
	secret := strings.TrimSpace(string(s.Marshal()))
	for _, text := range []string{"", "ci", ":" + secret, "a b:" + secret[5:], secret[:20], secret + "AAAA", s.Public().String(), "ci:?" + secret[5:],
		secret[:len(secret)-8] + "AAAAAA=="} {
		_, err := ParseSigner([]byte(text))
		if err == nil {
			t.Errorf("%q is taken for a secret key", text)
		} else if strings.Contains(err.Error(), secret[20:40]) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
	for _, text := range []string{"", "ci:", secret, s.Public().String() + "=", "ci:" + strings.Repeat("\n", 44)} {
		if _, err := ParsePublicKey(text); err == nil {
			t.Errorf("%q is taken for a public key", text)
		}
	}
	if _, err := GenerateSigner("a:b"); err == nil {
		t.Error("a name with a colon is accepted")
	}
}

func TestPreAuth(t *testing.T) {
	// The example of the DSSE specification.
	if got := string(preAuth("http://example.com/HelloWorld", []byte("hello world"))); got != "DSSEv1 29 http://example.com/HelloWorld 11 hello world" {
		t.Error(got)
	}
}

func TestSignatures(t *testing.T) {
	signer := func(name string) *Signer {
		s, err := GenerateSigner(name)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b, c := signer("a"), signer("b"), signer("c")
	sealed := func(by ...*Signer) []byte {
		e := envelope{PayloadType: payloadType, Payload: []byte("{}"), Signatures: []signature{}}
		for _, s := range by {
			one, err := seal(e.Payload, s)
			if err != nil {
				t.Fatal(err)
			}
			var got envelope
			if err := json.Unmarshal(one, &got); err != nil {
				t.Fatal(err)
			}
			e.Signatures = append(e.Signatures, got.Signatures...)
		}
		out, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, tt := range []struct {
		name  string
		env   []byte
		trust []*Signer
		ok    bool
	}{
		{"unsigned, none trusted", sealed(), nil, true},
		{"unsigned", sealed(), []*Signer{a}, false},
		{"signed, none trusted", sealed(a), nil, true},
		{"trusted", sealed(a), []*Signer{a}, true},
		{"another", sealed(a), []*Signer{b}, false},
		{"one of two", sealed(a, b), []*Signer{c, b}, true},
		{"both", sealed(a, b), []*Signer{b, a}, true},
		{"another key of that name", sealed(signer("a")), []*Signer{a}, false},
		{"too many", sealed(slices.Repeat([]*Signer{a}, 17)...), []*Signer{a}, false},
	} {
		var trust []PublicKey
		for _, s := range tt.trust {
			trust = append(trust, s.Public())
		}
		if _, err := unseal(tt.env, trust); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func FuzzRecord(f *testing.F) {
	signer, err := GenerateSigner("ci")
	if err != nil {
		f.Fatal(err)
	}
	trust, err := GenerateSigner("trusted")
	if err != nil {
		f.Fatal(err)
	}
	payload, err := samplePredicate(f).encode()
	if err != nil {
		f.Fatal(err)
	}
	env, err := seal(payload, signer)
	if err != nil {
		f.Fatal(err)
	}
	manifest := func(layers ...ocispec.Descriptor) []byte {
		b, err := json.Marshal(recordManifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, Config: envelopeDescriptor(mediaTypeRecord, env), Layers: layers,
		})
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	f.Add(manifest(), env)
	f.Add(manifest(ocispec.Descriptor{MediaType: mediaTypeLog, Digest: digest.FromString("log 1"), Size: 40, Data: []byte("log 1")}), env)
	f.Add([]byte(`{"schemaVersion":2}`), []byte(`{"payloadType":"application/vnd.in-toto+json"}`))
	f.Fuzz(func(t *testing.T, manifest, env []byte) {
		m, err := decodeRecordManifest(manifest)
		if err != nil {
			m = &recordManifest{}
		}
		// Bytes that do not have their digest get no further: make it right.
		data := m.Layers
		m.Config = envelopeDescriptor(mediaTypeRecord, env)
		m.Layers = data
		if _, err := openRecord(m, env, []PublicKey{trust.Public()}); err == nil {
			t.Fatal("accepted without a signature")
		}
		r, err := openRecord(m, env, nil)
		if err != nil {
			return
		}
		// What is believed can be used and written again.
		c := &Cache{Repo: &repo.Memory{}}
		if got := c.result(r, r.Key); got.Key != r.Key {
			t.Fatal(got.Key)
		}
		again, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodePredicate(again); err != nil {
			t.Fatalf("%v: %s", err, again)
		}
	})
}

func FuzzPredicate(f *testing.F) {
	p := samplePredicate(f)
	b, err := p.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePredicate(b)
		if err != nil {
			return
		}
		again, err := p.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodePredicate(again); err != nil {
			t.Fatalf("%v: %s", err, again)
		}
	})
}
