package vm

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ocurrent/obx/cas"
)

// kernelDir is where the store keeps kernels: qemu/ARCH/vmlinuz-RELEASE and qemu/ARCH/modules/RELEASE.
const kernelDir = "qemu"

// A kernel is one with its modules.
type kernel struct {
	image   string
	release string
	modules string // directory; "" if there is none: then all that is needed must be built in
}

var errNoKernel = errors.New("no Linux kernel for virtual machines")

// noKernel is errNoKernel, with what to do.
func noKernel(arch string) error {
	return fmt.Errorf("%w: give one with --qemu-kernel or $OBX_QEMU_KERNEL, or run `%s`", errNoKernel, installCommand(arch))
}

// installCommand is what installs all that machines of an architecture need.
func installCommand(arch string) string {
	if arch == hostArch {
		return "obx healthcheck --executor qemu --install"
	}
	return "obx healthcheck --executor qemu --platform linux/" + arch + " --install"
}

// findKernel looks where want says, or in the store and then in /boot.
func findKernel(st *cas.Store, want, arch string) (kernel, error) {
	if want != "" {
		k, err := kernelAt(want)
		if err != nil {
			return k, fmt.Errorf("kernel: %w", err)
		}
		return k, nil
	}
	dirs := []string{}
	if st != nil {
		dirs = append(dirs, filepath.Join(st.Dir(), kernelDir, arch))
	}
	if arch == hostArch {
		dirs = append(dirs, "/boot")
	}
	for _, dir := range dirs {
		found, err := filepath.Glob(filepath.Join(dir, "vmlinu[xz]-*"))
		if err != nil {
			return kernel{}, err
		}
		// Those made for virtual machines first, they are smaller; then the newest.
		slices.SortFunc(found, func(a, b string) int {
			ca, cb := strings.Contains(a, "cloud"), strings.Contains(b, "cloud")
			if ca != cb {
				if ca {
					return -1
				}
				return 1
			}
			return compareVersions(b, a)
		})
		for _, name := range found {
			if k, err := kernelAt(name); err == nil {
				return k, nil
			}
		}
	}
	return kernel{}, noKernel(arch)
}

