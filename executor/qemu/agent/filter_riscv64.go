//go:build linux

package main

import "golang.org/x/sys/unix"

// abis is that of 64-bit programs.
var abis = []abi{{audit: unix.AUDIT_ARCH_RISCV64, numbers: nativeNumbers}}
