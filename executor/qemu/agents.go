//go:build linux

package qemu

import (
	"bytes"
	"compress/gzip"
	"embed"
	"errors"
	"fmt"
	"io"
)

// agents are the program in agent for each system, built by make. An obx that was built without them can do all but start
// machines.
//
//go:embed agents
var agents embed.FS

// Agent is the program in agent for machines of an operating system and an architecture: linux with amd64, arm64 or riscv64; openbsd and windows
// with amd64.
func Agent(os, arch string) ([]byte, error) {
	b, err := agents.ReadFile(agentFile(os, arch))
	if err != nil {
		return nil, errNoAgent(os, arch)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// ErrNoAgents is the error of an obx that was built by go build alone.
var ErrNoAgents = errors.New("this obx was built without the agents of virtual machines: build it with `make build`")

// errNoAgent says why there is no agent for a system.
func errNoAgent(os, arch string) error {
	if _, err := agents.Open(agentFile("linux", "amd64")); err != nil {
		return ErrNoAgents
	}
	return fmt.Errorf("no virtual machines of %s on %s: they are of linux on amd64, arm64 or riscv64, of openbsd or windows on amd64", os, arch)
}

func agentFile(os, arch string) string { return "agents/" + os + "-" + arch + ".gz" }
