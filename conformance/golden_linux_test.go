package conformance

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A goldenCase is what the real OBuilder (0.7.0, btrfs store, runc) did with a spec.
type goldenCase struct {
	Name       string            `json:"name"`
	Spec       string            `json:"spec"`
	Context    string            `json:"context"` // a shell script that makes the source directory
	Args       []string          `json:"args"`
	Exit       int               `json:"exit"`
	Stdout     string            `json:"stdout"`
	Stderr     string            `json:"stderr"`
	Second     string            `json:"second"` // whether a second run was fully cached
	Diff       [][]string        `json:"diff"`   // of the final root file system to its base image
	Files      map[string]string `json:"files"`
	Dockerfile map[string]string `json:"dockerfile"`
}

// A rule says how obx differs from OBuilder on purpose.
type rule string

const (
	same   rule = ""
	builds rule = "builds" // OBuilder fails
	fails  rule = "fails"  // OBuilder builds, or fails otherwise
	either rule = "either" // both are right
	tree   rule = "tree"   // the final tree, and what commands print of it, differ
	order  rule = "order"  // what is printed differs
)

// deviations are the faults of OBuilder that obx does not copy, by the number of the case.
var deviations = map[string]struct {
	rule rule
	why  string
}{
	"002": {fails, "an unknown base image is named in words of obx"},
	"029": {either, "operations in upper case"},
	"030": {either, "capitalised names, which OBuilder accepts by accident"},
	"031": {either, "capitalised names, which OBuilder accepts by accident"},
	"035": {fails, "found before anything runs"},
	"045": {either, "a secret without a target goes to /run/secrets/ID"},
	"057": {either, "the fields of user come in any order"},
	"061": {fails, "a Windows user for a Linux build is found before anything runs"},
	"062": {fails, "a negative user id is found before anything runs"},
	"063": {either, "integers in OCaml's notations"},
	"095": {order, "standard output and error keep their order"},
	"104": {order, "mount options"},
	"107": {fails, "an unknown network is found before anything runs"},
	"108": {fails, "an unknown network is found before anything runs"},
	"109": {either, "an odd network"},
	"110": {fails, "mount points of caches are gone after the step, so its last command lists nothing"},
	"112": {either, "odd names of cache mounts never leave the store's folder for them"},
	"115": {fails, ""},
	"116": {either, ""},
	"117": {order, "standard output and error keep their order"},
	"123": {order, "seccomp refuses earlier"},
	"126": {order, "standard output and error keep their order"},
	"134": {fails, "an empty variable name is found before anything runs"},
	"140": {fails, ""},
	"141": {either, "a file never replaces a directory silently"},
	"151": {tree, "a link to a directory is followed, not destroyed"},
	"153": {tree, "a link to a directory is followed, not destroyed"},
	"154": {tree, "a link to a directory is followed, not destroyed"},
	"155": {tree, "a link to a directory is followed, not destroyed"},
	"158": {builds, "copying . to / works"},
	"175": {fails, ""},
	"185": {tree, "directories on the way to a destination keep owner and mode"},
	"186": {tree, "directories on the way to a destination keep owner and mode"},
	"187": {tree, "directories on the way to a destination keep owner and mode"},
	"195": {tree, "a link to a directory is followed, not destroyed"},
	"197": {tree, "a link to a directory is followed, not destroyed"},
	"198": {tree, "directories on the way to a destination keep owner and mode"},
	"199": {fails, "a file never replaces a directory"},
	"201": {builds, "copies need no tar in the image"},
	"215": {builds, "copying . to / works"},
	"216": {tree, "directories on the way to a destination keep owner and mode"},
	"217": {tree, "directories on the way to a destination keep owner and mode"},
	"220": {tree, "file capabilities are in the listing"},
	"222": {builds, "copies need no tar in the image"},
	"223": {builds, "copies need no tar in the image"},
	"224": {builds, "copies need no tar in the image"},
	"225": {builds, "copies need no tar in the image"},
	"226": {builds, "a link to a directory is followed, not destroyed"},
	"228": {tree, "directories on the way to a destination keep owner and mode"},
}

// dockerfileDeviations are the cases whose Dockerfile gives another build in OBuilder's form, with the copies of ours.
var dockerfileDeviations = map[string]struct{ copies, why string }{
	"146": {"COPY d /m/d; COPY a.txt /m/", keepsName},
	"149": {"COPY d /dd/d", keepsName},
	"161": {"COPY . /all/", excludes},
	"162": {"COPY a.txt /all/; COPY d /all/d", excludes},
	"163": {"COPY . /all/", excludes},
	"189": {"COPY a.txt /m/; COPY d /m/d", keepsName},
	"190": {"COPY e /e1; COPY e /e2/e", keepsName},
	"191": {"COPY L /L/L", keepsName},
	"203": {"COPY --from=dev /out/bin /usr/local/bin/hello; COPY --from=dev out /o; COPY --from=dev /out/lnk /o2/lnk; COPY --from=dev /out/sub /o2/sub", keepsName},
	"212": {"COPY --from=dev . /x/", excludes},
	"214": {"COPY --chown=1000:1000 a.txt ./; COPY --chown=1000:1000 d ./d; COPY --from=dev /src/out /usr/local/bin/out", excludes},
}

