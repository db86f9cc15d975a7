//go:build linux && !(amd64 || arm64 || riscv64)

package sandbox

import (
	"fmt"
	"runtime"
)

func starterText() ([]byte, error) {
	return nil, fmt.Errorf("obx has no sandbox of its own for %s", runtime.GOARCH)
}
