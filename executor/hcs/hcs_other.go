//go:build !linux && !windows

package hcs

const (
	defaultAddress     = ""
	defaultSnapshotter = ""
	runtimeName        = ""
	howToStart         = "containerd is for Linux and Windows"
)