const (
	keepsName = "a directory that is copied into another keeps its name"
	excludes  = "what a copy excludes is excluded, or a comment says that it is not"
)

// TestGolden runs the recorded cases of OBuilder and compares exit status, output, the final tree, whether a second
// run is fully cached and replays the log, and the Dockerfile renderings.
func TestGolden(t *testing.T) {
	RequireRoot(t)
	data, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []goldenCase
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	g := golden{obx: BuildOBX(t), bases: Bases(t), store: filepath.Join(t.TempDir(), "store")}
	switch e := os.Getenv("OBX_GOLDEN"); e { // the executor to run them through
	case "", "overlay":
	case "runc":
		g.flags = []string{"--runtime", "runc"}
	case "containerd":
		buildContainerd(t, g.obx)
		g.flags = containerdFlags(t, "overlayfs")
	case "qemu":
		g.flags = []string{"--executor", "qemu", "--qemu-accel", "tcg", "--qemu-kernel", Kernel(t, "amd64")}
	default:
		t.Fatalf("OBX_GOLDEN is %q, neither overlay, runc, containerd nor qemu", e)
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			g.check(t, c)
		})
	}
}

type golden struct {
	obx   string
	bases map[string]string // name in a spec: OCI layout directory
	store string            // of all cases: each has a domain of its own, and they share the bytes of bases
	flags []string          // of the executor
}

var (
	specError = regexp.MustCompile(`(?m)^spec:\d+:\d+: `)
	// Comments of several lines, variables with a dollar, names with a space: OBuilder's Dockerfile is wrong for them.
	oddDocker   = regexp.MustCompile("\\(comment \"[^\"]*\n|\\\\n|\\(env [^)]*[$`]|buildkit_options|\\(src[^)]* \"[^\" ]* [^\"]*\"")
	excludeFlag = regexp.MustCompile(` --exclude=\S+`)
	fromName    = regexp.MustCompile(`\(from ([a-z]+)[:)@]`)
)

