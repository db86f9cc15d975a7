package qemu

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/agents"
	"github.com/ocurrent/obx/executor/qemu/words"
	"github.com/ocurrent/obx/layers"
)

// Health tries what an Executor with these options needs, up to a machine that runs. The store may be nil, if it could
// not be opened: then only what needs none is tried.
func Health(ctx context.Context, o Options) []executor.Check {
	var checks []executor.Check
	check := func(name string, look func() (string, error)) {
		detail, err := look()
		checks = append(checks, executor.Check{Name: name, Detail: detail, Err: err})
	}
	arch := o.Arch
	if arch == "" {
		arch = hostArch
	}
	check("agent", func() (string, error) {
		system := cmp.Or(o.OS, "linux")
		_, err := agents.Program(system, arch)
		return system + " on " + arch, err
	})
	check("qemu", func() (string, error) {
		program, err := findQEMU(arch)
		if err != nil {
			return "", err
		}
		out, _ := exec.CommandContext(ctx, program, "--version").Output()
		version, _, _ := strings.Cut(string(out), "\n")
		return program + " " + version, nil
	})
	foreign := o.foreign()
	if !foreign {
		check("kernel", func() (string, error) {
			k, err := findKernel(o.Store, o.Kernel, arch)
			if err == nil && k.modules == "" {
				return k.image + ", without modules: it must have all that machines need", nil
			}
			return k.image, err
		})
	}
	o.Arch = arch
	if arch != "amd64" || o.Firmware != "" {
		check("firmware", func() (string, error) {
			file, err := o.firmware()
			if errors.Is(err, errNoFirmware) && o.Firmware == "" {
				return "not there: only disk images need it (apt-get install " + debian[arch].firmware + ")", nil
			}
			return file, err
		})
	}
	check("qemu-img", func() (string, error) {
		program, err := exec.LookPath("qemu-img")
		if err != nil && !foreign {
			return "not there: only disk images need it (apt-get install qemu-utils)", nil
		}
		return program, err
	})
	check("mke2fs", func() (string, error) { return lookSbin("mke2fs") })
	for _, c := range checks {
		if c.Err != nil {
			return checks
		}
	}
	if o.Store == nil || os.Geteuid() != 0 {
		return checks
	}
	var warned []string
	o.Warn = func(msg string) { warned = append(warned, msg) }
	e, err := New(o)
	if err != nil {
		check("executor", func() (string, error) { return "", err })
		return checks
	}
	check("machine", func() (string, error) {
		if foreign {
			return "not tried: it needs a disk to boot from", nil
		}
		if err := e.try(ctx); err != nil {
			return "", err
		}
		return strings.Join(append([]string{"works with " + e.accel}, warned...), "; "), nil
	})
	if err := e.Close(); err != nil {
		check("clean-up", func() (string, error) { return "", err })
	}
	return checks
}

// try starts a machine, and in it what can only fail: there is no program.
func (e *Executor) try(ctx context.Context) error {
	r, err := e.Open(ctx, []layers.Layer{})
	if err != nil {
		return err
	}
	defer r.Close()
	err = r.Run(ctx, executor.Process{Argv: []string{"/program"}, Dir: "/"}, &bytes.Buffer{})
	var start *executor.StartError
	if !errors.As(err, &start) {
		return errors.Join(errors.New("a machine does not say that a program is missing"), err)
	}
	return nil
}

// debian names Debian's packages by architecture.
var debian = map[string]struct{ qemu, firmware, kernel, arch string }{
	"amd64":   {"qemu-system-x86", "ovmf", "linux-image-cloud-amd64", "amd64"},
	"arm64":   {"qemu-system-arm", "qemu-efi-aarch64", "linux-image-cloud-arm64", "arm64"},
	"riscv64": {"qemu-system-misc", "u-boot-qemu", "linux-image-riscv64", "riscv64"},
}

// foreign reports machines that can only boot from disks, which have their kernels.
func (o Options) foreign() bool { return o.OS != "" && o.OS != "linux" }

