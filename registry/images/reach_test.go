package images_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/internal/repotest"
	"github.com/ocurrent/obx/registry/repo"
)

func TestReachOf(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("0", 64)
	for want, refs := range map[images.Reach][]string{
		images.ReachPublic: {
			"scratch", "busybox", "docker.io/library/busybox", "ghcr.io/a/b:1", "quay.io:443/a" + digest, "8.8.8.8/a", "1.1.1.1:5000/a", "[2606:4700::1111]:5000/a",
			"172.32.0.1/a", "internal.example.com/a", "1.example.x1/a", "[64:ff9b::808:808]/a", "[2002:808:808::1]/a",
		},
		images.ReachPrivate: {
			"localhost/a", "localhost:5000/a" + digest, "LOCALHOST:5000/a", "a.localhost/a", "127.0.0.1/a", "127.8.9.10:5000/a", "[::1]:5000/a", "0.0.0.0:5000/a", "[::]:5000/a",
			"10.0.0.1/a", "172.16.0.1/a", "172.31.255.255:80/a", "192.168.1.1/a", "169.254.169.254/a", "100.100.100.200/a", "192.0.0.192/a", "[fe80::1]/a", "[fd00:ec2::254]/a",
			"[fec0::1]/a", "255.255.255.255/a", "224.0.0.1/a", "198.18.0.1/a", "[::ffff:7f00:1]:5000/a", "[::7f00:1]/a", "[64:ff9b::7f00:1]/a", "[64:ff9b::a9fe:a9fe]/a",
			"[64:ff9b:1::1]/a", "[2002:7f00:1::1]/a", "[2002:a00:1::1]/a", "registry:5000/a", "2130706433:80/a", "0x7f000001:80/a", "registry.local/a", "metadata.google.internal/a",
			"printer.home.arpa/a", "registry.lan/a", "127.1:5000/a", "0x7f.0.0.1/a", "0x7f.1/a", "0177.0.0.1/a", "127.0.0.01/a", "1.2.3.4.5/a", "a.0x1/a", "a.08/a", "168.63.129.16/a",
		},
		images.ReachLocal: {"oci:/etc", "oci:dir", "oci:./dir:tag", "oci:/" + digest},
	} {
		for _, ref := range refs {
			if got, err := images.ReachOf(ref); err != nil || got != want {
				t.Errorf("ReachOf(%q) = %v, %v; want %v", ref, got, err, want)
			}
		}
	}
	// What is no name at all reaches nothing: there is no other way to name a socket.
	for _, ref := range []string{"unix:///run/docker.sock", "http://127.0.0.1/a", "/run/x.sock", "file:///etc", ""} {
		if _, err := images.ReachOf(ref); err == nil {
			t.Errorf("%q is a name", ref)
		}
	}
}

// dns answers for hosts with one address each.
func dns(hosts map[string]netip.Addr) *net.Resolver {
	answer := func(q []byte) []byte {
		end := 12 // of the question
		var labels []string
		for q[end] != 0 {
			n := int(q[end])
			labels = append(labels, string(q[end+1:end+1+n]))
			end += 1 + n
		}
		end += 5
		ip, ok := hosts[strings.Join(labels, ".")]
		ok = ok && binary.BigEndian.Uint16(q[end-4:]) == 1 // A
		a := append([]byte(nil), q[:end]...)
		a[2], a[3] = 0x81, 0x80
		clear(a[6:12])
		if ok {
			a[7] = 1
			a = append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
			a = append(a, ip.AsSlice()...)
		}
		return a
	}
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer ours.Close()
			for {
				var size [2]byte
				if _, err := io.ReadFull(ours, size[:]); err != nil {
					return
				}
				q := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(ours, q); err != nil {
					return
				}
				a := answer(q)
				if _, err := ours.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)); err != nil {
					return
				}
			}
		}()
		return theirs, nil
	}}
}

// A site is a server on a loopback address that counts who connects to it.
type site struct {
	addr  string // of its name
	port  string
	conns atomic.Int64
}

func newSite(t *testing.T, ip string, h http.Handler) *site {
	t.Helper()
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Skip(err) // not all systems have all of 127.0.0.0/8
	}
	s := &site{addr: l.Addr().String()}
	_, s.port, _ = net.SplitHostPort(s.addr)
	srv := httptest.NewUnstartedServer(h)
	srv.Listener.Close()
	srv.Listener = l
	srv.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			s.conns.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return s
}

// serve has one image under every name.
func (img *testImage) serve(w http.ResponseWriter, r *http.Request) {
	body, mediaType := img.manifest, img.desc.MediaType
	if dir, name := path.Split(r.URL.Path); strings.HasSuffix(dir, "/blobs/") {
		body, mediaType = img.blobs[digest.Digest(name)], "application/octet-stream"
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(body).String())
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(body)))
}

