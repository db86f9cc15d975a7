//go:build linux

package qemu

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"io"
)

// agents are the program in agent, built by `make agents` for each system.
//
//go:embed agents/*.gz
var agents embed.FS

// Agent is the program in agent for machines of an operating system and an architecture: linux with amd64, arm64 or riscv64; openbsd and windows
// with amd64.
func Agent(os, arch string) ([]byte, error) {
	b, err := agents.ReadFile(agentFile(os, arch))
	if err != nil {
		return nil, fmt.Errorf("there is no agent for %s on %s", os, arch)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func agentFile(os, arch string) string { return "agents/" + os + "-" + arch + ".gz" }
