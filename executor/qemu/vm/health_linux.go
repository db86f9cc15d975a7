package vm

import (
	"cmp"
	"context"
	"errors"
	"os/exec"
	"strings"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/agents"
)

// Health looks for what a Maker with these options needs, and starts no machine. The store may be nil, if it could not be opened.
func Health(ctx context.Context, o Options) []executor.Check {
	var checks []executor.Check
	check := func(name string, look func() (string, error)) {
		detail, err := look()
		checks = append(checks, executor.Check{Name: name, Detail: detail, Err: err})
	}
	o.Arch = cmp.Or(o.Arch, hostArch)
	arch := o.Arch
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
	foreign := o.Foreign()
	if !foreign {
		check("kernel", func() (string, error) {
			k, err := findKernel(o.Store, o.Kernel, arch)
			if err == nil && k.modules == "" {
				return k.image + ", without modules: it must have all that machines need", nil
			}
			return k.image, err
		})
	}
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
	return checks
}
