package conformance

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// RequireRoot skips a test that mounts, as an ordinary user.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
}

// BuildOBX gives the obx command of this tree, with the race detector if the test has it, in a directory of its own. It is built once.
func BuildOBX(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv(builtVariable); dir != "" {
		return filepath.Join(dir, "obx")
	}
	once, err := builtOBX()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "obx")
	if err := os.Link(once, bin); err != nil {
		t.Fatal(err)
	}
	return bin
}

// builtOBX is the command that BuildOBX has built. TestMain removes what it is in, by removeBuilt.
var builtOBX = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "obx-built-")
	if err != nil {
		return "", err
	}
	removeBuilt = func() { _ = os.RemoveAll(dir) }
	bin := filepath.Join(dir, "obx")
	return bin, buildOBX(bin)
})

var removeBuilt = func() {}

// builtVariable is where the programs of this module are that tests need, for those that have no Go compiler.
const builtVariable = "OBX_TEST_BUILT"

// buildContainerd builds the program beside an obx that runs its steps through containerd.
func buildContainerd(t testing.TB, obx string) {
	t.Helper()
	if err := buildOBX(obx+"-containerd", "-tags", "containerd"); err != nil {
		t.Fatal(err)
	}
}

func buildOBX(bin string, flags ...string) error {
	args := append([]string{"build", "-o", bin}, flags...)
	if raceDetector {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "github.com/ocurrent/obx/cmd/obx")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("build obx: %w\n%s", err, out)
	}
	return nil
}

// Environ is the environment for an obx command of BuildOBX: with the race detector it would wait a second before it
// ends.
func Environ() []string {
	return append(os.Environ(), "GORACE=halt_on_error=1 atexit_sleep_ms=0")
}

// Bases gives the base images of the golden cases, as OCI layouts, by name: busybox; bbgnu, the same with GNU tar; and
// small, a minimal Debian (without devices, as images of engines are), which takes a minute to make and is kept in $OBX_BASES (default: /var/tmp/obx-bases) for
// the next time.
func Bases(t testing.TB) map[string]string {
	t.Helper()
	kept := os.Getenv("OBX_BASES")
	if kept == "" {
		kept = "/var/tmp/obx-bases"
	}
	dir := t.TempDir()
	bases := map[string]string{
		"busybox": filepath.Join(dir, "busybox"),
		"bbgnu":   filepath.Join(dir, "bbgnu"),
		"small":   filepath.Join(kept, "debian"),
	}
	for name, extra := range map[string][]string{"busybox": nil, "bbgnu": {"/bin/tar"}} {
		raw, err := busyboxTar(extra)
		if err == nil {
			err = writeLayout(bases[name], raw)
		}
		if err != nil {
			t.Fatalf("make base image %s: %v", name, err)
		}
	}
	if _, err := os.Stat(bases["small"]); err == nil {
		return bases
	}
	raw, err := exec.Command("mmdebstrap", "-q", "--variant=minbase", "--mode=root", "--skip=output/dev", "bookworm", "-").Output()
	if err != nil {
		t.Fatalf("make base image small (apt-get install mmdebstrap): %v", err)
	}
	part := fmt.Sprintf("%s.%d", bases["small"], os.Getpid())
	defer os.RemoveAll(part)
	if err := writeLayout(part, raw); err != nil {
		t.Fatalf("make base image small: %v", err)
	}
	if err := os.Rename(part, bases["small"]); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	return bases
}

// busyboxTar is a root file system of busybox and the given programs of this machine, with their libraries.
func busyboxTar(programs []string) ([]byte, error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("%w (apt-get install busybox-static)", err)
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list busybox's applets: %w", err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	have := map[string]bool{}
	add := func(name string, mode fs.FileMode, data []byte) error {
		have[name] = true
		h := &tar.Header{Name: name, Mode: int64(mode.Perm()), Size: int64(len(data)), Typeflag: tar.TypeReg}
		if mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		if mode.IsDir() {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	addFile := func(name string) error {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		name = strings.TrimPrefix(name, "/")
		var parents []string
		for dir := path.Dir(name); dir != "." && !have[dir]; dir = path.Dir(dir) {
			parents = append(parents, dir)
		}
		for _, dir := range slices.Backward(parents) {
			if err := add(dir, fs.ModeDir|0o755, nil); err != nil {
				return err
			}
		}
		return add(name, info.Mode().Perm(), data)
	}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "sys"} {
		if err := add(dir, fs.ModeDir|0o755, nil); err != nil {
			return nil, err
		}
	}
	if err := add("tmp", fs.ModeDir|fs.ModeSticky|0o777, nil); err != nil {
		return nil, err
	}
	if err := add("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n")); err != nil {
		return nil, err
	}
	if err := add("etc/group", 0o644, []byte("root:x:0:\n")); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	if err := add("bin/busybox", 0o755, data); err != nil {
		return nil, err
	}
	for _, p := range programs {
		libs, err := exec.Command("ldd", p).Output()
		if err != nil {
			return nil, fmt.Errorf("libraries of %s: %w", p, err)
		}
		for _, name := range append([]string{p}, strings.Fields(string(libs))...) {
			if !strings.HasPrefix(name, "/") || have[name[1:]] {
				continue
			}
			if err := addFile(name); err != nil {
				return nil, err
			}
		}
	}
	for _, applet := range strings.Fields(string(applets)) {
		if name := "bin/" + applet; !have[name] {
			have[name] = true
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o777, Typeflag: tar.TypeSymlink, Linkname: "busybox"}); err != nil {
				return nil, err
			}
		}
	}
	return buf.Bytes(), w.Close()
}

// writeLayout writes an OCI layout with one image of gzip layers, base first, tagged latest.
func writeLayout(dir string, raws ...[]byte) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	put := func(data []byte, mediaType string) (ocispec.Descriptor, error) {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		return d, os.WriteFile(filepath.Join(blobs, d.Digest.Encoded()), data, 0o644)
	}
	putJSON := func(v any, mediaType string) (ocispec.Descriptor, error) {
		data, err := json.Marshal(v)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		return put(data, mediaType)
	}
	var all []ocispec.Descriptor
	var diffIDs []digest.Digest
	for _, raw := range raws {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		if _, err := z.Write(raw); err != nil {
			return err
		}
		if err := z.Close(); err != nil {
			return err
		}
		layer, err := put(packed.Bytes(), ocispec.MediaTypeImageLayerGzip)
		if err != nil {
			return err
		}
		all, diffIDs = append(all, layer), append(diffIDs, digest.FromBytes(raw))
	}
	config, err := putJSON(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   ocispec.ImageConfig{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Cmd: []string{"/bin/sh"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	}, ocispec.MediaTypeImageConfig)
	if err != nil {
		return err
	}
	manifest, err := putJSON(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    all,
	}, ocispec.MediaTypeImageManifest)
	if err != nil {
		return err
	}
	manifest.Annotations = map[string]string{ocispec.AnnotationRefName: "latest"}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifest},
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, ocispec.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), index, 0o644)
}
