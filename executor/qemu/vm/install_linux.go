package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ocurrent/obx/executor/qemu/words"
)

// debian names Debian's packages by architecture.
var debian = map[string]struct{ qemu, firmware, kernel, arch string }{
	"amd64":   {"qemu-system-x86", "ovmf", "linux-image-cloud-amd64", "amd64"},
	"arm64":   {"qemu-system-arm", "qemu-efi-aarch64", "linux-image-cloud-arm64", "arm64"},
	"riscv64": {"qemu-system-misc", "u-boot-qemu", "linux-image-riscv64", "riscv64"},
}

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
	hasKernel := err == nil && k.modules != "" || o.Foreign()
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
		for _, option := range []string{
			"Dir::State::Lists=" + tmp + "/apt/lists", "Dir::Cache=" + tmp + "/apt", "APT::Architecture=" + arch, "APT::Architectures=" + arch,
		} {
			apt = append(apt, "-o", option)
		}
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
