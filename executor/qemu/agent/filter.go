//go:build linux

package main

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// An abi is one way into the kernel that a program can take: its system calls have their own numbers.
type abi struct {
	audit   uint32
	numbers map[string]uint32
	mask    uint32 // bits of a number that count
}

// installFilter makes the kernel refuse what a spec refuses: system calls by name, and some by a flag in the first
// argument. Calls of an ABI that is not listed kill the process.
func installFilter(s *specs.LinuxSeccomp) error {
	if s == nil {
		return nil
	}
	prog, err := compileFilter(s)
	if err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return errno
	}
	return nil
}

// Offsets in struct seccomp_data, little-endian.
const (
	offNumber = 0
	offArch   = 4
	offArg0   = 16
)

func compileFilter(s *specs.LinuxSeccomp) ([]unix.SockFilter, error) {
	if s.DefaultAction != specs.ActAllow {
		return nil, fmt.Errorf("the default action %s is unknown", s.DefaultAction)
	}
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	jump := func(op uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	prog := []unix.SockFilter{}
	for _, a := range abis {
		var part []unix.SockFilter
		part = append(part, load(offNumber))
		if a.mask != 0 {
			part = append(part, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: a.mask})
		}
		for _, call := range s.Syscalls {
			if call.Action != specs.ActErrno || call.ErrnoRet == nil || len(call.Args) > 1 {
				return nil, errors.New("an unknown rule")
			}
			answer := uint32(unix.SECCOMP_RET_ERRNO) | uint32(*call.ErrnoRet)&0xffff
			for _, name := range call.Names {
				number, ok := a.numbers[name]
				if !ok {
					return nil, fmt.Errorf("unknown system call %s", name)
				}
				if len(call.Args) == 0 {
					part = append(part, jump(unix.BPF_JEQ, number, 0, 1), ret(answer))
					continue
				}
				arg := call.Args[0]
				if arg.Index != 0 || arg.Op != specs.OpMaskedEqual || arg.Value != arg.ValueTwo || arg.Value > 1<<31 {
					return nil, fmt.Errorf("an unknown rule for %s", name)
				}
				part = append(part, jump(unix.BPF_JEQ, number, 0, 4), load(offArg0), jump(unix.BPF_JSET, uint32(arg.Value), 0, 1), ret(answer), ret(unix.SECCOMP_RET_ALLOW))
			}
		}
		part = append(part, ret(unix.SECCOMP_RET_ALLOW))
		if len(part) > 255 {
			return nil, errors.New("too many rules")
		}
		prog = append(prog, load(offArch), jump(unix.BPF_JEQ, a.audit, 0, uint8(len(part))))
		prog = append(prog, part...)
	}
	return append(prog, ret(unix.SECCOMP_RET_KILL_PROCESS)), nil
}

// nativeNumbers are those that package overlay's filters name.
var nativeNumbers = map[string]uint32{
	"add_key": unix.SYS_ADD_KEY, "keyctl": unix.SYS_KEYCTL, "request_key": unix.SYS_REQUEST_KEY,
	"bpf": unix.SYS_BPF, "perf_event_open": unix.SYS_PERF_EVENT_OPEN, "userfaultfd": unix.SYS_USERFAULTFD,
	"io_uring_setup": unix.SYS_IO_URING_SETUP, "io_uring_enter": unix.SYS_IO_URING_ENTER, "io_uring_register": unix.SYS_IO_URING_REGISTER,
	"kcmp": unix.SYS_KCMP, "pidfd_getfd": unix.SYS_PIDFD_GETFD, "process_madvise": unix.SYS_PROCESS_MADVISE,
	"mbind": unix.SYS_MBIND, "migrate_pages": unix.SYS_MIGRATE_PAGES, "move_pages": unix.SYS_MOVE_PAGES,
	"set_mempolicy": unix.SYS_SET_MEMPOLICY, "set_mempolicy_home_node": unix.SYS_SET_MEMPOLICY_HOME_NODE, "get_mempolicy": unix.SYS_GET_MEMPOLICY,
	"fanotify_init": unix.SYS_FANOTIFY_INIT, "name_to_handle_at": unix.SYS_NAME_TO_HANDLE_AT, "open_by_handle_at": unix.SYS_OPEN_BY_HANDLE_AT,
	"clone": unix.SYS_CLONE, "unshare": unix.SYS_UNSHARE, "clone3": unix.SYS_CLONE3,
	"fsync": unix.SYS_FSYNC, "fdatasync": unix.SYS_FDATASYNC, "sync": unix.SYS_SYNC, "syncfs": unix.SYS_SYNCFS,
	"msync": unix.SYS_MSYNC, "sync_file_range": unix.SYS_SYNC_FILE_RANGE,
}
