package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ocurrent/obx/conformance"
)

// command runs a tool that makes disks.
func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s (make test-deps)", name, err, out)
	}
}

// firmwareDisk makes a disk that UEFI or U-Boot boots a Linux from, which has nothing but obx's agent.
func firmwareDisk(t *testing.T, k *Maker) string {
	t.Helper()
	board := boardOf(hardware{arch: k.options.Arch})
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
	command(t, "mcopy", "-i", raw+at, k.image, "::vmlinuz")
	command(t, "mcopy", "-i", raw+at, k.initrd, "::initrd")
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
			k := testMaker(t, Options{Store: st, Arch: arch, BootTimeout: 3 * time.Minute, Firmware: UEFI, Warn: func(msg string) { t.Error(msg) }})
			defer k.Close()
			if err := k.getReady(t.Context()); err != nil {
				t.Fatal(err)
			}
			m, _, err := k.FromDisk(t.Context(), Disk{Files: []string{firmwareDisk(t, k)}, Memory: k.options.Memory, SSHPort: 22})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if err := m.Agent.Greet(t.Context(), k.options.BootTimeout); err != nil {
				t.Errorf("the agent on the disk: %v; the console says %s", err, m.LastWords())
			}
		})
	}
}
