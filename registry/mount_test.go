package registry_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
)

func mountTag(domain, name string) string {
	return "mount-" + digest.FromString(domain+"\n"+name).Encoded()
}

func pushMount(t testing.TB, c *registry.Cache, name string, files map[string]string) layers.Layer {
	t.Helper()
	l := newChain(t, c.Store, "mount").layer(files)
	if _, err := c.PushMount(t.Context(), name, l, nil); err != nil {
		t.Fatal(err)
	}
	return l
}

// mounted gives a file of what is found of a mount; "" if nothing is.
func mounted(t testing.TB, c *registry.Cache, name, file string) string {
	t.Helper()
	m, err := c.FindMount(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if m.IsZero() {
		return ""
	}
	l, err := c.FetchMount(t.Context(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(c.Store.LayerPath(l.Dir), file))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestMounts(t *testing.T) {
	needRoot(t)
	ci, evil := signer(t, "ci"), signer(t, "evil")
	copyTo := func(t *testing.T, repo *spy, tag string) {
		_, b, err := repo.Manifest(t.Context(), mountTag("default", "c"))
		if err == nil {
			_, err = repo.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	content := func(change func(map[string]any)) func(t *testing.T, repo *spy) {
		return func(t *testing.T, repo *spy) {
			tag := mountTag("default", "c")
			forge(t, repo, tag, tag, func(env map[string]any) { statement(t, env, change) })
		}
	}
	for name, test := range map[string]struct {
		spoil  func(t *testing.T, repo *spy)
		signed *registry.Signer
		trust  []registry.PublicKey
		mount  string // that is asked for
		domain string
		warns  string // "": it is found
	}{
		"as it was":             {},
		"signed":                {signed: ci, trust: trust(evil, ci)},
		"not signed":            {trust: trust(ci), warns: "it is not signed"},
		"signed by another":     {signed: evil, trust: trust(ci), warns: `it is signed by "evil"`},
		"changed":               {signed: ci, trust: trust(ci), spoil: content(func(s map[string]any) { s["size"] = 7 }), warns: "not by a trusted key"},
		"of another name":       {signed: ci, trust: trust(ci), spoil: func(t *testing.T, r *spy) { copyTo(t, r, mountTag("default", "d")) }, mount: "d", warns: `it is the mount "c"`},
		"of another domain":     {signed: ci, trust: trust(ci), spoil: func(t *testing.T, r *spy) { copyTo(t, r, mountTag("pr-7", "c")) }, domain: "pr-7", warns: `of domain "default"`},
		"of a later format":     {spoil: content(func(s map[string]any) { s["format"] = 2 }), warns: "its format is 2"},
		"of no size":            {spoil: content(func(s map[string]any) { s["layer"].(map[string]any)["size"] = -1 }), warns: "a size that cannot be"},
		"of no digest":          {spoil: content(func(s map[string]any) { s["diffID"] = "md5:1" }), warns: "cannot be used"},
		"of no layer":           {spoil: content(func(s map[string]any) { s["layer"].(map[string]any)["mediaType"] = "text/plain" }), warns: "text/plain"},
		"another in its place":  {spoil: func(t *testing.T, r *spy) { replace(t, r, `{"schemaVersion": 2}`) }, warns: "it is no cache mount"},
		"an envelope that lies": {spoil: func(t *testing.T, r *spy) { lie(t, r) }, warns: "its envelope"},
		"registry says nothing": {spoil: func(t *testing.T, r *spy) { r.setFault(func(string) error { return errors.New("connection refused") }) }, warns: "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			repo := newSpy()
			a, _ := machine(t, repo)
			a.Signer = test.signed
			pushMount(t, a, "c", map[string]string{"f": "text"})
			b, warned := machine(t, repo)
			if test.domain != "" {
				b.Domains = []string{test.domain}
			}
			b.Trust = test.trust
			if test.spoil != nil {
				test.spoil(t, repo)
			}
			mount := "c"
			if test.mount != "" {
				mount = test.mount
			}
			got, told := mounted(t, b, mount, "f"), strings.Join(warned.take(), "\n")
			switch {
			case test.warns == "" && (got != "text" || told != ""):
				t.Errorf("got %q, warned %q", got, told)
			case test.warns != "" && (got != "" || !strings.Contains(told, test.warns) || strings.Contains(told, "\n")):
				t.Errorf("got %q, warned %q, want one of %q", got, told, test.warns)
			}
			if other, err := b.FindMount(t.Context(), "nosuch"); err != nil || !other.IsZero() {
				t.Errorf("a mount that nobody published: %+v, %v", other, err)
			}
		})
	}
}

// replace puts something else where the mount is.
func replace(t testing.TB, repo *spy, manifest string) {
	t.Helper()
	if _, err := repo.PutManifest(t.Context(), mountTag("default", "c"), ocispec.MediaTypeImageManifest, []byte(manifest)); err != nil {
		t.Fatal(err)
	}
}

// lie changes the envelope that the manifest repeats, but not its digest.
func lie(t testing.TB, repo *spy) {
	t.Helper()
	_, b, err := repo.Manifest(t.Context(), mountTag("default", "c"))
	if err != nil {
		t.Fatal(err)
	}
	replace(t, repo, strings.Replace(string(b), `"data":"e`, `"data":"f`, 1))
}

// A blob that is lost is gone for who fetches it, and sent again by who pushes next.
func TestMountIsLost(t *testing.T) {
	needRoot(t)
	r := newSpy()
	a, _ := machine(t, r)
	l := pushMount(t, a, "c", map[string]string{"f": "text"})
	b, warned := machine(t, r)
	liar := &changed{spy: r, bytes: map[digest.Digest]string{l.Blob.Digest: ""}}
	b.Repo = liar
	m, err := b.FindMount(t.Context(), "c")
	if err != nil || m.IsZero() {
		t.Fatalf("found %+v, %v", m, err)
	}
	if _, err := b.FetchMount(t.Context(), m, nil); !errors.Is(err, registry.ErrGone) {
		t.Errorf("fetched it: %v", err)
	}
	if w := warned.take(); len(w) > 0 {
		t.Errorf("warned %q", w)
	}
	if found := problems(t, b); len(found) != 1 || found[0] != mountTag("default", "c")+": blob "+l.Blob.Digest.String()+" is gone" {
		t.Errorf("Verify finds %q", found)
	}
	liar.bytes[l.Blob.Digest] = "lies"
	if found := problems(t, b); len(found) != 1 || !strings.Contains(found[0], "has the 4 bytes of") {
		t.Errorf("Verify finds %q", found)
	}

	if err := r.Memory.Delete(t.Context(), mountTag("default", "c")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.CollectGarbage(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := a.PushMount(t.Context(), "c", l, nil); err != nil {
		t.Fatal(err)
	}
	c, _ := machine(t, r)
	if got := mounted(t, c, "c", "f"); got != "text" {
		t.Errorf("got %q", got)
	}
}

func TestMountVerify(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	a, _ := machine(t, repo)
	a.Signer = signer(t, "ci")
	pushMount(t, a, "c", map[string]string{"f": "text"})
	b, _ := machine(t, repo)
	b.Trust = trust(a.Signer)
	if found := problems(t, b); len(found) > 0 {
		t.Errorf("found %q", found)
	}
	b.Trust = trust(signer(t, "other"))
	if found := problems(t, b); len(found) != 1 || !strings.HasSuffix(found[0], `it is signed by "ci", and not by a trusted key`) {
		t.Errorf("found %q", found)
	}
	b.Trust = nil
	_, manifest, err := repo.Manifest(t.Context(), mountTag("default", "c"))
	if err == nil {
		_, err = repo.PutManifest(t.Context(), mountTag("default", "d"), ocispec.MediaTypeImageManifest, manifest)
	}
	if err != nil {
		t.Fatal(err)
	}
	if found := problems(t, b); len(found) != 1 || found[0] != mountTag("default", "d")+`: it is the mount "c" of domain "default"` {
		t.Errorf("found %q", found)
	}
}

func TestMountRefusedMediaTypes(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	repo.refuse = "application/vnd.obx"
	a, _ := machine(t, repo)
	a.Signer = signer(t, "ci")
	pushMount(t, a, "c", map[string]string{"f": "text"})
	_, b, err := repo.Manifest(t.Context(), mountTag("default", "c"))
	if err != nil || strings.Contains(string(b), "vnd.obx") {
		t.Errorf("got %s, %v", b, err)
	}
	var m ocispec.Manifest
	var config ocispec.Image
	decode(t, b, &m)
	decode(t, m.Config.Data, &config)
	if config.OS != "unknown" || len(config.RootFS.DiffIDs) != 1 {
		t.Errorf("the config is %s", m.Config.Data)
	}
	c, warned := machine(t, repo)
	c.Trust = trust(a.Signer)
	if got := mounted(t, c, "c", "f"); got != "text" {
		t.Errorf("got %q, warned %q", got, warned.take())
	}
	if found := problems(t, c); len(found) > 0 {
		t.Errorf("Verify finds %q", found)
	}
}

// Who adds to what it has found notices that somebody else has published meanwhile: before it puts, and after.
func TestMountMoved(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	a, _ := machine(t, repo)
	tag := mountTag("default", "c")
	mine := newChain(t, a.Store, "mount").layer(map[string]string{"f": "mine"})
	none, err := a.FindMount(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	other, _ := machine(t, repo)
	if _, err := a.PushMount(t.Context(), "c", mine, &none); err != nil {
		t.Fatal(err)
	}
	if _, err := a.PushMount(t.Context(), "c", mine, &none); !errors.Is(err, registry.ErrMountMoved) {
		t.Errorf("over what was not there when it looked: %v", err)
	}
	found, err := a.FindMount(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	repo.setFault(func(line string) error {
		if line == "HEAD "+tag {
			if n++; n == 2 { // the look after the PUT
				repo.setFault(nil)
				pushMount(t, other, "c", map[string]string{"f": "theirs"})
			}
		}
		return nil
	})
	more := newChain(t, a.Store, "mount").layer(map[string]string{"f": "more"})
	if _, err := a.PushMount(t.Context(), "c", more, &found); !errors.Is(err, registry.ErrMountMoved) {
		t.Errorf("replaced right after: %v", err)
	}
	if got := mounted(t, other, "c", "f"); got != "theirs" {
		t.Errorf("there is %q", got)
	}
}

func TestMountGC(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	a, warned := machine(t, repo)
	month := 30 * 24 * time.Hour
	registry.SetClock(a, func() time.Time { return time.Now().Add(-month) })
	for _, name := range []string{"unused", "used"} {
		pushMount(t, a, name, map[string]string{"f": name})
	}
	replace(t, repo, `{"schemaVersion": 2}`)
	registry.SetClock(a, time.Now)
	pushMount(t, a, "new", map[string]string{"f": "new"})
	touch := func() []string {
		t.Helper()
		m, err := a.FindMount(t.Context(), "used")
		if err != nil {
			t.Fatal(err)
		}
		repo.seen()
		a.TouchMount(t.Context(), "used", m)
		return repo.seen()
	}
	if lines := touch(); !slices.Equal(lines, []string{"HEAD " + mountTag("default", "used"), "PUT " + mountTag("default", "used")}) {
		t.Errorf("touching it took %q", lines)
	}
	if lines := touch(); len(lines) > 0 {
		t.Errorf("touching what is new took %q", lines)
	}
	gc, _ := machine(t, repo)
	for _, dry := range []bool{true, false} {
		repo.seen()
		r, err := gc.GC(t.Context(), registry.GCOptions{OlderThan: 7 * 24 * time.Hour, DryRun: dry})
		if err != nil || r.Mounts != 2 {
			t.Errorf("dry %v: %+v, %v", dry, r, err)
		}
		if n := len(repo.seen()) + 1; n != r.Requests { // listing is not seen
			t.Errorf("%d requests, says %d", n, r.Requests)
		}
		for name, want := range map[string]string{"unused": "", "used": "used", "new": "new"} {
			if dry {
				want = name
			}
			if got := mounted(t, a, name, "f"); got != want {
				t.Errorf("dry %v: the mount %s has %q", dry, name, got)
			}
		}
	}
	if w := warned.take(); len(w) > 0 {
		t.Errorf("warned %q", w)
	}
	if found := problems(t, gc); len(found) > 0 {
		t.Errorf("Verify finds %q", fmt.Sprint(found))
	}
}
