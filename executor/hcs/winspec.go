package hcs

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocurrent/obx/executor"
)

// defaultUser is whom steps run as unless the spec says otherwise, as OBuilder's.
const defaultUser = "ContainerAdministrator"

func slashes(name string) string { return strings.ReplaceAll(name, `\`, "/") }

// windowsPath is an absolute path on Windows, of one that may have slashes and no drive letter.
func windowsPath(name string) string {
	name = slashes(name)
	drive := "C:"
	if len(name) >= 2 && name[1] == ':' {
		drive, name = strings.ToUpper(name[:2]), name[2:]
	}
	return drive + strings.ReplaceAll(path.Clean("/"+name), "/", `\`)
}

// A windowsRun is what a container for a process needs beside the process.
type windowsRun struct {
	hyperV    bool
	namespace string // of the network; "" for none
	mounts    []specs.Mount
}

// windowsSpec is the configuration of a Windows container for one process. Its layers come with the task, as mounts:
// hcsshim takes them from one place only.
func windowsSpec(p executor.Process, r windowsRun) (*specs.Spec, error) {
	if len(p.Argv) == 0 || p.Argv[0] == "" {
		return nil, &executor.StartError{Msg: "no command"}
	}
	for _, s := range slices.Concat(p.Argv, p.Env, []string{p.Dir, p.User}) {
		if strings.ContainsRune(s, 0) {
			return nil, &executor.StartError{Msg: fmt.Sprintf("%q has a zero byte", s)}
		}
	}
	resources, err := windowsLimits(p.Limits)
	if err != nil {
		return nil, err
	}
	user := p.User
	if user == "" {
		user = defaultUser
	}
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{},
		Process: &specs.Process{
			Terminal: p.Terminal,
			User:     specs.User{Username: user},
			Env:      p.Env,
			Cwd:      windowsPath(p.Dir),
		},
		Hostname: p.Hostname,
		Mounts:   r.mounts,
		Windows: &specs.Windows{
			Resources: resources,
			// A step that was cut off is never looked at again.
			IgnoreFlushesDuringBoot: true,
			Network:                 &specs.WindowsNetwork{AllowUnqualifiedDNSQuery: true, NetworkNamespace: r.namespace},
		},
	}
	if line, ok := executor.CmdLine(p.Argv); ok {
		s.Process.CommandLine = line
	} else {
		s.Process.Args = p.Argv
	}
	if r.hyperV {
		s.Windows.HyperV = &specs.WindowsHyperV{}
	}
	return s, nil
}

func windowsLimits(l executor.Limits) (*specs.WindowsResources, error) {
	if l.PIDs > 0 {
		return nil, fmt.Errorf("a limit cannot be kept: Windows containers have none of the number of processes")
	}
	if l.Disk > 0 || l.Inodes > 0 {
		return nil, fmt.Errorf("a limit cannot be kept: Windows containers have none of what a step adds to the disk")
	}
	r := &specs.WindowsResources{}
	if l.Memory > 0 {
		limit := uint64(l.Memory)
		r.Memory = &specs.WindowsMemoryResources{Limit: &limit}
	}
	if l.CPUs > 0 {
		count := uint64(max(1, int64(l.CPUs+0.999)))
		r.CPU = &specs.WindowsCPUResources{Count: &count}
	}
	return r, nil
}

// A secretDir is a directory of secrets. Windows mounts directories only: so the secrets of one directory are mounted as
// that directory, read-only.
type secretDir struct {
	target string
	files  map[string]*executor.Secret
}

// secretDirs groups the secrets of a process.
func secretDirs(p executor.Process) ([]secretDir, error) {
	var dirs []secretDir
	for _, m := range p.Mounts {
		if m.Secret == nil {
			continue
		}
		full := windowsPath(m.Target)
		at := strings.LastIndexByte(full, '\\')
		target, name := full[:at], full[at+1:]
		if strings.HasSuffix(target, ":") || name == "" {
			return nil, &executor.StartError{Msg: fmt.Sprintf("cannot mount a secret on %s: Windows mounts directories only, and it would hide the whole drive; choose a directory for secrets", m.Target)}
		}
		i := slices.IndexFunc(dirs, func(d secretDir) bool { return strings.EqualFold(d.target, target) })
		if i < 0 {
			i = len(dirs)
			dirs = append(dirs, secretDir{target, map[string]*executor.Secret{}})
		}
		dirs[i].files[name] = m.Secret
	}
	return dirs, nil
}
