package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/qemu/guest"
)

// accelFile, in the store, has what was found out about KVM.
const accelFile = "qemu/kvm.json"

// kvmPatience is how long a machine may take to boot with KVM when that is tried: it takes a second where it works.
const kvmPatience = 5 * time.Second

// A kvmProbe is what KVM did with one QEMU in one boot of the host.
type kvmProbe struct {
	QEMU string    `json:"qemu"`
	Size int64     `json:"size"`
	Time time.Time `json:"time"`
	Boot string    `json:"boot"`
	Err  string    `json:"error,omitempty"`
}

// chooseAccel takes KVM where it works. Some hosts have a /dev/kvm in which a guest never comes to life.
func (k *Maker) chooseAccel(ctx context.Context) (string, error) {
	if k.options.Accel != "auto" {
		return k.forced(), nil
	}
	if k.options.Arch != hostArch {
		return "tcg", nil
	}
	const slow = "virtual machines are slow here, without KVM: "
	const insist = " (--qemu-accel kvm insists)"
	if err := unix.Access("/dev/kvm", unix.R_OK|unix.W_OK); err != nil {
		k.Warn(slow + "/dev/kvm: " + err.Error())
		return "tcg", nil
	}
	info, err := os.Stat(k.qemu)
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	probe := kvmProbe{QEMU: k.qemu, Size: info.Size(), Time: info.ModTime().UTC(), Boot: string(boot)}
	var old kvmProbe
	file := filepath.Join(k.options.Store.Dir(), accelFile)
	if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &old) == nil && old.sameAs(probe) {
		probe = old
	} else {
		lasts, err := k.tryKVM(ctx)
		if err != nil && ctx.Err() != nil {
			return "", err
		}
		if err != nil {
			probe.Err = err.Error()
		}
		if err == nil || lasts {
			k.remember(file, probe)
		}
	}
	if probe.Err == "" {
		err := unprivilegedKVM() // what was tried just now is no machine that anybody has a hand in
		if err == nil {
			return "kvm", nil
		}
		probe.Err = err.Error()
	}
	k.Warn(slow + probe.Err + insist)
	return "tcg", nil
}

// forced is the accelerator that the user insists on.
func (k *Maker) forced() string {
	if k.options.Accel == "kvm" {
		if err := unprivilegedKVM(); err != nil {
			k.Warn("QEMU runs as root: " + err.Error())
		}
	}
	return k.options.Accel
}

func (p kvmProbe) sameAs(q kvmProbe) bool {
	p.Err, q.Err = "", ""
	return p == q
}

// remember is for speed only: an error costs no more than the next probe.
func (k *Maker) remember(file string, probe kvmProbe) {
	b, err := json.MarshalIndent(probe, "", "  ")
	if err != nil {
		return
	}
	tmp := filepath.Join(k.tmp, "kvm.json")
	if os.WriteFile(tmp, b, 0o644) == nil && os.MkdirAll(filepath.Dir(file), 0o700) == nil {
		_ = os.Rename(tmp, file)
	}
}

// tryKVM boots a machine with KVM. An error that lasts is one of KVM, not of a full disk or the like.
func (k *Maker) tryKVM(ctx context.Context) (lasts bool, err error) {
	h := k.hardware(k.options.Memory)
	h.accel = "kvm"
	m, err := k.boot(ctx, h, kvmPatience)
	var late *guest.BootError
	var ended *endError
	switch {
	case errors.As(err, &late):
		return true, fmt.Errorf("/dev/kvm is there, but a machine does not boot with it within %v", kvmPatience)
	case err != nil:
		return errors.As(err, &ended) && ended.lasts(), fmt.Errorf("KVM does not work: %w", err)
	}
	m.Close()
	return false, nil
}

// lasts reports a QEMU that has ended of its own accord, be it by abort, and not for what others have of the host.
func (e *endError) lasts() bool {
	var exit *exec.ExitError
	if !errors.As(e.status, &exit) {
		return false
	}
	ws, ok := exit.Sys().(syscall.WaitStatus)
	return ok && ws.Signal() != syscall.SIGKILL && !strings.Contains(e.Error(), "memory") && !strings.Contains(e.Error(), "busy")
}

// unprivilegedKVM says why QEMU cannot use KVM, unless it runs as root.
func unprivilegedKVM() error {
	if _, ok := groupsFor("kvm"); ok || os.Geteuid() != 0 {
		return nil
	}
	return errors.New("only root may open /dev/kvm, and QEMU should not be root (give it a group: chgrp kvm /dev/kvm && chmod 660 /dev/kvm)")
}
