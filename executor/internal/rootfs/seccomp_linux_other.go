//go:build !amd64 && !arm64

package rootfs

import "github.com/opencontainers/runtime-spec/specs-go"

// seccompArchitectures is the machine's own only.
func seccompArchitectures() []specs.Arch { return nil }
