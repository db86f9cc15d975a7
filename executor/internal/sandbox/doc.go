// Package sandbox starts the process of a step in a container of obx's own: what an OCI runtime does, in the time of two program starts. The overlay
// executor's supervisor uses it, on a host and in virtual machines.
//
// A [Container] is told what it is by the same configuration that an OCI runtime gets. Start gives back a process that is a child of the caller:
// there is no state on disk, and nothing to delete.
//
// # How a container is made
//
// All system calls that make a container are known before it starts: which file systems are mounted where, which capabilities go, which file is
// executed. So they are written down as a list (type program), in memory that this process has in common with a starter (type Starters): a process of
// some fifty instructions, which were written to a file in memory, sealed, and executed once. It clones itself into new namespaces. The clone makes one
// call of the list after the other, and so itself the container; the last call is the execve of the step's command. If a call fails, it leaves in the
// memory which one and with what error. Only the network namespace is made beforehand, by another thread while the container before it runs
// ([Networks]).
//
// Until it executes the command, the clone has its parent's memory, and its parent waits (CLONE_VM, CLONE_VFORK): nothing is copied, no second program
// is loaded. With CLONE_PARENT it is this process's child. Against a list that was a program of its own, executed by os.StartProcess for each
// container, that saves a quarter of a container's processor time: mostly one execve, and what Go's runtime does in a child.
//
// Why not otherwise:
//
//   - Go code cannot run between clone and execve, and what has to be called there (at least the mount of /proc, which shows the pid namespace of who
//     mounts it) is more than syscall.SysProcAttr knows.
//   - Executing this program once more, as runc does, costs 6 to 9 ms for the start of Go alone, where all of a step is to take 5.
//   - Clone and the calls after it could be made from assembly within this process, without a starter. But that needs names of Go's runtime that it does
//     not promise to keep, and threads whose state has to be put back after each step. The instructions here are assembly too, but they never run in
//     this process, and know nothing of Go: Go's assembler is used as an assembler, and a new release of Go can change nothing in what they do.
//
// # What holds
//
// Against a process that may do whatever its capabilities and the filter of system calls allow, in an image and with caches of its choice:
//
//   - It sees and reaches no file but those of its root and of its mounts: it is in a mount namespace whose root is the root's mount (pivot_root),
//     from which the old root is gone (umount2) before anything of the image is executed. No directory of outside is open then.
//   - No mount lands elsewhere: places are opened beneath the root by openat2 without following any link, and mounted on as the working directory; that
//     what was mounted before (caches, files) is in place is the business of rootfs.Attach.
//   - It sees and signals no process of outside: a pid namespace, of which it is the first, so that all it has started ends with it. /proc is that
//     of this namespace. There is never a process of obx in it: /proc/PID/{exe,fd,mem,root,cwd} lead to the step's own. Its first program is
//     the starter's, which cannot be written to, not even by root (the seals), and no command is executed through a link of /proc
//     (RESOLVE_NO_MAGICLINKS). A script whose interpreter is such a link runs the starter's instructions, which find no memory to map, or no list to read,
//     and end. The memory with the list is no longer the process's when anything of the image is executed.
//   - It inherits no descriptor but its input and output: all others close on exec, also those that obx was started with ([CloseInherited]).
//   - It has no capability beyond those of the configuration: the bounding set is reduced before the user changes, ambient ones are none, and the
//     filter of package seccomp is in force from before the user changes. no_new_privs stays off, as in other builders: sudo works within.
//   - It has a session keyring of its own, which the filter denies it to use.
//   - It opens no devices but harmless ones, although it may make nodes: package cgroup says why. Its control groups are shown to it read-only,
//     version 1 without the hierarchies in which it has no group of its own, version 2 in a namespace.
//   - What of /proc and /sys is the machine's is masked or read-only, by the list that Docker has. AppArmor's profile is set where the
//     kernel has AppArmor.
//   - Its network is a namespace with nothing but a loopback interface, unless it asked for the host's; so are its System V objects and message
//     queues, and its host name.
//   - It does not outlive obx: it and the starters are in the supervisor's pid namespace, and the kernel kills that with obx. A death signal of its
//     own would not do: setuid programs clear it.
//
// # Differences from runc's containers
//
// Processes without a limit share groups of memory and devices. /dev/net/tun cannot be opened. Mounts are in another order. A working
// directory that is missing is made before the user changes, as runc does it.
//
// # Where the time goes
//
// Of the processor time of the list, measured by perf with many steps on a busy machine: the filter of system calls 19 % (the kernel compiles it for each
// process; half of that is by the number of instructions), mounts 16 %, pivot_root 12 % (it looks at all processes of the machine), clone with its
// namespaces 11 %, execve 12 %; the rest are some 150 calls that take a microsecond each. It is about as much as the same shell takes by itself.
//
// Not made, or tried without gain:
//
//   - A container that is made ahead, as network namespaces are: the list could wait in its middle, by recvmsg, for the part that depends on the step. It
//     would save no processor time, but most of the list's time before a step. But its mount namespace is older than the root's mount then, so that
//     rootfs.Attach would have to be a part of the list as well, with all that it does about caches which others change meanwhile.
//   - A filter that a starter has already: it denies what makes a container.
//   - One processor for Go in the supervisor (GOMAXPROCS=1): no difference.
//
// # What this package refuses to know
//
// How the root is made and its mounts attached, which capabilities and system calls are harmless, and what a step is.
package sandbox
