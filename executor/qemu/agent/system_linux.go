package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tmpDir is what /tmp is in a machine that has booted from a disk: many systems empty that when they boot, or have it in memory, and what a step has
// left there would be gone at a time that no step knows of. It is no directory that obx has for other things.
const tmpDir = "/var/lib/obx-agent/tmp"

// tameSystem has the system of a disk do nothing that makes a result depend on when the machine was booted, or that gets secrets onto the disk. It may be
// called again: the system may undo what was done while it still booted.
func tameSystem() error {
	if err := keepTmp(); err != nil {
		return fmt.Errorf("keep /tmp: %w", err)
	}
	if err := swapOff(); err != nil {
		return fmt.Errorf("do without swap space: %w", err)
	}
	// Else memory of processes that crash would get into the step's directory, or to where the system collects such dumps.
	if err := os.WriteFile("/proc/sys/kernel/core_pattern", []byte("|/bin/false"), 0); err != nil && !os.IsNotExist(err) { // else the kernel makes none
		return fmt.Errorf("have no core dumps: %w", err)
	}
	return nil
}

func keepTmp() error {
	old := unix.Umask(0)
	defer unix.Umask(old)
	if err := os.MkdirAll(filepath.Dir(tmpDir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(tmpDir, 0o777); err != nil && !os.IsExist(err) {
		return err
	}
	if err := os.Chmod(tmpDir, 0o777|os.ModeSticky); err != nil {
		return err
	}
	at, err := os.Lstat("/tmp")
	if err != nil || !at.IsDir() { // a system that has its own way of it
		return nil
	}
	if own, err := os.Lstat(tmpDir); err != nil || os.SameFile(at, own) {
		return err
	}
	return unix.Mount(tmpDir, "/tmp", "", unix.MS_BIND, "")
}

// swapOff has memory written to no disk.
func swapOff() error {
	b, err := os.ReadFile("/proc/swaps")
	if os.IsNotExist(err) { // the kernel knows no swap
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		name, _, _ := strings.Cut(line, " ")
		if !strings.HasPrefix(name, "/") || strings.HasPrefix(name, "/dev/zram") {
			continue
		}
		// The kernel writes white space as \ooo.
		p, err := unix.BytePtrFromString(strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(name))
		if err != nil {
			return err
		}
		if _, _, errno := unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(p)), 0, 0); errno != 0 {
			return fmt.Errorf("%s: %w", name, errno)
		}
	}
	return nil
}
