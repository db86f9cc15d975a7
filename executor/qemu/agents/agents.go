// Package agents has the programs that run in machines: package agent, built for each system by make, and embedded here. An obx that was built without
// them can do all but start machines. The package refuses to know what the programs do.
package agents

import (
	"bytes"
	"compress/gzip"
	"embed"
	"errors"
	"fmt"
	"io"
)

// files are SYSTEM-ARCHITECTURE.gz. The pattern takes this file along: one for which there is no file does not compile.
//
//go:embed *
var files embed.FS

// ErrNone is the error of an obx that was built by go build alone.
var ErrNone = errors.New("this obx was built without the agents of virtual machines: build it with `make build`")

// Check says why there is no program for machines of an operating system and an architecture: ErrNone, or that there are no such machines. There are
// those of linux on amd64, arm64 and riscv64, of openbsd and windows on amd64.
func Check(os, arch string) error {
	switch {
	case has(os, arch):
		return nil
	case !has("linux", "amd64"):
		return ErrNone
	}
	return fmt.Errorf("no virtual machines of %s on %s: they are of linux on amd64, arm64 or riscv64, of openbsd or windows on amd64", os, arch)
}

// Program is the program for machines of an operating system and an architecture: some megabytes, unpacked by each call. The errors are those of Check.
func Program(os, arch string) ([]byte, error) {
	if err := Check(os, arch); err != nil {
		return nil, err
	}
	b, err := files.ReadFile(name(os, arch))
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func has(os, arch string) bool {
	_, err := files.Open(name(os, arch))
	return err == nil
}

func name(os, arch string) string { return os + "-" + arch + ".gz" }
