package hcs

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ocurrent/obx/executor"
)

func TestWindowsPath(t *testing.T) {
	for name, want := range map[string]string{
		"/": `C:\`, "": `C:\`, "C:/": `C:\`, "c:/src": `C:\src`, "/src/": `C:\src`, `C:\a\..\b`: `C:\b`, `d:\x`: `D:\x`,
		`\a`: `C:\a`, "C:/a//b/.": `C:\a\b`, "C:/../..": `C:\`,
	} {
		if got := windowsPath(name); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}

func TestWindowsSpec(t *testing.T) {
	p := executor.Process{
		Argv: []string{"cmd", "/S", "/C", "dir"}, Env: []string{"A=1"}, Dir: "/src", Hostname: "builder",
		Limits: executor.Limits{Memory: 1 << 30, CPUs: 1.5},
	}
	s, err := windowsSpec(p, windowsRun{hyperV: true, namespace: "NS"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	// Neither layer folders nor a root: the task brings them.
	for _, want := range []string{
		`"commandLine":"cmd /S /C \"dir\""`, `"user":{"uid":0,"gid":0,"username":"ContainerAdministrator"}`, `"cwd":"C:\\src"`,
		`"ignoreFlushesDuringBoot":true`, `"hyperv":{}`, `"networkNamespace":"NS"`, `"limit":1073741824`, `"count":2`, `"layerFolders":null`,
	} {
		if !strings.Contains(string(got), want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	p.Argv, p.User, p.Limits = []string{"powershell", "-c", `a "b"`}, "ContainerUser", executor.Limits{}
	if s, err = windowsSpec(p, windowsRun{}); err != nil {
		t.Fatal(err)
	}
	if s.Process.CommandLine != "" || !slices.Equal(s.Process.Args, p.Argv) || s.Process.User.Username != "ContainerUser" || s.Windows.HyperV != nil || s.Windows.Network.NetworkNamespace != "" {
		t.Errorf("got %+v", s.Process)
	}
	p.Limits.PIDs = 10
	if _, err = windowsSpec(p, windowsRun{}); err == nil || !strings.Contains(err.Error(), "number of processes") {
		t.Errorf("a limit of processes: %v", err)
	}
	var bad *executor.StartError
	for _, p := range []executor.Process{{}, {Argv: []string{""}}, {Argv: []string{"a\x00"}}} {
		if _, err := windowsSpec(p, windowsRun{}); !errors.As(err, &bad) {
			t.Errorf("%q: %v", p.Argv, err)
		}
	}
}

func TestSecretDirs(t *testing.T) {
	secret := func(target string) executor.Mount {
		return executor.Mount{Target: target, Secret: &executor.Secret{Data: []byte(target)}}
	}
	p := executor.Process{Mounts: []executor.Mount{secret("/run/secrets/a"), secret(`c:\Run\Secrets\b`), secret("C:/other/x/c"), {Target: "/c", Cache: &executor.Cache{}}}}
	dirs, err := secretDirs(p)
	if err != nil || len(dirs) != 2 {
		t.Fatalf("got %v, %v", dirs, err)
	}
	if dirs[0].target != `C:\run\secrets` || len(dirs[0].files) != 2 || string(dirs[0].files["b"].Data) != `c:\Run\Secrets\b` || dirs[1].target != `C:\other\x` {
		t.Errorf("got %v", dirs)
	}
	var bad *executor.StartError
	for _, target := range []string{"/token", `C:\token`, "/"} {
		if _, err := secretDirs(executor.Process{Mounts: []executor.Mount{secret(target)}}); !errors.As(err, &bad) {
			t.Errorf("%s: %v", target, err)
		}
	}
}

// A fakeHCN notes what is asked of it, and fails at one call.
type fakeHCN struct {
	calls []string
	fail  string
	left  map[string]string
}

func (f *fakeHCN) call(format string, args ...any) error {
	c := fmt.Sprintf(format, args...)
	f.calls = append(f.calls, c)
	if name, _, _ := strings.Cut(c, " "); name == f.fail {
		return errors.New("fake: " + name + " fails")
	}
	return nil
}

func (f *fakeHCN) newNamespace() (string, error)   { return "NS", f.call("newNamespace") }
func (f *fakeHCN) deleteNamespace(id string) error { return f.call("deleteNamespace %s", id) }
func (f *fakeHCN) newEndpoint(name string) (string, error) {
	return "EP", f.call("newEndpoint %s", name)
}
func (f *fakeHCN) attach(ns, ep string) error     { return f.call("attach %s %s", ns, ep) }
func (f *fakeHCN) detach(ns, ep string) error     { return f.call("detach %s %s", ns, ep) }
func (f *fakeHCN) deleteEndpoint(id string) error { return f.call("deleteEndpoint %s", id) }
func (f *fakeHCN) endpoints(prefix string) (map[string]string, error) {
	return f.left, f.call("endpoints %s", prefix)
}

func TestNetwork(t *testing.T) {
	all := []string{"newEndpoint run-1", "newNamespace", "attach NS EP", "detach NS EP", "deleteNamespace NS", "deleteEndpoint EP"}
	for _, test := range []struct {
		fail   string
		opened bool
		want   []string
	}{
		{"", true, all},
		{"newEndpoint", false, all[:1]},
		{"newNamespace", false, []string{all[0], all[1], all[5]}},
		{"attach", false, []string{all[0], all[1], all[2], all[4], all[5]}},
		{"detach", true, all},
		{"deleteNamespace", true, all},
	} {
		f := &fakeHCN{fail: test.fail}
		n, err := openNetwork(f, "run-1")
		if (err == nil) != test.opened {
			t.Errorf("%s fails: %v", test.fail, err)
		}
		if err == nil {
			if n.namespace != "NS" {
				t.Errorf("namespace %q", n.namespace)
			}
			if err := n.close(); (err == nil) != (test.fail == "") {
				t.Errorf("%s fails: close: %v", test.fail, err)
			}
			if err := n.close(); err != nil {
				t.Errorf("closed again: %v", err)
			}
		}
		if !slices.Equal(f.calls, test.want) {
			t.Errorf("%s fails: got %q, want %q", test.fail, f.calls, test.want)
		}
	}
	f := &fakeHCN{left: map[string]string{"EP": "NS"}}
	if err := removeNetworks(f, "run"); err != nil || !slices.Equal(f.calls, append([]string{"endpoints run"}, all[3:]...)) {
		t.Errorf("left over: %q, %v", f.calls, err)
	}
}
