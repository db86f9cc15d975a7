// Package seccomp says which system calls the process of a step may make, and compiles that for the kernel.
//
// There is one filter: [Filter] gives it in the form that an OCI runtime takes (runc and crun, by themselves or under containerd), and [Compile]
// makes the kernel's program of that form, for who needs no runtime (the agent in virtual machines) and for crun, which takes one ([Annotation]).
// Both are functions of their arguments alone, so the filter of each architecture can be tested on any.
//
// # What a process may call
//
// Docker's list of what it may, not a list of what it may not: a call that nobody has thought about is denied. The list is the module
// github.com/moby/profiles/seccomp, whose conditions (capabilities, architecture, kernel) are judged here by what a step has. Steps
// know from Docker what they cannot do, and its list has been tried on more programs than any that could be made here. A call that is denied answers
// EPERM. One with a number above all of the list answers ENOSYS, since C libraries then do without a call that is newer than the
// list; so does clone3, whose flags are in memory, where a filter cannot look.
//
// # What is denied beyond that
//
// Sockets of all families but AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK. A step without a network is kept apart by a network namespace, and
// that holds only families that know of namespaces. The families of Linux 6.18:
//
//   - AF_VSOCK does not: it is between a virtual machine and its host, and all processes of the machine share its ports (Linux 7.0 knows
//     namespaces, if told to). A step could serve and call the host's ports, and other steps.
//   - AF_ALG (the kernel's cryptography) and AF_QIPCRTR (Qualcomm's processors) do not either.
//   - AF_BLUETOOTH, AF_NFC and AF_X25 have only the first namespace: they are the host's in a step with the host's network, and code to
//     attack in others.
//   - The rest (AF_CAN, AF_TIPC, AF_SMC, AF_RDS, AF_KCM, AF_XDP, AF_PHONET, AF_RXRPC, AF_MCTP, AF_LLC, AF_PPPOX, AF_KEY, AF_PACKET and older ones) know
//     namespaces, all or in part. Some need capabilities that no step has. Most are modules that the kernel loads when a socket is asked for.
//
// No build is known that needs one of them, so the rule does not depend on which of them leaks: four families for every step, whatever its
// network. socketpair makes AF_UNIX only.
//
// On 32-bit x86, which any 64-bit program can speak too, socketcall makes sockets as well, and its arguments are in memory. Without a network
// it makes none: it answers EAFNOSUPPORT. So a 32-bit program whose C library knows no other way (glibc, Go; not musl) has no sockets
// in such a step, but those of socketpair, which are AF_UNIX or AF_TIPC, and both know namespaces. With the host's network socketcall stays,
// as in Docker, for else `apt-get` would not work in 32-bit images: such a step reaches AF_VSOCK, as it reaches all else of the host's network. On
// s390x socketcall stays as well, since glibc has no other way there.
//
// name_to_handle_at, which Docker allows, is denied: a handle names a file independently of all mounts, and what takes handles is denied anyway.
//
// # What runtimes make of it
//
// runc and crun compile by libseccomp, which knows fewer calls than the list when it is older; runc answers ENOSYS to those, crun (but for
// [Annotation]) EPERM. For 32-bit x86, libseccomp makes of a rule for socket also one for socketcall, with any family. What denies
// socketcall is therefore a rule that libseccomp sorts before that: of equal comparisons with the same value, the one that came first. x32, the third
// way into an x86 kernel, is left out, since libseccomp would take a third more time for it and kernels of today's distributions have it off: a call of it
// ends the thread under a filter of libseccomp's, and gets ENOSYS from Compile's, as from a kernel without x32.
//
// # What this package refuses to know
//
// Which step it is, what a capability allows (the kernel asks for it besides), and arguments in memory: a filter sees numbers only.
package seccomp
