package rootfs

import (
	"encoding/base64"
	"fmt"
	"runtime"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/cas/userns"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/seccomp"
)

// A confinement is a filter in the forms that runtimes take.
type confinement struct {
	filter   *specs.LinuxSeccomp
	compiled []byte // nil if that cannot be done for this architecture
	encoded  string // the same, for crun
}

// confinements are those that this process has made, by the options that processes have: to make one takes 0.7 ms. crun installs what
// is compiled here. runc compiles the filter once more in each step: with runc 1.1.5 and libseccomp 2.5.4, a trivial container then takes 31 ms of
// processor time, where a filter that denied 30 calls made it 24 ms (2 processors, busy; with x32 besides, 38 ms).
var confinements sync.Map

// confine gives a process's configuration the filter of its system calls.
func (pl *Plan) confine(p executor.Process) error {
	c, err := confinementOf(seccomp.Options{HostNetwork: p.Network == executor.NetworkHost, FastSync: p.FastSync})
	if err != nil {
		return err
	}
	pl.Spec.Linux.Seccomp = c.filter
	if c.compiled != nil {
		pl.Spec.Annotations = map[string]string{seccomp.Annotation: c.encoded}
	}
	return nil
}

// CompiledFilter is the filter of a process's system calls as the kernel takes it; nil where that cannot be made. Watched says that it has a listener.
func CompiledFilter(hostNetwork, fastSync, watched bool) ([]byte, error) {
	c, err := confinementOf(seccomp.Options{HostNetwork: hostNetwork, FastSync: fastSync, Watched: watched})
	return c.compiled, err
}

func confinementOf(o seccomp.Options) (confinement, error) {
	key := [3]bool{o.HostNetwork, o.FastSync, o.Watched}
	if made, ok := confinements.Load(key); ok {
		return made.(confinement), nil
	}
	c, err := newConfinement(o)
	if err == nil {
		confinements.Store(key, c)
	}
	return c, err
}

func newConfinement(o seccomp.Options) (confinement, error) {
	o.Arch, o.Capabilities, o.Users = runtime.GOARCH, capabilities, uint64(userns.Count())
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return confinement{}, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &o.Kernel[0], &o.Kernel[1]); err != nil {
		return confinement{}, fmt.Errorf("the kernel's version %q does not begin with two numbers: %w", release, err)
	}
	c := confinement{filter: seccomp.Filter(o)}
	if seccomp.Compiles(o.Arch) {
		prog, err := seccomp.Compile(c.filter, o.Arch)
		if err != nil {
			return c, err
		}
		c.compiled = seccomp.Bytes(prog)
		c.encoded = base64.StdEncoding.EncodeToString(c.compiled)
	}
	return c, nil
}
