package rootfs

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// denied are the system calls that answer EPERM. What needs a capability that the process has not
// is not listed: each call costs time in every step. What is left are calls that work for everybody and lead to what is shared with
// the host (keyrings, performance counters) or to much kernel code that builds do not need.
var denied = []string{
	"add_key", "keyctl", "request_key",
	"bpf", "perf_event_open", "userfaultfd",
	"io_uring_setup", "io_uring_enter", "io_uring_register",
	"kcmp", "pidfd_getfd", "process_madvise",
	"mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node", "get_mempolicy",
	"fanotify_init", "name_to_handle_at", "open_by_handle_at",
}

// syncing calls do nothing with FastSync.
var syncing = []string{"fsync", "fdatasync", "sync", "syncfs", "msync", "sync_file_range"}

func seccomp(fastSync bool) *specs.LinuxSeccomp {
	eperm, enosys, zero := uint(unix.EPERM), uint(unix.ENOSYS), uint(0)
	newUser := []specs.LinuxSeccompArg{{Index: 0, Value: unix.CLONE_NEWUSER, ValueTwo: unix.CLONE_NEWUSER, Op: specs.OpMaskedEqual}}
	s := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: seccompArchitectures(),
		Syscalls: []specs.LinuxSyscall{
			{Names: denied, Action: specs.ActErrno, ErrnoRet: &eperm},
			{Names: []string{"clone", "unshare"}, Action: specs.ActErrno, ErrnoRet: &eperm, Args: newUser},
			// Its flags are in memory, where seccomp cannot look. C libraries go back to clone when it does not exist.
			{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &enosys},
		},
	}
	if fastSync {
		s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: syncing, Action: specs.ActErrno, ErrnoRet: &zero})
	}
	return s
}
