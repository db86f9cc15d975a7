package repo

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// authFile is a file of logins: each name has one of its user.
func authFile(t *testing.T, path string, users map[string]string) string {
	t.Helper()
	auths := map[string]map[string]string{}
	for name, user := range users {
		auths[name] = map[string]string{}
		if user != "" {
			auths[name]["auth"] = base64.StdEncoding.EncodeToString([]byte(user + ":pass"))
		}
	}
	text, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const onWindows = runtime.GOOS == "windows" // where there are no modes, and links need rights

// loginHome gives the test places for all files of logins.
func loginHome(t *testing.T) (runtime, config, docker string) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("USERPROFILE", home)
	t.Setenv("REGISTRY_AUTH_FILE", "")
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("DOCKER_CONFIG", "")
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(home, "run"))
	return filepath.Join(home, "run/containers/auth.json"), filepath.Join(home, ".config/containers/auth.json"), filepath.Join(home, ".docker/config.json")
}

// The order of files and names is that of skopeo (containers/image, pkg/docker/config).
func TestLoginsFind(t *testing.T) {
	const hub = "https://index.docker.io/v1/"
	type users = map[string]string
	tests := []struct {
		name                    string
		runtime, config, docker users
		host, repository        string
		want                    string
	}{
		{"none", nil, nil, nil, "r.example", "a/b", ""},
		{"docker's alone", nil, nil, users{"r.example": "d"}, "r.example", "a/b", "d"},
		{"the runtime's first", users{"r.example": "r"}, users{"r.example": "c"}, users{"r.example": "d"}, "r.example", "a/b", "r"},
		{"then the user's", users{"other.example": "r"}, users{"r.example": "c"}, users{"r.example": "d"}, "r.example", "a/b", "c"},
		{"an empty one is none", users{"r.example": ""}, nil, users{"r.example": "d"}, "r.example", "a/b", "d"},
		{"repository", users{"r.example": "r", "r.example/a": "a", "r.example/a/b": "b"}, nil, nil, "r.example", "a/b", "b"},
		{"namespace", users{"r.example": "r", "r.example/a": "a", "r.example/a/b": "b"}, nil, nil, "r.example", "a/c", "a"},
		{"host", users{"r.example": "r", "r.example/a": "a", "r.example/a/b": "b"}, nil, nil, "r.example", "ab/c", "r"},
		{"the file counts before the name", users{"r.example": "r"}, users{"r.example/a": "a"}, nil, "r.example", "a/b", "r"},
		{"a namespace is not the host", users{"r.example/a": "a"}, nil, nil, "r.example", "c", ""},
		{"port", users{"r.example": "r", "r.example:5000": "p"}, nil, nil, "r.example:5000", "a", "p"},
		{"another port", users{"r.example:5000": "p"}, nil, nil, "r.example", "a", ""},
		{"URL", nil, nil, users{"https://r.example/v1/": "u"}, "r.example", "a", "u"},
		{"Docker Hub by Docker", nil, nil, users{hub: "h"}, "docker.io", "library/x", "h"},
		{"Docker Hub by podman", users{"docker.io": "h"}, nil, nil, "docker.io", "library/x", "h"},
		{"a namespace of Docker Hub", users{"docker.io/me": "m", "docker.io": "h"}, nil, nil, "docker.io", "me/x", "m"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var files []string
			runtime, config, docker := loginHome(t)
			for path, us := range map[string]users{runtime: tt.runtime, config: tt.config, docker: tt.docker} {
				if us != nil {
					files = append(files, authFile(t, path, us))
				}
			}
			c := startClient(t, &Client{})
			s := c.session(tt.host, tt.repository)
			cred, err := s.credential(t.Context())
			if err != nil || cred.Username != tt.want {
				t.Errorf("got %q, %v", cred.Username, err)
			}
			if tt.want != "" && !slices.Contains(files, s.from) {
				t.Errorf("it is from %q", s.from)
			}
		})
	}
}

func TestLoginsAuthFileIsAlone(t *testing.T) {
	_, _, docker := loginHome(t)
	authFile(t, docker, map[string]string{"r.example": "d"})
	t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(t.TempDir(), "none.json"))
	l, err := ReadLogins()
	if err != nil {
		t.Fatal(err)
	}
	if found := l.find("r.example", "x"); len(found) != 0 {
		t.Errorf("found %v", found)
	}
}