func (g golden) check(t *testing.T, c goldenCase) {
	dev := deviations[c.Name[:3]]
	tmp := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(tmp, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	shell := func(script string) {
		cmd := exec.Command("sh", "-c", "umask 022\n"+script)
		cmd.Dir = filepath.Join(tmp, "ctx")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make the source directory: %v\n%s", err, out)
		}
	}
	if err := os.Mkdir(filepath.Join(tmp, "ctx"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("spec", c.Spec)
	if c.Context != "" {
		shell(c.Context)
		if !strings.Contains(c.Context, "touch -d") {
			shell("find . -exec touch -h -d @1600000000 {} +")
		}
	}
	for name, text := range c.Files {
		write(name, text)
	}
	args := []string{"run", "spec", "ctx", "--store", g.store, "--domain", "case-" + c.Name[:3], "--progress", "plain"}
	for name, dir := range g.bases {
		args = append(args, "--base", name+"=oci:"+dir+":latest")
	}
	args = append(append(args, g.flags...), c.Args...)
	run := func(more ...string) (stdout, stderr string, exit int) {
		return g.run(t, tmp, append(slices.Clone(args), more...)...)
	}

	stdout, stderr, exit := run("--output", "type=tar,dest="+tmp+"/out.tar")
	built := c.Exit == 0
	stepFailed := strings.Contains(c.Stderr, "Build step failed") || c.Exit < 0
	switch {
	case dev.rule == either:
		if exit < 0 || exit > 2 {
			t.Errorf("exit status %d\n%s", exit, stderr)
		}
	case dev.rule == builds || built && dev.rule != fails:
		if exit != 0 {
			t.Fatalf("exit status %d, want 0\n%s", exit, stderr)
		}
	case dev.rule == fails || stepFailed:
		if exit != 1 && exit != 2 && !(exit == 3 && strings.HasPrefix(c.Name, "002")) {
			t.Errorf("exit status %d, want 1 or 2\n%s", exit, stderr)
		}
	default:
		if exit != 2 || !specError.MatchString(stderr) {
			t.Errorf("exit status %d, want 2 and an error with its place; got:\n%s", exit, stderr)
		}
	}
	if strings.Contains(stderr, "panic") || strings.Contains(stderr, "DATA RACE") {
		t.Errorf("it crashed:\n%s", stderr)
	}
	if !built || exit != 0 || dev.rule == either {
		return
	}
	if dev.rule == same {
		if lost := missing(printed(c.Stdout), lines(stdout)); len(lost) > 0 {
			t.Errorf("output lacks %q; got:\n%s", lost, stdout)
		}
	}
	if dev.rule != tree && dev.rule != builds {
		names := fromName.FindAllStringSubmatch(c.Spec, -1)
		base := layoutRows(t, g.bases[names[len(names)-1][1]])
		f, err := os.Open(tmp + "/out.tar")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		rows := map[string]row{}
		tarRows(t, f, rows)
		compareTrees(t, c, rows, base)
	}
	if strings.HasPrefix(c.Second, "yes") {
		again, stderr, exit := run()
		if exit != 0 || strings.Contains(again, "---> saved as") {
			t.Errorf("the second run was not fully cached (exit status %d)\n%s%s", exit, again, stderr)
		} else if lost := missing(printed(stdout), printed(again)); len(lost) > 0 && dev.rule != order {
			t.Errorf("the second run did not replay %q", lost)
		}
	}
	g.dockerfiles(t, c, tmp, dev.rule)
}

func (g golden) dockerfiles(t *testing.T, c goldenCase, dir string, r rule) {
	if r == fails || oddDocker.MatchString(c.Spec) {
		return
	}
	for form, want := range c.Dockerfile {
		if want == "" {
			continue
		}
		escape, kit, _ := strings.Cut(form, ".")
		args := []string{"dockerfile", "--escape", escape}
		if kit != "" {
			args = append(args, "--buildkit")
		}
		got, stderr, _ := g.run(t, dir, append(args, "spec", "ctx")...)
		if d, ok := dockerfileDeviations[c.Name[:3]]; ok {
			var copies []string
			for line := range strings.SplitSeq(got, "\n") {
				if strings.HasPrefix(line, "COPY") {
					copies = append(copies, excludeFlag.ReplaceAllString(line, ""))
				}
			}
			if strings.Join(copies, "; ") != d.copies || strings.Contains(c.Spec, "(exclude") == (len(excludeFlag.FindAllString(got, -1)) == 0 && !strings.Contains(got, "# Not said below: (exclude")) {
				t.Errorf("dockerfile %s:\n%s%s\nwant: %s", form, got, stderr, d.copies)
			}
			continue
		}
		got = linkComment.ReplaceAllString(got, "") // OBuilder says nothing of what COPY cannot do
		if !slices.Equal(strings.Fields(got), strings.Fields(want)) {
			t.Errorf("dockerfile %s:\n%s%s\nwant:\n%s", form, got, stderr, want)
		}
	}
}

func (g golden) run(t *testing.T, dir string, args ...string) (stdout, stderr string, exit int) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, g.obx, args...)
	cmd.Dir = dir
	cmd.Env = Environ()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var status *exec.ExitError
	if err != nil && !errors.As(err, &status) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

var (
	linkComment = regexp.MustCompile(`# \S+ is a symbolic link: COPY copies what it leads to instead\n`)

	logLine = regexp.MustCompile(`^(\(from |\(build |---> |--> |Got: |\S*: \((run|copy|workdir|env|shell|user|comment)\b)`)
	opLine  = regexp.MustCompile(`^\S*: \((run|copy)`)
	total   = regexp.MustCompile(`^total \d+$`)
	date    = regexp.MustCompile(`\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +\d+ +[\d:]+`)
	inode   = regexp.MustCompile(`(pipe|socket):\[\d+\]`)
	listing = regexp.MustCompile(`^([dlcb-][rwxsStT-]{9}) +\d+ +(\S+) +(\S+) +(\d+(?:, *\d+)?) (.*)`)
)

// normal removes from a line what may differ from machine to machine: dates, inodes, sizes of directories.
func normal(line string) string {
	line = date.ReplaceAllString(strings.TrimRight(line, " \t\r"), "DATE")
	line = inode.ReplaceAllString(line, "$1:[N]")
	if m := listing.FindStringSubmatch(line); m != nil {
		size := m[4]
		if m[1][0] == 'd' {
			size = "0"
		}
		return strings.Join([]string{m[1], m[2], m[3], size, strings.TrimSpace(m[5])}, " ")
	}
	return line
}

func lines(log string) []string {
	all := strings.Split(log, "\n")
	for i, l := range all {
		all[i] = normal(l)
	}
	return all
}

// printed gives the lines of a log that commands printed: no headings, no notes.
func printed(log string) []string {
	var out []string
	depth := 0 // of a heading that goes on over several lines
	for line := range strings.SplitSeq(log, "\n") {
		parens := strings.Count(line, "(") - strings.Count(line, ")")
		switch {
		case logLine.MatchString(line):
			depth = 0
			if opLine.MatchString(line) {
				depth = max(0, parens)
			}
		case depth > 0:
			depth += parens
		case strings.TrimSpace(line) == "", total.MatchString(line):
		case strings.Contains(line, "level=warning"), strings.Contains(line, "level=error"), strings.Contains(line, "cgroup"):
		default:
			out = append(out, normal(line))
		}
	}
	return out
}

// missing lists what is in want more often than in have.
func missing(want, have []string) []string {
	n := map[string]int{}
	for _, l := range have {
		n[l]++
	}
	var lost []string
	for _, l := range want {
		if n[l]--; n[l] < 0 {
			lost = append(lost, l)
		}
	}
	return lost
}

// A row is one file of a tree.
type row struct{ kind, mode, uid, gid, target, hash string }

func tarRows(t *testing.T, r io.Reader, rows map[string]row) {
	kinds := map[byte]string{
		tar.TypeReg: "file", tar.TypeLink: "file", tar.TypeDir: "dir", tar.TypeSymlink: "symlink",
		tar.TypeFifo: "fifo", tar.TypeChar: "char", tar.TypeBlock: "block",
	}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		f := row{kinds[h.Typeflag], fmt.Sprintf("%04o", h.Mode&0o7777), strconv.Itoa(h.Uid), strconv.Itoa(h.Gid), "-", "-"}
		switch h.Typeflag {
		case tar.TypeSymlink:
			f.mode, f.target = "0777", h.Linkname
		case tar.TypeLink:
			f.hash = rows[path.Join("/", h.Linkname)].hash
		case tar.TypeReg:
			sum := sha256.New()
			if _, err := io.Copy(sum, tr); err != nil {
				t.Fatal(err)
			}
			f.hash = hex.EncodeToString(sum.Sum(nil))
		}
		rows[path.Join("/", h.Name)] = f
	}
}

