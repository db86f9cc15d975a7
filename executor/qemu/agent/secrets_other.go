//go:build !linux

package main

import (
	"runtime"

	"github.com/ocurrent/obx/executor"
)

// mountSecret refuses: what is written here gets onto a disk that is kept.
func mountSecret(int, string, *executor.Secret) (undo func() error, err error) {
	return nil, &executor.StartError{Msg: "secrets are not to be had in machines of " + runtime.GOOS + ": they would get onto the disk, which is kept"}
}
