//go:build linux

package qemu

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"io"
)

// agents are the program in agent, built by `make agents` for each architecture.
//
//go:embed agents/*.gz
var agents embed.FS

// Agent is the program in agent for machines of an architecture: amd64, arm64 or riscv64.
func Agent(arch string) ([]byte, error) {
	b, err := agents.ReadFile("agents/" + arch + ".gz")
	if err != nil {
		return nil, fmt.Errorf("there is no agent for %s", arch)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}
