package rootfs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
)

// appArmorProfile is what steps are confined to where the kernel has AppArmor: Docker's default profile, from moby/profiles (Apache License
// 2.0), for what steps are. It denies again what namespaces, capabilities and the read-only paths deny, should one of these have a hole. A profile's
// name is also the name of its version: one that is loaded is not loaded again.
const appArmorProfile = `abi <abi/3.0>,
include <tunables/global>

profile obx-step-1 flags=(attach_disconnected,mediate_deleted) {
  include <abstractions/base>
  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send,receive) peer=obx-step-1,
  ptrace (trace,read,tracedby,readby) peer=obx-step-1,

  deny mount,
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
`

const appArmorName = "obx-step-1"

// An appArmor is what a computer has of it.
type appArmor struct {
	enabled  string // the file that says Y if the kernel uses it
	profiles string // the file that lists the loaded profiles
	parser   string // the program that loads them
}

// loadAppArmor loads the profile of steps, once a process.
var loadAppArmor = sync.OnceValues(appArmor{
	enabled:  "/sys/module/apparmor/parameters/enabled",
	profiles: "/sys/kernel/security/apparmor/profiles",
	parser:   "apparmor_parser",
}.load)

// load makes sure that the profile of steps is loaded, and gives its name: "" where the kernel has no AppArmor. An error is the reason why steps run
// without a profile.
func (a appArmor) load() (profile string, err error) {
	if b, err := os.ReadFile(a.enabled); err != nil || !bytes.HasPrefix(b, []byte("Y")) {
		return "", nil
	}
	if b, err := os.ReadFile(a.profiles); err == nil && bytes.Contains(append([]byte("\n"), b...), []byte("\n"+appArmorName+" ")) {
		return appArmorName, nil
	}
	parser, err := lookProgram(a.parser)
	if err != nil {
		return "", fmt.Errorf("steps run without an AppArmor profile, since %s is not installed: try `apt-get install apparmor`", a.parser)
	}
	cmd := exec.Command(parser, "--replace", "--skip-cache")
	cmd.Stdin = strings.NewReader(appArmorProfile)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("steps run without an AppArmor profile, since %s failed: %w: %s", parser, err, strings.TrimSpace(string(out)))
	}
	return appArmorName, nil
}

// Confine puts the process under the AppArmor profile of steps, where there is AppArmor and the profile could be loaded.
func (pl *Plan) Confine() { pl.Spec.Process.ApparmorProfile, _ = loadAppArmor() }

// AppArmorWarning says why processes run without a profile on a kernel with AppArmor; "" if they do not.
func AppArmorWarning() string {
	if _, err := loadAppArmor(); err != nil {
		return err.Error()
	}
	return ""
}
