package qemu

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// command runs a tool that makes disks.
func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s (make test-deps)", name, err, out)
	}
}

// firmwareDisk makes a disk that UEFI or U-Boot boots a Linux from, which has nothing but obx's agent.
func firmwareDisk(t *testing.T, e *Executor) string {
	t.Helper()
	board, _ := boardOf(hardware{arch: e.options.Arch})
	options := "console=" + board.console + " quiet rdinit=/init"
	dir := t.TempDir()
	raw := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(raw, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(raw, 200<<20); err != nil {
		t.Fatal(err)
	}
	const at = "@@1M"
	command(t, "sh", "-c", "echo start=1MiB,type=ef,bootable | PATH=$PATH:/sbin:/usr/sbin sfdisk -q "+raw)
	command(t, "mformat", "-i", raw+at, "-F", "::")
	command(t, "mmd", "-i", raw+at, "::extlinux")
	for name, content := range map[string]string{
		"startup.nsh":            `vmlinuz initrd=\initrd ` + options,
		"extlinux/extlinux.conf": "default linux\nlabel linux\nkernel /vmlinuz\ninitrd /initrd\nappend " + options + "\n",
	} {
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		command(t, "mcopy", "-i", raw+at, file, "::"+name)
	}
	command(t, "mcopy", "-i", raw+at, e.image, "::vmlinuz")
	command(t, "mcopy", "-i", raw+at, e.initrd, "::initrd")
	disk := filepath.Join(dir, "disk.qcow2")
	command(t, "qemu-img", "convert", "-O", "qcow2", raw, disk)
	return disk
}

// TestFirmware boots disks by firmware, up to the agent. `make machines` does so for each architecture, else it is this machine's.
func TestFirmware(t *testing.T) {
	conformance.RequireRoot(t)
	archs := []string{"amd64"}
	if conformance.LongMachines() {
		archs = []string{"amd64", "arm64", "riscv64"}
	}
	for _, arch := range archs {
		t.Run(arch, func(t *testing.T) {
			st := conformance.OpenStore(t)
			e, err := New(Options{
				Store: st, Arch: arch, Kernel: conformance.Kernel(t, arch), Accel: "tcg", BootTimeout: 3 * time.Minute, Firmware: UEFI,
				Warn: func(msg string) { t.Error(msg) },
			})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			if err := e.getReady(t.Context()); err != nil {
				t.Fatal(err)
			}
			r, err := e.Open(t.Context(), []layers.Layer{conformance.DiskLayer(t, st, firmwareDisk(t, e))})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var missing *executor.StartError
			if err := r.Run(t.Context(), executor.Process{Argv: []string{"/program"}, Dir: "/"}, io.Discard); !errors.As(err, &missing) {
				t.Errorf("the agent on the disk says %v", err)
			}
		})
	}
}
