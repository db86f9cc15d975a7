package conformance

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/repo"
)

// A fleet is machines with stores of their own that share one registry, behind a proxy. Base images are in the registry too.
type fleet struct {
	testing.TB
	obx, layout string
	reg         *Registry
	proxy       *Proxy
}

func newFleet(t testing.TB, reg *Registry) *fleet {
	t.Helper()
	RequireRoot(t)
	f := &fleet{TB: t, obx: BuildOBX(t), reg: reg, layout: filepath.Join(t.TempDir(), "busybox")}
	raw, err := busyboxTar(nil)
	if err == nil {
		err = writeLayout(f.layout, raw)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.proxy = StartProxy(t, f.reg.Addr)
	publish(t, f.layout, openRepo(t, f.reg.Addr+"/bases/busybox"))
	return f
}

// with is the same fleet for a test of its own.
func (f *fleet) with(t testing.TB) *fleet {
	g := *f
	g.TB = t
	t.Cleanup(func() {
		f.proxy.Break(nil)
		f.proxy.SetDelay(0)
		f.proxy.SetRate(0)
	})
	f.proxy.Counts()
	return &g
}

// repo names a repository in the registry, behind the proxy, for a test of its own.
func (f *fleet) repo() string { return f.proxy.Addr + "/" + strings.ToLower(path.Base(f.Name())) }

// direct is repo without the proxy.
func (f *fleet) direct() repo.Repo {
	f.Helper()
	return openRepo(f, strings.Replace(f.repo(), f.proxy.Addr, f.reg.Addr, 1))
}

// machine makes one with an empty store.
func (f *fleet) machine() *machine {
	f.Helper()
	dir := memoryDir(f)
	return &machine{TB: f.TB, obx: f.obx, store: filepath.Join(dir, "store"), busybox: f.layout, dir: dir}
}

func openRepo(t testing.TB, name string) repo.Repo {
	t.Helper()
	r, err := new(repo.Client).Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// publish pushes the image of a layout as latest.
func publish(t testing.TB, layout string, to repo.Repo) {
	t.Helper()
	read := func(d digest.Digest) []byte {
		b, err := os.ReadFile(filepath.Join(layout, "blobs/sha256", d.Encoded()))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b, err := os.ReadFile(filepath.Join(layout, ocispec.ImageIndexFile))
	var index ocispec.Index
	if err == nil {
		err = json.Unmarshal(b, &index)
	}
	if err != nil {
		t.Fatal(err)
	}
	data := read(index.Manifests[0].Digest)
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	for _, d := range append(m.Layers, m.Config) {
		PutBytes(t, to, d.MediaType, read(d.Digest))
	}
	if _, err := to.PutManifest(t.Context(), "latest", ocispec.MediaTypeImageManifest, data); err != nil {
		t.Fatal(err)
	}
}

// A told is what one run of obx has told.
type told struct {
	runs, hits     int
	pulled, pushed int64
	key            string
	keys           []string // of steps, in their order
	logs           string   // of all steps, in their order
	warnings       []string
	finished       time.Duration // from the plan to the last step's end
	stderr         string
	err            error
}

// tell reads what obx prints with --progress json.
func tell(out []byte) (r told) {
	var plan time.Time
	logs := map[int]string{}
	ids := map[int]string{}
	for line := range bytes.Lines(out) {
		var e struct {
			Event                    string
			Time                     time.Time
			Step, Runs, Hits         int
			PulledBytes, PushedBytes int64
			Key, Text, Message       string
		}
		if json.Unmarshal(line, &e) != nil {
			continue // cut off by a kill
		}
		switch e.Event {
		case "plan":
			plan = e.Time
		case "output":
			logs[e.Step] += e.Text
		case "step":
			ids[e.Step] = e.Key
			r.finished = e.Time.Sub(plan)
		case "warning":
			r.warnings = append(r.warnings, e.Message)
		case "done":
			r.runs, r.hits, r.pulled, r.pushed, r.key = e.Runs, e.Hits, e.PulledBytes, e.PushedBytes, e.Key
		}
	}
	for _, n := range slices.Sorted(maps.Keys(ids)) {
		r.keys = append(r.keys, ids[n])
		r.logs += logs[n]
	}
	return r
}

// try runs a spec.
func (m *machine) try(spec string, more ...string) told {
	m.Helper()
	return result(m.command(spec, append(more, "--progress", "json")...))
}

// result runs a command of obx.
func result(cmd *exec.Cmd) told {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := tell(stdout.Bytes())
	r.stderr, r.err = stderr.String(), err
	return r
}

// want runs a spec that must succeed with so many steps run and taken from somewhere.
func (m *machine) want(runs, hits int, spec string, more ...string) told {
	m.Helper()
	r := m.try(spec, more...)
	if r.err != nil || r.runs != runs || r.hits != hits {
		m.Fatalf("%d steps ran, %d hit, want %d and %d; %v\n%s", r.runs, r.hits, runs, hits, r.err, r.stderr)
	}
	return r
}

// silent is want for a run that has nothing to warn of.
func (m *machine) silent(runs, hits int, spec string, more ...string) told {
	m.Helper()
	r := m.want(runs, hits, spec, more...)
	if len(r.warnings) > 0 {
		m.Errorf("warnings: %q", r.warnings)
	}
	return r
}

// file reads a file of a result that --output type=local wrote.
func (m *machine) file(dir, name string) string {
	m.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		m.Error(err)
	}
	return string(b)
}

// local is the flags that write a result's files into a new directory.
func (m *machine) local() (dir string, flags []string) {
	dir = filepath.Join(m.TempDir(), "out")
	return dir, []string{"--output", "type=local,dest=" + dir}
}

// tags lists a repository.
func (f *fleet) tags(r repo.Repo) (tags []string) {
	f.Helper()
	for tag, err := range r.Tags(f.Context()) {
		if err != nil {
			f.Fatal(err)
		}
		tags = append(tags, tag)
	}
	return tags
}

// manifest reads a manifest.
func (f *fleet) manifest(r repo.Repo, ref string) (m ocispec.Manifest) {
	f.Helper()
	_, b, err := r.Manifest(f.Context(), ref)
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		f.Fatal(err)
	}
	return m
}

// layerPulls counts the requests of the proxy for layers of an image.
func (f *fleet) layerPulls(m ocispec.Manifest) (n int) {
	for _, r := range f.proxy.Requests() {
		for _, l := range m.Layers {
			if strings.HasPrefix(r, "GET ") && strings.Contains(r, "/blobs/"+l.Digest.String()) {
				n++
			}
		}
	}
	return n
}

// TestFleet shows with real processes that machines can share a registry.
func TestFleet(t *testing.T) {
	f := newFleet(t, NewDebian(t))
	for name, test := range map[string]func(*fleet){
		"Resume":  fleetResume,
		"Crowd":   fleetCrowd,
		"Order":   fleetOrder,
		"Poison":  fleetPoison,
		"Mounts":  fleetMounts,
		"Domains": fleetDomains,
		"Deleted": fleetDeleted,
		"Many":    fleetMany,
		"Busy":    fleetBusy,
		"Bytes":   fleetBytes,
		"Copied":  fleetCopied,
	} {
		t.Run(name, func(t *testing.T) { test(f.with(t)) })
	}
}

// A step that machine A is killed in the middle of is done by B, which goes on from the last that A has published; C does nothing.
func fleetResume(f *fleet) {
	net := newNetwork(f)
	spec := fmt.Sprintf(`((from %s/bases/busybox:latest) (shell /bin/sh -c)
 (run (shell "echo first; echo 1 > /one"))
 (run (shell "echo second; mkdir /d; echo 2 > /d/two; ln -s two /d/link; chmod 4755 /d/two"))
 (run (secrets (value (target /wait))) (shell "echo third; sh /wait; echo 3 > /three"))
 (run (shell "echo fourth; rm /one; echo 4 > /four"))
)`, net.addr)
	cache := []string{"--compression", "gzip", "--cache", net.addr + "/" + strings.ToLower(path.Base(f.Name())), "--plain-http", net.addr, "--secret"}

	a := f.machine()
	a.net = net
	cmd := a.command(spec, append(cache, f.secret("sleep 61.7; : obx-crash-step"), "--progress", "json")...) // secrets are in no key
	cache = append(cache, f.secret("true"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		f.Fatal(err)
	}
	repo := f.direct()
	published := 0
	for deadline := time.Now().Add(20 * time.Second); published < 2 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		published = 0
		for _, tag := range f.tags(repo) {
			if strings.HasSuffix(tag, ".rec") {
				published++
			}
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		f.Fatalf("%v\n%s", err, stderr.String())
	}
	_ = cmd.Wait()
	a.clean()
	if published != 2 {
		f.Fatalf("%d records were published\n%s%s", published, stdout.String(), stderr.String())
	}
	if strings.Contains(stdout.String(), `"fourth`) {
		f.Errorf("the third step was not stopped:\n%s", stdout.String())
	}

	b := f.machine()
	b.net = net
	first := b.silent(2, 2, spec, cache...)
	b.net = nil
	const want = "first\nsecond\nthird\nfourth\n"
	if first.logs != want {
		f.Errorf("B showed %q", first.logs)
	}

	c := f.machine()
	c.net = net
	f.proxy.Counts()
	again := c.silent(0, 4, spec, cache...)
	if again.logs != want || again.pulled != 0 || again.key != first.key {
		f.Errorf("C showed %q, pulled %d bytes, key %s", again.logs, again.pulled, again.key)
	}
	image := f.manifest(repo, first.key)
	if n := f.layerPulls(image); n > 0 {
		f.Errorf("C pulled %d layers:\n%s", n, strings.Join(f.proxy.Requests(), "\n"))
	}

	// D has no network at all, and what B has carried there.
	carried := "oci:" + filepath.Join(f.TempDir(), "carried")
	export := b.command(spec)
	export.Args = slices.Concat([]string{f.obx, "cache", "export", "--to", carried, "--plain-http", net.addr}, export.Args[2:])
	if out, err := export.CombinedOutput(); err != nil {
		f.Fatalf("export: %v\n%s", err, out)
	}
	d := f.machine()
	alone := func(cmd *exec.Cmd) *exec.Cmd {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		return cmd
	}
	bring := d.command(spec)
	bring.Args = []string{f.obx, "cache", "import", "--store", d.store, carried}
	if out, err := alone(bring).CombinedOutput(); err != nil {
		f.Fatalf("import: %v\n%s", err, out)
	}
	if r := result(alone(d.command(spec, "--offline", "--progress", "json", "--secret", f.secret("true")))); r.err != nil ||
		r.hits != 4 || r.runs != 0 || r.logs != want {
		f.Errorf("D ran %d steps, %d hit, %q; %v\n%s", r.runs, r.hits, r.logs, r.err, r.stderr)
	}
	// The same without the spec, which alone tells what B's base image is called.
	all := "oci:" + filepath.Join(f.TempDir(), "all")
	if out, err := exec.Command(f.obx, "cache", "export", "--store", b.store, "--plain-http", net.addr, "--to", all, "--all").CombinedOutput(); err != nil {
		f.Fatalf("export: %v\n%s", err, out)
	}
	d = f.machine()
	if out, err := alone(exec.Command(f.obx, "cache", "import", "--store", d.store, all)).CombinedOutput(); err != nil {
		f.Fatalf("import: %v\n%s", err, out)
	}
	if r := result(alone(d.command(spec, "--offline", "--progress", "json", "--secret", f.secret("true")))); r.err != nil ||
		r.hits != 4 || r.runs != 0 || r.logs != want {
		f.Errorf("D ran %d steps after an export of all, %d hit, %q; %v\n%s", r.runs, r.hits, r.logs, r.err, r.stderr)
	}
	e := f.machine()
	r := result(alone(e.command(spec, "--offline", "--cache", carried, "--progress", "json", "--secret", f.secret("true"))))
	if r.err != nil || r.hits != 4 || r.runs != 0 || r.logs != want {
		f.Errorf("E ran %d steps, %d hit, %q; %v\n%s", r.runs, r.hits, r.logs, r.err, r.stderr)
	}

	// The image is one for other tools.
	f.unpacks(f.skopeoPulls(first.key), "latest", map[string]string{"d/two": "2\n", "d/link": "2\n", "three": "3\n", "four": "4\n"}, "one")
	f.buildahRuns(first.key, "cat /d/link /three /four; ls /one 2>&1", "2\n3\n4\nls: /one: No such file or directory\n")
}

// tool finds a program of another project that must understand what obx publishes.
func (f *fleet) tool(name string) string {
	f.Helper()
	file, err := exec.LookPath(name)
	if err != nil {
		f.Fatalf("%v: make test-deps, or apt-get install %s", err, name)
	}
	return file
}

// skopeoPulls has skopeo pull the image of a key, and gives the layout that has it as latest.
func (f *fleet) skopeoPulls(key string) (layout string) {
	f.Helper()
	layout = filepath.Join(f.TempDir(), "pulled")
	f.skopeo("docker://"+f.reg.Addr+"/"+strings.ToLower(path.Base(f.Name()))+":"+key, "oci:"+layout+":latest")
	return layout
}

// skopeo copies what one tag names.
func (f *fleet) skopeo(from, to string) {
	f.Helper()
	command(f, f.tool("skopeo"), "--insecure-policy", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", from, to)
}

// buildahRuns has buildah pull the image of a key, and run a command in it. It must print want.
func (f *fleet) buildahRuns(key, script, want string) {
	f.Helper()
	buildah := f.tool("buildah")
	dir := memoryDir(f)
	policy := filepath.Join(dir, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default": [{"type": "insecureAcceptAnything"}]}`), 0o644); err != nil {
		f.Fatal(err)
	}
	run := func(args ...string) string {
		f.Helper()
		storage := []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}
		cmd := exec.Command(buildah, append(storage, args...)...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			f.Fatalf("buildah %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
		}
		return string(out)
	}
	image := "docker://" + f.reg.Addr + "/" + strings.ToLower(path.Base(f.Name())) + ":" + key
	name := strings.TrimSpace(run("from", "--signature-policy", policy, "--tls-verify=false", image))
	if out := run("run", "--isolation", "chroot", name, "sh", "-c", script+"; true"); out != want {
		f.Errorf("in the image of %s, buildah's %q printed %q, want %q", key, script, out, want)
	}
	run("rm", name)
}

// unpacks unpacks an image of a layout by umoci, looks at files that must and must not be there, and runs a command in it.
func (f *fleet) unpacks(layout, tag string, want map[string]string, gone ...string) {
	f.Helper()
	umoci := f.tool("umoci")
	bundle := filepath.Join(f.TempDir(), "bundle")
	command(f, umoci, "unpack", "--image", layout+":"+tag, bundle)
	root := filepath.Join(bundle, "rootfs")
	for name, text := range want {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil || string(b) != text {
			f.Errorf("umoci: /%s is %q, want %q; %v", name, b, text, err)
		}
		out, err := exec.Command("chroot", root, "/bin/cat", "/"+name).Output()
		if err != nil || string(out) != text {
			f.Errorf("cat /%s in it printed %q, want %q; %v", name, out, text, err)
		}
	}
	for _, name := range gone {
		if _, err := os.Lstat(filepath.Join(root, name)); !errors.Is(err, os.ErrNotExist) {
			f.Errorf("umoci: /%s is there: %v", name, err)
		}
	}
}

// A network is a way from network namespaces of their own to the proxy.
type network struct {
	*fleet
	addr string // of the proxy, for all
	ip   string
	n    int
}

func newNetwork(f *fleet) *network {
	f.Helper()
	_, port, err := net.SplitHostPort(f.proxy.Addr)
	if err != nil {
		f.Fatal(err)
	}
	// An address on a bridge of its own that leads where the proxy listens.
	n := &network{fleet: f, ip: fmt.Sprintf("10.213.%d.1", os.Getpid()%250+1)}
	n.addr = net.JoinHostPort(n.ip, port)
	bridge := fmt.Sprintf("obxbr%d", os.Getpid()%100000)
	command(f, "ip", "link", "add", bridge, "type", "bridge")
	f.Cleanup(func() { command(f, "ip", "link", "del", bridge) })
	command(f, "ip", "addr", "add", n.ip+"/24", "dev", bridge)
	command(f, "ip", "link", "set", bridge, "up")
	l, err := net.Listen("tcp", n.addr)
	if err != nil {
		f.Fatal(err)
	}
	srv := &http.Server{Handler: f.proxy}
	go func() { _ = srv.Serve(l) }()
	f.Cleanup(func() { _ = srv.Close() })
	return n
}

// enter has a command run in a new network namespace.
func (n *network) enter(cmd *exec.Cmd) {
	n.Helper()
	const name = "eth0"
	n.n++
	holder := exec.Command("sleep", "300")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	pid := fmt.Sprint(holder.Process.Pid)
	bridge := fmt.Sprintf("obxbr%d", os.Getpid()%100000)
	outer := fmt.Sprintf("obxv%d-%d", os.Getpid()%100000, n.n)
	command(n, "ip", "link", "add", outer, "type", "veth", "peer", "name", name, "netns", pid)
	command(n, "ip", "link", "set", outer, "master", bridge, "up")
	in := func(args ...string) { command(n, "nsenter", append([]string{"-n", "-t", pid, "ip"}, args...)...) }
	in("addr", "add", strings.TrimSuffix(n.ip, "1")+fmt.Sprint(n.n+1)+"/24", "dev", name)
	in("link", "set", name, "up")
	in("link", "set", "lo", "up")
	cmd.Args = append([]string{"nsenter", "-n", "-t", pid, cmd.Path}, cmd.Args[1:]...)
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		n.Fatal(err)
	}
	cmd.Path = nsenter
}

// Ten machines build thirty specs that have much in common, at once.
func fleetCrowd(f *fleet) {
	spec := func(i int) string { // two of three beginnings, one of five middles, one of thirty ends
		return fmt.Sprintf(`(
 (build tools ((from busybox) (shell /bin/sh -c) (run (shell "echo tools %[1]d; echo tool%[1]d > /tool"))))
 (from busybox) (shell /bin/sh -c)
 (copy (from (build tools)) (src /tool) (dst /tool))
 (run (shell "echo middle %[2]d; echo middle%[2]d > /middle"))
 (run (shell "echo end %[3]d; cat /tool /middle"))
)`, i%3, i%5, i)
	}
	var wg sync.WaitGroup
	for p := range 10 {
		m := f.machine()
		wg.Go(func() {
			for n := range 3 {
				i := (p*7 + n*11) % 30
				if n == 2 {
					i = p // what others build at this moment, too
				}
				r := m.try(spec(i), "--cache", f.repo(), "--jobs", "2")
				want := fmt.Sprintf("tools %[1]d\nmiddle %[2]d\nend %[3]d\ntool%[1]d\nmiddle%[2]d\n", i%3, i%5, i)
				if r.err != nil || r.logs != want || len(r.warnings) > 0 {
					f.Errorf("machine %d, spec %d: %v, %q\n%s%s", p, i, r.err, r.warnings, r.logs, r.stderr)
				}
			}
		})
	}
	wg.Wait()
	out, err := exec.Command(f.obx, "cache", "verify", f.repo()).CombinedOutput()
	// Of writers at the same moment, one may have the tag and another the record: that is a note.
	if err != nil {
		f.Errorf("verify: %v: %s", err, out)
	}
	m := f.machine()
	for i := range 10 {
		m.silent(0, 4, spec(i), "--cache", f.repo())
	}
}

// uuid is a step whose result differs each time.
const uuid = `((from busybox) (shell /bin/sh -c) (run (shell "cat /proc/sys/kernel/random/uuid > /id")) (run (shell "cat /id > /copy; cat /id")))`

// Two machines push the same key: image A, image B, record B, record A. So the record that stays names an image without a tag, which
// garbage collection removes.
func fleetOrder(f *fleet) {
	f.proxy.Break(nil)
	repo := f.direct()
	ma, mb := f.machine(), f.machine()
	proxies := []*Proxy{f.proxy, StartProxy(f, f.reg.Addr)}
	key := ma.want(2, 0, uuid).key
	mb.want(2, 0, uuid)

	steps := make(map[string]chan struct{})
	for _, s := range []string{"image 0", "image 1", "record 1", "record 0"} {
		steps[s] = make(chan struct{})
	}
	before := map[string]string{"image 1": "image 0", "record 1": "image 1", "record 0": "record 1"}
	done := func(i int) func(r *http.Request) Fault {
		return func(r *http.Request) Fault {
			what := ""
			switch {
			case r.Method != http.MethodPut:
			case strings.HasSuffix(r.URL.Path, "/manifests/"+key):
				what = fmt.Sprint("image ", i)
			case strings.HasSuffix(r.URL.Path, "/manifests/"+key+".rec"):
				what = fmt.Sprint("record ", i)
			}
			if what == "" {
				return Fault{}
			}
			if b := before[what]; b != "" {
				select {
				case <-steps[b]:
				case <-time.After(20 * time.Second):
				}
				time.Sleep(100 * time.Millisecond) // until the registry has done it
			}
			close(steps[what])
			return Fault{}
		}
	}
	var wg sync.WaitGroup
	for i, m := range []*machine{ma, mb} {
		proxies[i].Break(done(i))
		wg.Go(func() {
			r := m.try(uuid, "--cache", strings.Replace(f.repo(), f.proxy.Addr, proxies[i].Addr, 1), "--no-cache")
			if r.err != nil || len(r.warnings) > 0 {
				f.Errorf("machine %d: %v, %q\n%s", i, r.err, r.warnings, r.stderr)
			}
		})
	}
	wg.Wait()
	f.proxy.Break(nil)
	image, err := repo.Head(f.Context(), key)
	if err != nil {
		f.Fatal(err)
	}
	f.reg.GarbageCollect(f)
	for range 2 { // the step before it may have suffered the same
		c := f.machine()
		out, flags := c.local()
		r := c.try(uuid, append(flags, "--cache", f.repo())...)
		if r.err != nil || c.file(out, "id") != r.logs || c.file(out, "copy") != r.logs {
			f.Fatalf("%v: %q %q\n%s", r.err, r.logs, r.warnings, r.stderr)
		}
		if r.runs > 0 && len(r.warnings) == 0 {
			f.Error("it did not say that the result is broken")
		}
	}
	if now, err := repo.Head(f.Context(), key); err != nil || now.Digest == image.Digest {
		f.Errorf("the image was not put again: %v", err)
	}
	d := f.machine()
	_, flags := d.local()
	d.silent(0, 2, uuid, append(flags, "--cache", f.repo())...)
}

// secret is the flag of a secret with a value.
func (f *fleet) secret(text string) string {
	f.Helper()
	file := filepath.Join(f.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		f.Fatal(err)
	}
	return "value=" + file
}

// keyPair makes a key, and gives its files.
func (f *fleet) keyPair(name string) (secret string, public string) {
	f.Helper()
	s, err := registry.GenerateSigner(name)
	if err != nil {
		f.Fatal(err)
	}
	secret = filepath.Join(f.TempDir(), "key")
	if err := os.WriteFile(secret, s.Marshal(), 0o600); err != nil {
		f.Fatal(err)
	}
	return secret, s.Public().String()
}

// statements gives the payloads of all records of a repository, by tag.
func (f *fleet) statements(r repo.Repo) map[string]string {
	f.Helper()
	all := map[string]string{}
	for _, tag := range f.tags(r) {
		if !strings.HasSuffix(tag, ".rec") {
			continue
		}
		m := f.manifest(r, tag)
		var e struct {
			Payload    []byte
			Signatures []struct{ KeyID string }
		}
		if err := json.Unmarshal(m.Config.Data, &e); err != nil {
			f.Fatal(err)
		}
		all[tag] = fmt.Sprint(e.Signatures, string(e.Payload))
	}
	return all
}

// short is a digest as records have it.
func short(d digest.Digest) string {
	h := d.Encoded()
	b := make([]byte, len(h)/2)
	if _, err := fmt.Sscanf(h, "%x", &b); err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// What somebody published who is not trusted does not come into what is signed, not even through a store that has it already.
func fleetPoison(f *fleet) {
	// The secret's value is not in the key: so the same key can have a bad result.
	const spec = `((from busybox) (shell /bin/sh -c)
 (run (secrets (value (target /s))) (shell "cat /s > /result"))
 (run (shell "cat /result > /copy; cat /result")))`
	cache := []string{"--cache", f.repo()}
	evil := f.machine()
	bad := evil.silent(2, 0, spec, append(cache, "--secret", f.secret("bad"))...)
	repo := f.direct()
	badLayers := f.manifest(repo, bad.key).Layers[1:]

	a := f.machine()
	out, flags := a.local()
	if r := a.silent(0, 2, spec, slices.Concat(cache, flags, []string{"--secret", f.secret("good")})...); r.logs != "bad" || a.file(out, "copy") != "bad" {
		f.Fatalf("A has not got the bad result: %q", r.logs)
	}

	key, public := f.keyPair("ci")
	trusting := append(cache, "--trust", public, "--sign-key", key)
	b := *a // the same store
	out, flags = b.local()
	r := b.want(2, 0, spec, slices.Concat(trusting, flags, []string{"--secret", f.secret("good")})...)
	if r.logs != "good" || b.file(out, "copy") != "good" {
		f.Errorf("B has the bad result: %q", r.logs)
	}
	if len(r.warnings) != 2 || !strings.Contains(r.warnings[0], "in the store is not used: it is not signed") ||
		!strings.Contains(r.warnings[1], "cache "+f.repo()) {
		f.Errorf("B warned of %q, not once of the store and once of the cache", r.warnings)
	}
	for tag, s := range f.statements(repo) {
		if !strings.Contains(s, "{ci}") {
			f.Errorf("%s is not signed", tag)
		}
		for _, l := range badLayers {
			if strings.Contains(s, short(l.Digest)) || strings.Contains(s, l.Digest.Encoded()) {
				f.Errorf("%s mentions the bad layer %s", tag, l.Digest)
			}
		}
	}

	c := f.machine()
	out, flags = c.local()
	flags = slices.Concat([]string{"--cache", f.repo(), "--trust", public}, flags, []string{"--secret", f.secret("other")})
	if r := c.silent(0, 2, spec, flags...); r.logs != "good" || c.file(out, "copy") != "good" {
		f.Errorf("C has %q", r.logs)
	}
}

// Cache mounts that somebody published who is not trusted do not come into what is signed: not into a mount of a run that trusts, and
// not through a step of the same store that had them.
func fleetMounts(f *fleet) {
	const mounts = `(cache (c (target /c)) (l (target /l) (buildkit_options ((sharing locked)))))`
	const fill = `((from busybox) (shell /bin/sh -c)
 (run ` + mounts + ` (secrets (value (target /s))) (shell "cat /s > /c/lib; cat /s > /l/lib")))`
	const use = `((from busybox) (shell /bin/sh -c)
 (run ` + mounts + ` (shell "cat /c/lib /l/lib > /result 2>&1; cat /result")) (run (shell "cat /result")))`
	const none = "cat: can't open '/c/lib': No such file or directory\ncat: can't open '/l/lib': No such file or directory\n"
	share := []string{"--cache", f.repo(), "--share-cache", "c", "--share-cache", "l:union"}
	f.machine().silent(1, 0, fill, append(share, "--secret", f.secret("bad"))...)
	repo := f.direct()
	var bad []digest.Digest
	for _, tag := range f.tags(repo) {
		if strings.HasPrefix(tag, "mount-") {
			bad = append(bad, f.manifest(repo, tag).Layers[0].Digest)
		}
	}
	if len(bad) != 2 {
		f.Fatalf("%d mounts were published", len(bad))
	}

	a := f.machine()
	if r := a.silent(2, 0, use, append(share, "--push", "never")...); r.logs != "badbadbadbad" {
		f.Fatalf("A has not got the bad mount: %q", r.logs)
	}
	key, public := f.keyPair("ci")
	trusting := append(share, "--trust", public, "--sign-key", key)
	b := *a
	r := b.want(2, 0, use, trusting...)
	if r.logs != none+none {
		f.Errorf("B has %q", r.logs)
	}
	for _, want := range []string{"in the store is not used: its command had cache mounts", "cannot be used: it is not signed"} {
		if n := len(slices.DeleteFunc(slices.Clone(r.warnings), func(w string) bool { return !strings.Contains(w, want) })); n != 1 {
			f.Errorf("B warned %d times that %s: %q", n, want, r.warnings)
		}
	}
	signed := 0
	for _, tag := range f.tags(repo) {
		var e struct {
			Payload    string
			Signatures []struct{ Sig string }
		}
		m := f.manifest(repo, tag)
		if len(m.Config.Data) == 0 || json.Unmarshal(m.Config.Data, &e) != nil || len(e.Signatures) == 0 {
			continue
		}
		signed++
		text, err := base64.StdEncoding.DecodeString(e.Payload)
		for _, d := range bad {
			if err != nil || strings.Contains(string(text), d.Encoded()) || strings.Contains(string(text), short(d)) {
				f.Errorf("%s mentions a bad layer: %s, %v", tag, text, err)
			}
		}
	}
	if signed < 3 { // two results and at least one mount: an empty one may be left out
		f.Errorf("%d things are signed", signed)
	}
	// What is in the mount of those who trust, they have made. Those who do not trust have theirs.
	b.want(1, 0, fill, append(trusting, "--secret", f.secret("good"))...)
	c := f.machine()
	if r := c.silent(2, 0, use, append(share, "--trust", public, "--no-cache")...); r.logs != "goodgoodgoodgood" {
		f.Errorf("C has %q", r.logs)
	}
	if r := a.silent(2, 0, use, append(share, "--no-cache", "--push", "never")...); r.logs != "badbadbadbad" {
		f.Errorf("A has %q by now", r.logs)
	}
}

// A run in a domain of its own uses what its parent has, and changes nothing of it: no result, no cache mount.
func fleetDomains(f *fleet) {
	spec := func(text string) string {
		return fmt.Sprintf(`((from busybox) (shell /bin/sh -c)
 (run (shell "echo first"))
 (run (cache (c (target /c))) (shell "cat /c/who 2>/dev/null; echo %s >> /c/who")))`, text)
	}
	cache := []string{"--cache", f.repo(), "--share-cache", "c"}
	pr := append(cache, "--domain", "pr-7:default")
	m := f.machine()
	m.silent(2, 0, spec("default"), cache...)
	if r := m.silent(1, 1, spec("pr"), pr...); r.logs != "first\n" { // a mount belongs to one domain
		f.Errorf("pr-7 sees %q in the mount", r.logs)
	}
	if r := m.silent(1, 1, spec("again"), cache...); r.logs != "first\ndefault\n" {
		f.Errorf("default sees %q in the mount", r.logs)
	}
	m.silent(1, 1, spec("pr"), cache...) // nor the result, on this machine
	other := f.machine()
	other.silent(0, 2, spec("pr"), pr...)
	fresh := spec("of pr alone")
	other.silent(1, 1, fresh, pr...)
	r := f.machine().silent(1, 1, fresh, cache...) // nor on another
	if !strings.HasPrefix(r.logs, "first\ndefault\nagain\n") || strings.Contains(r.logs, "alone") {
		f.Errorf("default sees %q in the mount that travels", r.logs)
	}
}

// Whatever a resume asks for, be it deleted at that moment: the result is right, and the next build mends what it misses.
func fleetDeleted(f *fleet) {
	spec := func(last int) string {
		return fmt.Sprintf(`((from %s/bases/busybox:latest) (shell /bin/sh -c)
 (run (shell "echo 1 >> /log; head -c 3000 /dev/urandom > /large"))
 (run (shell "echo 2 >> /log; head -c 3000 /dev/urandom > /large; head -c 100000 /dev/urandom | od"))
 (run (shell "echo %d >> /log; cat /log")))`,
			f.proxy.Addr, last)
	}
	repo := f.direct()
	dir := "/v2/" + strings.ToLower(path.Base(f.Name())) + "/" // what is about base images is no request to the cache
	for k := 1; ; k++ {
		salt := fmt.Sprint(k)
		f.machine().silent(3, 0, spec(3), "--cache", f.repo(), "--salt", salt)
		var mu sync.Mutex
		n, what := 0, ""
		f.proxy.Break(func(r *http.Request) Fault {
			mu.Lock()
			defer mu.Unlock()
			if r.Method != http.MethodGet && r.Method != http.MethodHead || !strings.HasPrefix(r.URL.Path, dir) {
				return Fault{}
			}
			if n++; n == k {
				what = r.Method + " " + r.URL.Path
				f.delete(repo, r.URL.Path)
			}
			return Fault{}
		})
		build := func(last int, more ...string) (r told, right bool) {
			m := f.machine()
			out, flags := m.local()
			r = m.try(spec(last), slices.Concat(flags, more, []string{"--cache", f.repo(), "--salt", salt})...)
			want := fmt.Sprintf("1\n2\n%d\n", last)
			return r, r.err == nil && m.file(out, "log") == want && strings.HasSuffix(r.logs, "\n"+want)
		}
		r, right := build(4, "--push", "never")
		f.proxy.Break(nil)
		if what == "" {
			if k < 8 {
				f.Errorf("a resume makes only %d requests", k-1)
			}
			return
		}
		if !right {
			f.Errorf("deleted at %s: wrong: %v\n%s", what, r.err, r.stderr)
		}
		if strings.Contains(what, "/blobs/") && len(r.warnings) == 0 {
			f.Errorf("deleted at %s: %d steps ran, and nobody warned", what, r.runs)
		}
		if r, right := build(3); !right {
			f.Errorf("deleted at %s: the next is wrong: %v\n%s", what, r.err, r.stderr)
		}
		if r, right := build(3); !right || r.runs > 0 || len(r.warnings) > 0 {
			f.Errorf("deleted at %s: not mended: %d steps ran, %v, %q", what, r.runs, r.err, r.warnings)
		}
	}
}

// delete removes from a repository what a request names.
func (f *fleet) delete(repo repo.Repo, url string) {
	if strings.Contains(url, "/blobs/") {
		req, err := http.NewRequestWithContext(f.Context(), http.MethodDelete, "http://"+f.reg.Addr+url, nil)
		if err != nil {
			f.Error(err)
			return
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			f.Error(err)
			return
		}
		resp.Body.Close()
		return
	}
	desc, err := repo.Head(f.Context(), path.Base(url))
	if err != nil {
		return // there is nothing to delete
	}
	if err := repo.Delete(f.Context(), desc.Digest.String()); err != nil {
		f.Error(err)
	}
}

// Four hundred steps can be published, and be used by other tools. A registry far away is asked for them as seldom as can be.
func fleetMany(f *fleet) {
	m := f.machine()
	f.proxy.Counts()
	start := time.Now()
	r := m.silent(400, 0, steps(400, ""), "--cache", f.repo(), "--compression", "gzip") // all tools know that
	took := time.Since(start)
	counts := f.proxy.Counts()
	f.Logf("%v, %d requests\n%s", took, Total(counts).Requests, Format(counts))
	if sent := Total(counts).Sent; sent > 40<<20 {
		f.Errorf("%d bytes were sent", sent)
	}
	repo := f.direct()
	for _, key := range r.keys {
		if n := len(f.manifest(repo, key).Layers); n > 120 {
			f.Errorf("%s has %d layers", key, n)
		}
	}
	var log strings.Builder
	for i := range 400 {
		fmt.Fprintln(&log, i+1)
	}
	f.unpacks(f.skopeoPulls(r.key), "latest", map[string]string{"log": log.String()})
	f.proxy.SetDelay(50 * time.Millisecond)
	f.proxy.Counts()
	start = time.Now()
	f.machine().silent(0, 100, steps(100, ""), "--cache", f.repo())
	if n := Total(f.proxy.Counts()).Requests; n > 3 {
		f.Errorf("a full hit of 100 steps takes %d requests", n)
	}
	f.Logf("a full hit of 100 steps with 50 ms a request: %v", time.Since(start))
	start = time.Now()
	other := f.machine()
	out, flags := other.local()
	other.silent(1, 400, strings.TrimSuffix(steps(400, ""), ")")+` (run (shell "echo 401 >> /log")))`, append(flags, "--cache", f.repo(), "--push", "never")...)
	if got := other.file(out, "log"); got != log.String()+"401\n" {
		f.Errorf("/log has %d bytes", len(got))
	}
	f.Logf("a resume of 400: %v, %d requests", time.Since(start), Total(f.proxy.Counts()).Requests)
}

// A registry that limits the rate of requests holds up the end of a build, not its steps: none of them waits for anything that is written.
func fleetBusy(f *fleet) {
	const n = 8
	spec := steps(n, "")
	ended := make(chan struct{})
	f.proxy.SetRate(20)
	f.proxy.Break(func(r *http.Request) Fault {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			select {
			case <-ended:
			case <-f.Context().Done():
			}
		}
		return Fault{}
	})
	// The build's events, as they come.
	cmd := f.machine().command(spec, "--cache", f.repo(), "--progress", "json")
	out, err := cmd.StdoutPipe()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		f.Fatal(err)
	}
	stuck := time.AfterFunc(20*time.Second, func() {
		f.Error("a step waits for a push")
		_ = cmd.Process.Kill()
	})
	var all bytes.Buffer
	done := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		all.Write(append(lines.Bytes(), '\n'))
		if strings.Contains(lines.Text(), `"event":"step"`) {
			if done++; done == n {
				stuck.Stop()
				close(ended)
			}
		}
	}
	err = cmd.Wait()
	if r := tell(all.Bytes()); err != nil || r.runs != n || len(r.warnings) > 0 {
		f.Fatalf("%d steps ran, warnings: %q, %v\n%s", r.runs, r.warnings, err, stderr.Bytes())
	}
	f.proxy.SetRate(0)
	f.proxy.Break(nil)
	f.machine().silent(0, 8, spec, "--cache", f.repo())
}

