package vm

import (
	"errors"
	"fmt"
	"os"
)

// firmwares are where systems have firmware that boots disks: in one file, since a machine keeps no variables. That of riscv64 is U-Boot, which
// boots what UEFI would.
var firmwares = map[string][]string{
	"amd64":   {"/usr/share/ovmf/OVMF.fd", "/usr/share/edk2/ovmf/OVMF.fd", "/usr/share/edk2/x64/OVMF.4m.fd", "/usr/share/qemu/OVMF.fd"},
	"arm64":   {"/usr/share/qemu-efi-aarch64/QEMU_EFI.fd", "/usr/share/edk2/aarch64/QEMU_EFI.fd", "/usr/share/qemu/edk2-aarch64-code.fd"},
	"riscv64": {"/usr/lib/u-boot/qemu-riscv64_smode/u-boot.bin"},
}

// errNoFirmware says that disk images cannot be booted.
var errNoFirmware = errors.New("no UEFI firmware")

// firmware finds what a disk is booted by. None is QEMU's own, a BIOS.
func (o Options) firmware() (string, error) {
	switch {
	case o.Firmware == "" && o.Arch == "amd64":
		return "", nil
	case o.Firmware != "" && o.Firmware != UEFI:
		if info, err := os.Stat(o.Firmware); err != nil {
			return "", fmt.Errorf("firmware: %w", err)
		} else if !info.Mode().IsRegular() {
			return "", fmt.Errorf("firmware %s: it is not a file", o.Firmware)
		}
		return o.Firmware, nil
	}
	for _, f := range firmwares[o.Arch] {
		if _, err := os.Stat(f); err == nil {
			return f, nil
		}
	}
	return "", fmt.Errorf("%w for disk images of %s: install it (Debian: apt-get install %s), or name a file with --qemu-firmware",
		errNoFirmware, o.Arch, debian[o.Arch].firmware)
}

// firmwareFlag is how QEMU is told of the firmware: that of riscv64 runs upon QEMU's own.
func firmwareFlag(arch string) string {
	if arch == "riscv64" {
		return "-kernel"
	}
	return "-bios"
}
