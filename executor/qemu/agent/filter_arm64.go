//go:build linux

package main

import "golang.org/x/sys/unix"

// abis is that of 64-bit programs: Debian's kernels for machines of today run no others.
var abis = []abi{{audit: unix.AUDIT_ARCH_AARCH64, numbers: nativeNumbers}}