// A resume keeps no bytes of large layers, only files. An image has them all the same: from the cache, or packed again without it.
func fleetBytes(f *fleet) {
	spec := func(last string) string {
		return fmt.Sprintf(`((from busybox) (shell /bin/sh -c)
 (run (shell "head -c 3000000 /dev/urandom > /large; sha256sum < /large > /sum"))
 (run (shell "echo %s > /last")))`, last)
	}
	cache := []string{"--cache", f.repo(), "--compression", "gzip"} // umoci knows no zstd
	a := f.machine()
	keys := a.silent(2, 0, spec("a"), cache...).keys
	large := f.manifest(f.direct(), keys[0]).Layers[1]
	b := f.machine()
	b.silent(1, 1, spec("b"), cache...)
	if _, err := os.Stat(filepath.Join(b.store, "blobs/sha256", large.Digest.Encoded())); !errors.Is(err, os.ErrNotExist) {
		f.Errorf("the bytes of the large layer are in the store: %v", err)
	}
	check := func(how string, want bool, more ...string) {
		f.Helper()
		to := filepath.Join(f.TempDir(), how)
		b.silent(0, 2, spec("b"), append(more, "--compression", "gzip", "--output", "type=oci,dest="+to+"/,name=latest")...)
		_, layers := layerFiles(f, to)
		if got := slices.ContainsFunc(layers, func(l ocispec.Descriptor) bool { return l.Digest == large.Digest }); want && !got {
			f.Errorf("%s: the image has other bytes: %+v", how, layers)
		}
		f.unpacks(to, "latest", map[string]string{"last": "b\n"})
		out, err := exec.Command("sh", "-c",
			"cd "+to+" && umoci unpack --image .:latest bundle && cd bundle/rootfs && sha256sum < large | cmp - sum").CombinedOutput()
		if err != nil {
			f.Errorf("%s: %v\n%s", how, err, out)
		}
	}
	check("alone", false)
	check("fetched", true, cache...)
}

