package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/cas/userns"
	"github.com/ocurrent/obx/executor/qemu/vm"
	"github.com/ocurrent/obx/executor/rootless"
)

const storeFlag = "store"

// addStore adds --store.
func addStore(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, storeFlag, "", "keep results in `DIR` (default: $OBX_STORE; else /var/lib/obx as root,\n~/.local/share/obx otherwise)")
	cmd.MarkFlagDirname(storeFlag)
}

// storeDir is the directory of the store.
func storeDir(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if dir := os.Getenv("OBX_STORE"); dir != "" {
		return dir, nil
	}
	if userns.Caller() == 0 {
		return "/var/lib/obx", nil
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "obx"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", usage("--store DIR or $OBX_STORE says where", "no place for the store: %w", err)
	}
	return filepath.Join(home, ".local", "share", "obx"), nil
}

// mountVariable is the mount of the store as it was called before the namespace of an ordinary user was entered.
const mountVariable = "_OBX_STORE_MOUNT"

// enterNamespace has a command that works on a store, and was started by an ordinary user, go on as root of a user namespace: files of results belong
// to many users. Where there can be none, it goes on as it is, which is enough for some commands; needRoot tells the others.
func enterNamespace(cmd *cobra.Command) {
	f := cmd.Flags().Lookup(storeFlag)
	if f == nil {
		return
	}
	var variables []string
	if dir, err := storeDir(f.Value.String()); err == nil {
		variables = append(variables, mountVariable+"="+cas.MountOf(dir))
	}
	_ = rootless.Enter(variables...)
}

// needRoot is the error of a user who may not make sandboxes.
func needRoot() error {
	err := rootless.Enter()
	if err == nil {
		return nil
	}
	return fmt.Errorf("an ordinary user needs a user namespace to run steps: %w", err)
}

// openStore opens the store, which is made if missing, and prints what is wrong with where it is.
func openStore(warnings io.Writer, flag string) (*cas.Store, error) {
	dir, err := storeDir(flag)
	if err != nil {
		return nil, err
	}
	st, err := cas.OpenOn(dir, os.Getenv(mountVariable))
	if err != nil {
		return nil, fmt.Errorf("open the store %s: %w", dir, err)
	}
	for _, w := range st.Warnings() {
		warn(warnings, w)
	}
	return st, nil
}

// machinesDir is the directory of the store that virtual machines have: kernels, and in some directories what can be made again.
const machinesDir = "qemu"

// disksDir has the images of disk bases, see diskBase.
const disksDir = machinesDir + "/disks"

// derivedOfMachines are the directories in machinesDir that a prune may empty.
var derivedOfMachines = []string{disksDir, vm.StateDir}

// openExisting opens the store for a command that makes none.
func openExisting(warnings io.Writer, flag string) (*cas.Store, error) {
	dir, err := storeDir(flag)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, usage("--store DIR or $OBX_STORE names another", "there is no store at %s", dir)
	}
	return openStore(warnings, flag)
}

// openReadable opens the store for a command that only looks. A store that is missing, or that this user may not
// use, is an empty one: a temporary directory that close removes. Nothing is made at the store's own place.
func openReadable(warnings io.Writer, flag string) (st *cas.Store, close func() error, err error) {
	dir, err := storeDir(flag)
	if err != nil {
		return nil, nil, err
	}
	_, err = os.Stat(dir)
	if err == nil {
		if st, err = openStore(warnings, flag); err == nil {
			return st, st.Close, nil
		}
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		warn(warnings, fmt.Sprintf("the store counts as empty: %v", err))
	case !errors.Is(err, fs.ErrNotExist):
		return nil, nil, err
	}
	tmp, err := os.MkdirTemp("", "obx-store-*")
	if err != nil {
		return nil, nil, err
	}
	if st, err = cas.Open(tmp); err != nil {
		os.RemoveAll(tmp)
		return nil, nil, fmt.Errorf("open a temporary store: %w", err)
	}
	return st, func() error { return errors.Join(st.Close(), os.RemoveAll(tmp)) }, nil
}

// warnOdd names what a command that goes over the store could not look at or remove: it has done the rest.
func warnOdd(cmd *cobra.Command, odd []error) {
	for _, err := range odd {
		warn(cmd.ErrOrStderr(), err.Error())
	}
}