// Install installs QEMU with apt, and unpacks Debian's kernel for machines into the store. It tells say what it does.
func Install(ctx context.Context, o Options, say func(string)) error {
	if o.Arch == "" {
		o.Arch = hostArch
	}
	names, ok := debian[o.Arch]
	if !ok {
		return fmt.Errorf("no packages are known for architecture %q", o.Arch)
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return errors.New("this is no Debian: install QEMU by the system's own means, and give a kernel with --qemu-kernel")
	}
	var missing []string
	if _, err := findQEMU(o.Arch); err != nil {
		missing = append(missing, names.qemu)
	}
	if _, err := o.firmware(); errors.Is(err, errNoFirmware) {
		missing = append(missing, names.firmware)
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		missing = append(missing, "qemu-utils")
	}
	if _, err := lookSbin("mke2fs"); err != nil {
		missing = append(missing, "e2fsprogs")
	}
	k, err := findKernel(o.Store, o.Kernel, o.Arch)
	hasKernel := err == nil && k.modules != "" || o.foreign()
	if len(missing) > 0 || !hasKernel && o.Arch == hostArch {
		if err := run(ctx, "", "apt-get", "update", "-q"); err != nil {
			return err
		}
	}
	if len(missing) > 0 {
		say("installing " + strings.Join(missing, " "))
		if err := run(ctx, "", "apt-get", append([]string{"install", "-qy", "--no-install-recommends"}, missing...)...); err != nil {
			return err
		}
	}
	if hasKernel {
		if k.image != "" {
			say("there is a kernel: " + k.image)
		}
		return nil
	}
	say("unpacking " + names.kernel + " into the store")
	return installKernel(ctx, o, names.kernel, names.arch)
}

// installKernel downloads the package that a kernel's package depends on, and keeps what machines need of it.
func installKernel(ctx context.Context, o Options, name, arch string) error {
	tmp, err := os.MkdirTemp(o.Store.TempDir(), "kernel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	apt := []string{"-q", "-o", "APT::Sandbox::User=root"}
	if o.Arch != hostArch {
		// This machine's lists have no packages of another architecture: there are others for it, as long as they are needed.
		for _, dir := range []string{"lists/partial", "archives/partial"} {
			if err := os.MkdirAll(filepath.Join(tmp, "apt", dir), 0o755); err != nil {
				return err
			}
		}
		apt = append(apt, "-o", "Dir::State::Lists="+tmp+"/apt/lists", "-o", "Dir::Cache="+tmp+"/apt", "-o", "APT::Architecture="+arch, "-o", "APT::Architectures="+arch)
		if err := run(ctx, tmp, "apt-get", append(apt, "update")...); err != nil {
			return err
		}
	}
	out, err := exec.CommandContext(ctx, "apt-cache", append(apt, "depends", "--important", name+":"+arch)...).Output()
	if err != nil {
		return fmt.Errorf("this Debian has no package %s for %s (%w): give a kernel with --qemu-kernel", name, arch, err)
	}
	real := name
	for line := range strings.Lines(string(out)) {
		if d, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(d, "linux-image-") {
			real, _, _ = strings.Cut(d, ":")
			break
		}
	}
	if err := run(ctx, tmp, "apt-get", append(apt, "download", real+":"+arch)...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download %s gave %d packages", real, len(debs))
	}
	root := filepath.Join(tmp, "root")
	if err := run(ctx, tmp, "dpkg-deb", "-x", debs[0], root); err != nil {
		return err
	}
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinu[xz]-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("%s has %d kernels", real, len(images))
	}
	k, err := kernelAt(images[0])
	if err != nil {
		return err
	}
	if k.modules == "" {
		return fmt.Errorf("%s has no modules", real)
	}
	// The kernel is moved last: who finds it finds its modules.
	dir := filepath.Join(o.Store.Dir(), kernelDir, o.Arch)
	if err := os.MkdirAll(filepath.Join(dir, "modules"), 0o755); err != nil {
		return err
	}
	modules := filepath.Join(dir, "modules", k.release)
	if err := errors.Join(os.RemoveAll(modules), os.Rename(k.modules, modules)); err != nil {
		return err
	}
	return os.Rename(k.image, filepath.Join(dir, filepath.Base(k.image)))
}

func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, words.Last(string(out), 3))
	}
	return nil
}