// compareVersions orders names with numbers in them.
func compareVersions(a, b string) int {
	digits := func(s string) (n int, rest string) {
		i := 0
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
		n, _ = strconv.Atoi(s[:i])
		return n, s[i:]
	}
	for a != "" && b != "" {
		if a[0] >= '0' && a[0] <= '9' && b[0] >= '0' && b[0] <= '9' {
			var x, y int
			x, a = digits(a)
			y, b = digits(b)
			if x != y {
				return x - y
			}
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func kernelAt(name string) (kernel, error) {
	name, err := filepath.Abs(name)
	if err != nil {
		return kernel{}, err
	}
	if name, err = filepath.EvalSymlinks(name); err != nil {
		return kernel{}, err
	}
	f, err := os.Open(name)
	if err != nil {
		return kernel{}, err
	}
	defer f.Close()
	k := kernel{image: name}
	if _, release, ok := strings.Cut(filepath.Base(name), "-"); ok {
		k.release = release
	} else {
		k.release = bzImageRelease(f)
	}
	if k.release == "" {
		return k, nil
	}
	dir := filepath.Dir(name)
	for _, modules := range []string{
		filepath.Join(dir, "modules", k.release), filepath.Join(dir, "..", "lib/modules", k.release),
		filepath.Join(dir, "..", "usr/lib/modules", k.release), filepath.Join("/lib/modules", k.release),
	} {
		if info, err := os.Stat(modules); err == nil && info.IsDir() {
			k.modules = filepath.Clean(modules)
			break
		}
	}
	return k, nil
}

// bzImageRelease reads the release out of an x86 kernel; "" if it is none.
func bzImageRelease(r io.ReaderAt) string {
	var head [0x210]byte
	if _, err := r.ReadAt(head[:], 0); err != nil || string(head[0x202:0x206]) != "HdrS" {
		return ""
	}
	text := make([]byte, 128)
	n, _ := r.ReadAt(text, int64(binary.LittleEndian.Uint16(head[0x20e:]))+0x200)
	release, _, _ := strings.Cut(string(text[:n]), " ")
	return release
}

// moduleSets are the modules that a machine needs, by the directory of the initial root file system that they go to. What a
// kernel has built in is no module.
var moduleSets = []struct {
	dir   string
	names []string
}{
	{"boot", []string{"virtio_pci", "virtio_console", "virtio_blk", "ext4", "overlay", "erofs"}},
	{"net", []string{"virtio_net"}},
}

// findModules lists the files of the modules that have a name in names, those that they need before them.
func (k kernel) findModules(names []string, known map[string]string, have map[string]bool) (files []string, err error) {
	for _, name := range names {
		name = strings.ReplaceAll(name, "-", "_")
		file, ok := known[name]
		if !ok { // the name of an algorithm, which its plainest module has as an alias
			file, ok = known[name+"_generic"]
		}
		if !ok || have[name] {
			continue // built in, or the agent will say what is missing
		}
		have[name] = true
		needs, err := moduleNeeds(file)
		if err != nil {
			return nil, fmt.Errorf("kernel module %s: %w", file, err)
		}
		below, err := k.findModules(needs, known, have)
		if err != nil {
			return nil, err
		}
		files = append(append(files, below...), file)
	}
	return files, nil
}

// allModules maps the names of all modules to their files.
func (k kernel) allModules() (map[string]string, error) {
	known := map[string]string{}
	if k.modules == "" {
		return known, nil
	}
	err := filepath.WalkDir(filepath.Join(k.modules, "kernel"), func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, kind, ok := strings.Cut(d.Name(), ".ko"); ok && (kind == "" || kind == ".xz" || kind == ".zst" || kind == ".gz") {
			known[strings.ReplaceAll(name, "-", "_")] = file
		}
		return nil
	})
	return known, err
}

// readModule reads a module without its compression.
func readModule(file string) ([]byte, error) {
	switch filepath.Ext(file) {
	case ".ko":
		return os.ReadFile(file)
	case ".gz":
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	}
	program := map[string]string{".xz": "xz", ".zst": "zstd"}[filepath.Ext(file)]
	out, err := exec.Command(program, "-dc", file).Output()
	if err != nil {
		return nil, fmt.Errorf("decompress %s with %s: %w", file, program, err)
	}
	return out, nil
}

// moduleNeeds reads which other modules one needs: whose symbols it uses, and what it asks for while it starts.
func moduleNeeds(file string) ([]string, error) {
	b, err := readModule(file)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it has no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	return modinfoNeeds(string(info)), nil
}

func modinfoNeeds(info string) (needs []string) {
	for line := range strings.SplitSeq(info, "\x00") {
		if list, ok := strings.CutPrefix(line, "depends="); ok && list != "" {
			needs = append(needs, strings.Split(list, ",")...)
		}
		if list, ok := strings.CutPrefix(line, "softdep=pre:"); ok {
			list, _, _ = strings.Cut(list, "post:")
			needs = append(needs, strings.Fields(list)...)
		}
	}
	return needs
}

// writeInitrd writes the initial root file system: the agent and the modules.
func (k kernel) writeInitrd(w io.Writer, agent []byte) error {
	c := cpio{w: w}
	for _, d := range []string{"dev", "root", "modules"} {
		c.add(d, 0o40755, nil)
	}
	c.add("init", 0o100755, agent)
	known, err := k.allModules()
	if err != nil {
		return fmt.Errorf("kernel modules: %w", err)
	}
	have := map[string]bool{}
	for _, set := range moduleSets {
		c.add("modules/"+set.dir, 0o40755, nil)
		files, err := k.findModules(set.names, known, have)
		if err != nil {
			return err
		}
		for i, file := range files {
			b, err := readModule(file)
			if err != nil {
				return err
			}
			name, _, _ := strings.Cut(filepath.Base(file), ".")
			c.add(fmt.Sprintf("modules/%s/%02d-%s", set.dir, i, name), 0o100644, b)
		}
	}
	c.node("dev/console", 0o20600, 5, 1)
	c.add("TRAILER!!!", 0, nil)
	return c.err
}

// A cpio writes an archive in the "newc" form, which the kernel unpacks.
type cpio struct {
	w   io.Writer
	ino int
	err error
}

func (c *cpio) add(name string, mode int, data []byte) { c.entry(name, mode, data, 0, 0) }

func (c *cpio) node(name string, mode, major, minor int) { c.entry(name, mode, nil, major, minor) }

func (c *cpio) entry(name string, mode int, data []byte, major, minor int) {
	if c.err != nil {
		return
	}
	c.ino++
	var b bytes.Buffer
	b.WriteString("070701")
	for _, n := range []int{c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0} {
		fmt.Fprintf(&b, "%08x", n)
	}
	b.WriteString(name)
	b.WriteByte(0)
	pad(&b)
	b.Write(data)
	pad(&b)
	_, c.err = c.w.Write(b.Bytes())
}

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
