// Package rootless lets who is not root, or root with few rights, run steps: in a user namespace that has the user's subordinate ids, where this
// program is executed once more, as root of it. All other packages then do what they do as root of a machine; package cas/userns tells what they
// cannot.
//
//	obx, as a user                     a process that waits           newuidmap, newgidmap
//	makes a user namespace  --------->  (sandbox.Hold)
//	runs them on it ------------------------------------------------->  map ids: these programs are
//	                                                                    setuid and read /etc/subuid
//	opens the namespace, ends the process
//	sandbox.Exec: enters it, makes a mount namespace, executes obx again: the same process, arguments, terminal and signals
//
// So there is no helper of obx's own with rights, no process that stays, and no difference for who started obx. Root without CAP_SYS_ADMIN, as in a
// container, maps all the ids that it has by itself.
//
// # What this package refuses to know
//
// What a step is, and what is made in the namespace.
package rootless
