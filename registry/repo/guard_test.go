package repo

import (
	"errors"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"testing"
)

func TestIsPublic(t *testing.T) {
	for want, addrs := range map[bool][]string{
		true: {"1.1.1.1", "8.8.8.8", "172.15.255.255", "172.32.0.0", "192.167.0.1", "100.63.255.255", "100.128.0.1",
			"2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"},
		false: {
			"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "10.0.0.0", "172.16.0.0", "172.31.255.255", "192.168.0.1",
			"169.254.169.254", "100.64.0.1", "192.0.0.192",
			"198.19.0.1", "192.0.2.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1",
			"::ffff:127.0.0.1", "::ffff:10.0.0.1", "fe80::1", "fe80::1%eth0",
			"fd00::1", "fc00::1", "fec0::1", "ff02::1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::8.8.8.8",
			"2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:1::1", "2001:db8::1", "100::1",
			"2606:4700::1111%eth0", "168.63.129.16", "::ffff:0:127.0.0.1",
		},
	} {
		for _, a := range addrs {
			if got := IsPublic(netip.MustParseAddr(a)); got != want {
				t.Errorf("IsPublic(%s) = %v", a, got)
			}
		}
	}
}

// TestProxies is about a proxy between: it may be anywhere, but names are judged, for it would connect to what they say.
func TestProxies(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		t.Setenv(name, "")
	}
	t.Setenv("HTTPS_PROXY", "http://user:password@proxy.lan:3128")
	t.Setenv("HTTP_PROXY", "10.0.0.1:8080")
	want := []string{"10.0.0.1:8080", "proxy.lan:3128"}
	if runtime.GOOS != "windows" { // where both are one variable
		t.Setenv("http_proxy", "https://secure.lan")
		want = append(want, "secure.lan:443")
	}
	if got := slices.Sorted(maps.Keys(proxyAddresses())); !slices.Equal(got, want) {
		t.Errorf("proxies are %q, want %q", got, want)
	}
	tr := newTransport(Patience{}, "")
	tr.plain.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil } // net/http reads the environment only once
	tr.guard(IsPublic, nil)
	for to, refused := range map[string]bool{
		"https://registry.example/v2/": false, "https://127.0.0.1:5000/v2/": true, "http://169.254.169.254/latest": true, "https://localhost/v2/": true,
		"https://[fd00::1]/v2/": true, "http://metadata/": true, "http://１２７.0.0.1/": true, "http://proxy.lan:3128/": true,
		"http://evil.internal./": true, "https://127.1/": true, "https://0x7F.0.0.0x1./": true,
	} {
		req, err := http.NewRequest(http.MethodGet, to, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tr.plain.Proxy(req)
		if errors.As(err, new(*PrivateError)) != refused {
			t.Errorf("%s: %v", to, err)
		}
	}
}
