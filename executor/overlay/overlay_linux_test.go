package overlay_test

import (
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/cas/userns"
	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/overlay"
)

// lackingVar makes this test's program one under a kernel without memfd_create.
const lackingVar = "OBX_TEST_LACKING"

func TestMain(m *testing.M) {
	if os.Getenv(lackingVar) != "" {
		lack(unix.SYS_MEMFD_CREATE)
	}
	if overlay.IsSupervisor() {
		overlay.Supervise(nil)
	}
	conformance.Victim(open)
	conformance.Rootless("executor/internal/sandbox/escape", "executor/internal/seccomp/probe")
	os.Exit(m.Run())
}

// lack has this process, and all that it starts, live as on a kernel without a system call.
func lack(number uint32) {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: number, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		panic(errno)
	}
}

func newExecutor(t testing.TB, st *cas.Store) *overlay.Executor {
	t.Helper()
	e, err := overlay.New(overlay.Options{Store: st})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// open makes what is killed by Kill.
func open(st *cas.Store) (executor.Executor, error) {
	return overlay.New(overlay.Options{Store: st, Runtime: os.Getenv(runtimeVar)})
}

// runtimeVar is the runtime of the victims of Kill.
const runtimeVar = "OBX_TEST_RUNTIME"

func maker(runtime string) conformance.ExecutorMaker {
	return conformance.ExecutorMaker{
		Sandbox:   true,
		Unlimited: userns.Inside(), // here, nobody gives groups to users
		New: func(t testing.TB, st *cas.Store) executor.Executor {
			e, err := overlay.New(overlay.Options{Store: st, Runtime: runtime})
			if err != nil {
				t.Fatal(err)
			}
			return e
		},
	}
}

// each runs a test with each runtime that obx is tested with.
func each(t *testing.T, test func(t *testing.T, runtime string)) {
	conformance.RequireRoot(t)
	for _, name := range []string{overlay.Builtin, "runc"} {
		t.Run(name, func(t *testing.T) { test(t, name) })
	}
}

func TestExecutor(t *testing.T) {
	each(t, func(t *testing.T, runtime string) { conformance.Executor(t, maker(runtime)) })
}
