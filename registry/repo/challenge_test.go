package repo

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAnswerableChallenge(t *testing.T) {
	const bearer = `Bearer realm="https://auth.example/token",service="a,b",scope="repository:x:pull,push"`
	tests := []struct {
		name   string
		fields []string
		want   string // "": none
	}{
		{"one", []string{bearer}, bearer},
		{"basic", []string{`basic realm="x y"`}, `basic realm="x y"`},
		{"basic alone", []string{"Basic"}, "Basic"},
		{"another before it in the same field", []string{"Negotiate, " + bearer}, bearer},
		{"another after it", []string{bearer + ", Negotiate"}, bearer},
		{"another field before it", []string{"Negotiate", bearer}, bearer},
		{"another field after it", []string{bearer, "NTLM"}, bearer},
		{"with a token68", []string{"Negotiate oYG2MIGzoAMKAQChCw==, " + bearer}, bearer},
		{"with a token68 without padding", []string{"Negotiate oYG2MIG/zoAM, " + bearer}, bearer},
		{"basic first", []string{`Basic realm="r", ` + bearer}, bearer},
		{"basic last", []string{bearer + `, Basic realm="r"`}, bearer},
		{"basic between others", []string{`Digest realm="r, s", nonce=abc, qop="auth", Basic realm="q", Negotiate`}, `Basic realm="q"`},
		{"names in capitals, spaces", []string{`BEARER Realm = "https://auth.example/token" , Service=s`}, `BEARER realm="https://auth.example/token",service="s"`},
		{"escapes that Go has not", []string{`Bearer realm="https://auth.example/\token",service="a\"b"`}, `Bearer realm="https://auth.example/token",service="a\"b"`},
		{"a realm that is no URL", []string{`Bearer realm="x", Basic realm="r"`}, `Basic realm="r"`},
		{"a realm without TLS", []string{`Bearer realm="http://auth.example/token", Basic`}, "Basic"},
		{"two realms", []string{`Bearer realm="ftp://auth.example/", ` + bearer}, bearer},
		{"empty elements", []string{", ,Negotiate,, " + bearer + ","}, bearer},
		{"none", nil, ""},
		{"unknown", []string{"Negotiate, Digest realm=\"Basic\""}, ""},
		{"not ended", []string{`Digest realm="r, Basic realm=q`}, ""},
		{"rubbish", []string{`"=,;Basic`, "@@@"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, ok := answerable(parseChallenges(tt.fields), &url.URL{Scheme: "https", Host: "registry.example"})
			if got := c.String(); ok != (tt.want != "") || ok && got != tt.want {
				t.Errorf("got %q", got)
			}
		})
	}
}

// A login gets in, whatever else the registry offers beside the way that obx knows.
func TestLoginAmongChallenges(t *testing.T) {
	login := base64.StdEncoding.EncodeToString([]byte("me:right"))
	var challenges []string
	srv := httptest.NewServer(nil)
	defer srv.Close()
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch a := r.Header.Get("Authorization"); {
		case r.URL.Path == "/token" && a == "Basic "+login:
			fmt.Fprint(w, `{"token":"T0K"}`)
		case a == "Bearer T0K" || a == "Basic "+login:
		default:
			for _, c := range challenges {
				w.Header().Add("WWW-Authenticate", c)
			}
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	addr := srv.Listener.Addr().String()
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, addr, login), 0o600); err != nil {
		t.Fatal(err)
	}
	bearer := fmt.Sprintf("Bearer realm=%q,service=s", srv.URL+"/token")
	for name, cs := range map[string][]string{
		"bearer":           {bearer},
		"basic":            {`basic realm="x y"`},
		"one field":        {"Negotiate, " + bearer},
		"two fields":       {"Negotiate", bearer},
		"basic, two":       {"Negotiate", `basic realm="x y"`},
		"basic in a list":  {`Negotiate, NTLM TlRMTVNTUAAC==, Basic realm="x"`},
		"bearer is second": {`Basic realm="r", ` + bearer},
	} {
		t.Run(name, func(t *testing.T) {
			challenges = cs
			c := startClient(t, &Client{})
			defer c.transport.plain.CloseIdleConnections()
			req, _ := http.NewRequest("GET", srv.URL+"/v2/x/blobs/y", nil)
			resp, err := c.session(addr, "x").do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("status %d", resp.StatusCode)
			}
		})
	}
}

// What is picked is read as what was picked, and reading ends.
func FuzzChallenges(f *testing.F) {
	f.Add("Negotiate oYG2==, Bearer realm=\"https://auth.example/t\",service=a", "Basic realm=\"x y\"")
	f.Add(`Digest a="b\`, ",,=")
	f.Fuzz(func(t *testing.T, a, b string) {
		if strings.ContainsFunc(a+b, func(r rune) bool { return r < ' ' || r > '~' }) {
			return // what is quoted is read by Go's rules, which are the same for these only
		}
		at := &url.URL{Scheme: "https", Host: "registry.example"}
		c, ok := answerable(parseChallenges([]string{a, b}), at)
		if !ok {
			return
		}
		again, ok := answerable(parseChallenges([]string{c.String()}), at)
		if !ok || again.String() != c.String() {
			t.Errorf("%q is read as %q", c, again)
		}
	})
}