// layoutRows lists the files of the image in an OCI layout.
func layoutRows(t *testing.T, dir string) map[string]row {
	blob := func(d digest.Digest) []byte {
		data, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", d.Encoded()))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	data, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	var manifest ocispec.Manifest
	if err := json.Unmarshal(data, &index); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(blob(index.Manifests[0].Digest), &manifest); err != nil {
		t.Fatal(err)
	}
	rows := map[string]row{}
	for _, l := range manifest.Layers {
		z, err := gzip.NewReader(bytes.NewReader(blob(l.Digest)))
		if err != nil {
			t.Fatal(err)
		}
		tarRows(t, z, rows)
	}
	return rows
}

// leftovers are files that OBuilder's sandbox leaves in results; obx removes what it made.
var leftovers = []string{"/etc/hosts", "/etc/resolv.conf", "/dev", "/proc", "/sys", "/etc"}

const emptyHash = "e3b0c442"

func compareTrees(t *testing.T, c goldenCase, got, base map[string]row) {
	unescape := strings.NewReplacer(`\n`, "\n", `\t`, "\t", `\\`, `\`)
	want, gone := map[string]bool{}, map[string]bool{}
	for _, d := range c.Diff {
		mark, name := d[0], unescape.Replace(d[1])
		if mark == "-" {
			gone[name] = true
			if _, ok := got[name]; ok {
				t.Errorf("%s is still there", name)
			}
			continue
		}
		want[name] = true
		if slices.Contains(leftovers, name) || mark == "t" {
			continue
		}
		w := row{d[2], d[3], d[4], d[5], "-", d[8]}
		if w.kind == "symlink" {
			w.mode, w.target = "0777", unescape.Replace(d[7])
		}
		g, ok := got[name]
		if w.kind == "char" || w.kind == "block" {
			w.target, w.hash = "-", "-"
		}
		if name == "/etc/shadow" || name == "/etc/shadow-" {
			g.hash = w.hash // it tells days on which users were added
		}
		mountPoint := mark == "+" && (w.kind == "dir" || w.kind == "file" && strings.HasPrefix(w.hash, emptyHash) && w.mode == "0755")
		switch {
		case !ok && !mountPoint:
			t.Errorf("%s is missing", name)
		case ok && g != w && !(mark == "~" && w.kind == "dir" && base[name] == g):
			t.Errorf("%s is %v, want %v", name, g, w)
		}
	}
	for name := range got {
		_, inBase := base[name]
		if !inBase && !want[name] && !slices.Contains(leftovers, name) {
			t.Errorf("%s is unexpected", name)
		}
	}
}
