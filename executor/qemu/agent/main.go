//go:build linux

// Command agent is obx inside a virtual machine. As the first process of a machine that has nothing but it, it makes the
// machine ready, and runs what obx asks for by a virtio-serial port (package wire).
//
// What a process sees, and what a step leaves, is the business of package overlay there as it is on a host: the agent gives it a store on
// the machine's own disk. So steps in machines and steps in containers differ in nothing that a build can see but the kernel.
//
// It keeps nothing: the machine and its disk are gone when obx closes them.
//
// A disk image may have the agent, too, as a service of its system: `agent serve` then runs processes in the machine's own files, and obx keeps
// what has changed on the disk.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/overlay"
)

func main() {
	switch {
	case overlay.IsSupervisor():
		// Its own, which the agent may have from its service, would keep the kernel from ending processes.
		_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
		overlay.Supervise(readyRoot)
	case mainPlain():
	case len(os.Args) == 2 && os.Args[1] == "serve":
		fmt.Fprintln(os.Stderr, "obx agent:", serve(true))
		os.Exit(1)
	case os.Getpid() == 1:
		err := serve(false)
		fmt.Fprintln(os.Stderr, "obx agent:", err)
		// The host reads the console, and sees the machine stop.
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "this is obx's agent in a virtual machine, its first process; as a service of a system on a disk it is started with the argument \"serve\"")
		os.Exit(2)
	}
}