// TestPublicOnly has specs name a registry that is public, for this test's sake, and one that is not, by all the ways that lead there.
func TestPublicOnly(t *testing.T) {
	img := makeImage(t, false, repotest.Linux("amd64"), testLayer{file: "a", text: "a"})
	var manifest ocispec.Manifest
	if err := json.Unmarshal(img.manifest, &manifest); err != nil {
		t.Fatal(err)
	}
	var fault func(w http.ResponseWriter, r *http.Request) bool
	inside := newSite(t, "127.0.0.2", http.HandlerFunc(img.serve))
	outside := newSite(t, "127.0.0.1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault == nil || !fault(w, r) {
			img.serve(w, r)
		}
	}))
	public, private := "public.example:"+outside.port, "private.example:"+inside.port
	resolver := dns(map[string]netip.Addr{"public.example": netip.MustParseAddr("127.0.0.1"), "private.example": netip.MustParseAddr("127.0.0.2")})
	newGuarded := func() *images.Resolver {
		fault = nil
		im := newImages(t)
		im.Client = &repo.Client{PlainHTTP: []string{public, private}, Resolver: resolver}
		im.Guarded = im.Client.Only(func(ip netip.Addr) bool { return ip == netip.MustParseAddr("127.0.0.1") })
		return im
	}
	redirect := func(to, what string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, what) {
				return false
			}
			http.Redirect(w, r, "http://"+to+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
	}
	token := func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+private+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	isRefused := func(t *testing.T, err error, where string) {
		t.Helper()
		var bad *keys.BaseError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), where) || !strings.Contains(err.Error(), "ask for --allow registry.private") {
			t.Errorf("the error is %v", err)
		}
		if n := inside.conns.Load(); n != 0 {
			t.Errorf("the private host had %d connections", n)
		}
	}

	t.Run("public", func(t *testing.T) {
		im := newGuarded()
		got, err := pull(t.Context(), im, public+"/app")
		if err != nil {
			t.Fatal(err)
		}
		wantPulled(t, im.Store, got, img)
	})
	for _, tt := range []struct {
		name, ref, where string
		fault            func(http.ResponseWriter, *http.Request) bool
	}{
		{"a name", private + "/app", "private.example is at the private address 127.0.0.2", nil},
		{"an address", inside.addr + "/app", "the private registry 127.0.0.2", nil},
		{"localhost, which is asked whether it speaks TLS", "localhost:" + inside.port + "/app", "the private registry localhost", nil},
		{"a redirect to a name", public + "/app", "private.example", redirect(private, "/manifests/")},
		{"a redirect to an address", public + "/app", "127.0.0.2", redirect(inside.addr, "/manifests/")},
		{"a layer's redirect", public + "/app", "private.example", redirect(private, "/blobs/"+string(img.layers[0].Digest))},
		{"a config's redirect", public + "/app", "127.0.0.2", redirect(inside.addr, "/blobs/"+string(manifest.Config.Digest))},
		{"a token", public + "/app", "private.example", token},
	} {
		t.Run(tt.name, func(t *testing.T) {
			im := newGuarded()
			fault = tt.fault
			_, err := pull(t.Context(), im, tt.ref)
			isRefused(t, err, tt.where)
		})
	}
	t.Run("all places at once", func(t *testing.T) {
		s, err := spec.Parse("f", []byte("((build a ((from "+private+"/a)))\n (build b ((from "+public+"/b)))\n (from "+inside.addr+"/c))"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = keys.New(t.Context(), s, keys.Options{Platform: repotest.Linux("amd64"), Resolver: newGuarded()})
		var list spec.ErrorList
		if !errors.As(err, &list) || len(list) != 2 || list[0].Pos != (spec.Pos{Line: 1, Col: 12}) || list[1].Pos != (spec.Pos{Line: 3, Col: 2}) {
			t.Errorf("the errors are %v", err)
		}
		if n := inside.conns.Load(); n != 0 {
			t.Errorf("the private host had %d connections", n)
		}
	})
	// What the user names may be anywhere.
	for name, use := range map[string]func(*images.Resolver) string{
		"a base": func(im *images.Resolver) string {
			im.Bases = map[string]string{"app": inside.addr + "/app"}
			return "app"
		},
		"a mirror": func(im *images.Resolver) string {
			im.Mirrors = map[string][]string{"docker.io": {inside.addr}}
			return "app"
		},
		"everything": func(im *images.Resolver) string {
			im.Guarded = nil
			return inside.addr + "/app"
		},
	} {
		t.Run("allowed: "+name, func(t *testing.T) {
			im := newGuarded()
			ref := use(im)
			got, err := pull(t.Context(), im, ref)
			if err != nil {
				t.Fatal(err)
			}
			wantPulled(t, im.Store, got, img)
		})
	}
	t.Run("allowed: a cache", func(t *testing.T) {
		repo := repotest.Open(t, inside.addr+"/app")
		if _, err := repo.Head(t.Context(), "latest"); err != nil {
			t.Error(err)
		}
	})
}
