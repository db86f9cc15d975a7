//go:build !linux

// Command agent is obx inside a virtual machine of another system than Linux, without a sandbox. Obx puts it there, and talks with it by ssh.
package main

import (
	"fmt"
	"os"
)

func main() {
	if !mainPlain() {
		fmt.Fprintln(os.Stderr, "this is obx's agent in a virtual machine: obx starts it")
		os.Exit(2)
	}
}