// Other tools copy a cache, or single results, and lose nothing: who has the copy runs nothing.
func fleetCopied(f *fleet) {
	const spec = `((from busybox) (shell /bin/sh -c)
 (run (shell "echo first; echo 1 > /one"))
 (run (shell "echo second; head -c 40000 /dev/urandom | od")))` // the second log is a blob of its own
	key, public := f.keyPair("ci")
	first := f.machine().silent(2, 0, spec, "--cache", f.repo(), "--sign-key", key)
	hit := func(cache string) {
		f.Helper()
		if r := f.machine().silent(0, 2, spec, "--cache", cache, "--trust", public); r.logs != first.logs {
			f.Errorf("from %s, the log is %q", cache, r.logs)
		}
	}

	dir := filepath.Join(f.TempDir(), "layout")
	layout, err := oci.New(dir)
	if err != nil {
		f.Fatal(err)
	}
	name := strings.ToLower(path.Base(f.Name()))
	there := func(suffix string) *remote.Repository {
		f.Helper()
		r, err := remote.NewRepository(f.reg.Addr + "/" + name + suffix)
		if err != nil {
			f.Fatal(err)
		}
		r.PlainHTTP = true
		return r
	}
	copyAll := func(from, to oras.Target, tags []string) {
		f.Helper()
		for _, tag := range tags {
			if _, err := oras.Copy(f.Context(), from, tag, to, tag, oras.DefaultCopyOptions); err != nil {
				f.Fatalf("copy %s: %v", tag, err)
			}
		}
	}
	tags := f.tags(f.direct())
	if len(tags) != 4 {
		f.Fatalf("the cache has %q", tags)
	}
	copyAll(there(""), layout, tags)
	hit("oci:" + dir)
	copyAll(layout, there("-oras"), tags)
	hit(f.repo() + "-oras")

	// skopeo copies the last result alone: that is enough, and what is before it is not there.
	image := "docker://" + f.reg.Addr + "/" + name
	for _, tag := range []string{first.key, first.key + ".rec"} {
		f.skopeo(image+":"+tag, image+"-skopeo:"+tag)
	}
	hit(f.repo() + "-skopeo")
}
