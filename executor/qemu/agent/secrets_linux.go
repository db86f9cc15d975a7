package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor"
)

// secretsDir is a tmpfs.
const secretsDir = ownDir + "/secrets"

// mountSecret mounts a file that is in memory only.
func mountSecret(number int, target string, secret *executor.Secret) (undo func() error, err error) {
	if !passing(secretsDir) {
		if err := os.MkdirAll(secretsDir, 0o700); err != nil {
			return nil, err
		}
		if err := unix.Mount("obx", secretsDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700"); err != nil {
			return nil, fmt.Errorf("mount a tmpfs for secrets: %w", err)
		}
	}
	mode := secret.Mode.Perm()
	if mode == 0 {
		mode = 0o644
	}
	file := filepath.Join(secretsDir, strconv.Itoa(number))
	if err := errors.Join(os.WriteFile(file, secret.Data, 0o600), os.Chmod(file, mode)); err != nil {
		return nil, err
	}
	made := false
	if _, err := os.Stat(target); err != nil {
		if err := os.WriteFile(target, nil, 0o644); err != nil {
			return nil, err
		}
		made = true
	}
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("mount a secret: %w", err)
	}
	undo = func() error {
		err := errors.Join(unix.Unmount(target, unix.MNT_DETACH), os.Remove(file))
		if made && err == nil {
			err = os.Remove(target)
		}
		return err
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return nil, errors.Join(err, undo())
	}
	return undo, nil
}