// A repository is logged in to with its own login also where another one of the same host was before.
func TestLoginsOfRepositories(t *testing.T) {
	var mu sync.Mutex
	got := map[string]string{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, _, ok := r.BasicAuth()
		if !ok {
			w.Header().Set("WWW-Authenticate", "Basic realm=x")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		got[r.URL.Path] = user
	}))
	defer srv.Close()
	addr := srv.Listener.Addr().String()
	runtime, _, _ := loginHome(t)
	authFile(t, runtime, map[string]string{addr: "all", addr + "/team": "team"})
	c := startClient(t, &Client{})
	defer c.transport.plain.CloseIdleConnections()
	for _, repository := range []string{"app", "team/app", "other"} {
		req, _ := http.NewRequest("GET", srv.URL+"/v2/"+repository, nil)
		resp, err := c.session(addr, repository).do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	want := map[string]string{"/v2/app": "all", "/v2/team/app": "team", "/v2/other": "all"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v", got)
	}
	if len(c.sessions) != 2 {
		t.Errorf("%d sessions", len(c.sessions))
	}
}

// A registry that says that an upload goes on elsewhere does not get its login sent there.
func TestLoginStaysWithItsHost(t *testing.T) {
	var elsewhere []string
	challenge := func(w http.ResponseWriter) {
		w.Header().Set("WWW-Authenticate", "Basic realm=x")
		w.WriteHeader(http.StatusUnauthorized)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		elsewhere = append(elsewhere, r.Header.Get("Authorization"))
		challenge(w)
	}))
	defer srv.Close()
	runtime, _, _ := loginHome(t)
	authFile(t, runtime, map[string]string{"r.example": "me", "r.example/x": "me"})
	c := startClient(t, &Client{})
	defer c.transport.plain.CloseIdleConnections()
	req, _ := http.NewRequest("PUT", srv.URL+"/upload", nil)
	if resp, err := c.session("r.example", "x").do(req); err == nil {
		resp.Body.Close()
	}
	if len(elsewhere) == 0 || slices.ContainsFunc(elsewhere, func(s string) bool { return s != "" }) {
		t.Errorf("elsewhere got %q", elsewhere)
	}
}

func TestLoginsSaveAndRemove(t *testing.T) {
	for _, host := range []string{"r.example:5000", "docker.io"} {
		t.Run(host, func(t *testing.T) {
			runtime, config, docker := loginHome(t)
			user := func(want string) {
				t.Helper()
				l, err := ReadLogins()
				if err != nil {
					t.Fatal(err)
				}
				c := &Client{logins: l, sessions: map[string]*session{}}
				if cred, err := c.session(host, "a/b").credential(t.Context()); err != nil || cred.Username != want {
					t.Errorf("got %q, %v; want %q", cred.Username, err, want)
				}
			}
			save := func(name, want string) {
				t.Helper()
				l, err := ReadLogins()
				if err != nil {
					t.Fatal(err)
				}
				path, plain, err := l.Save(t.Context(), host, name, "pass")
				if err != nil || path != want || !plain {
					t.Errorf("saved in %s, %v, %v", path, plain, err)
				}
				user(name)
			}
			user("")
			save("one", docker)
			if info, err := os.Stat(docker); err != nil || !onWindows && info.Mode().Perm() != 0o600 {
				t.Errorf("%v %v", info.Mode(), err)
			}
			save("two", docker)
			authFile(t, config, map[string]string{host: "old", "other.example": "stays"})
			save("three", config) // where it is found
			authFile(t, runtime, map[string]string{"other.example": "stays"})
			save("four", config)
			l, err := ReadLogins()
			if err != nil {
				t.Fatal(err)
			}
			from, err := l.Remove(t.Context(), host)
			if err != nil || !slices.Equal(from, []string{config, docker}) {
				t.Errorf("removed from %v, %v", from, err)
			}
			user("")
			if b, _ := os.ReadFile(config); !strings.Contains(string(b), "other.example") {
				t.Errorf("left: %s", b)
			}
		})
	}
}

func TestLoginsSaveKeepsLink(t *testing.T) {
	if onWindows {
		t.Skip("links are for who may make them there")
	}
	_, _, docker := loginHome(t)
	real := filepath.Join(t.TempDir(), "real.json")
	authFile(t, docker, nil)
	if err := os.Rename(docker, real); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, docker); err != nil {
		t.Skip(err)
	}
	l, err := ReadLogins()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Save(t.Context(), "r.example", "me", "pass"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(real); err != nil || !strings.Contains(string(b), "r.example") {
		t.Errorf("%s, %v", b, err)
	}
}
