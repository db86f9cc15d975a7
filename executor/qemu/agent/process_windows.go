package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/ocurrent/obx/executor"
)

func samePath(name string) bool { return strings.EqualFold(name, "PATH") }

// session is the environment that the login has made.
var session = os.Environ()

// environment is the session's, without which few programs of Windows run, with what the spec says.
func environment(p executor.Process) []string {
	env := slices.Clone(session)
	for _, v := range p.Env {
		name, _, _ := strings.Cut(v, "=")
		env = slices.DeleteFunc(env, func(old string) bool {
			n, _, _ := strings.Cut(old, "=")
			return strings.EqualFold(n, name)
		})
		env = append(env, v)
	}
	return env
}

// asProcess gives cmd its command line as it wants it. Processes are those of the user who has logged in: another one's need a password.
func asProcess(cmd *exec.Cmd, p executor.Process) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if line, ok := executor.CmdLine(p.Argv); ok {
		cmd.SysProcAttr.CmdLine = line
	}
	return nil
}

// A group is a process and all that it starts: a job object.
type group struct{ job windows.Handle }

func startGroup(cmd *exec.Cmd) (*group, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: CreateJobObject: %w", errSystem, err)
	}
	info := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{
		BasicLimitInformation: windows.JOBOBJECT_BASIC_LIMIT_INFORMATION{LimitFlags: windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE},
	}
	_, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation, uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)))
	if err != nil {
		err = fmt.Errorf("%w: SetInformationJobObject: %w", errSystem, err)
	} else {
		cmd.SysProcAttr.CreationFlags |= windows.CREATE_SUSPENDED // until it is in the job: what it starts is then, too
		err = cmd.Start()
	}
	if err != nil {
		windows.CloseHandle(job)
		return nil, err
	}
	g := &group{job}
	if err := g.take(cmd.Process.Pid); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		g.kill()
		return nil, fmt.Errorf("%w: %w", errSystem, err)
	}
	return g, nil
}

// take puts a suspended process into the job and has it run.
func (g *group) take(pid int) error {
	p, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(pid))
	if err != nil {
		return os.NewSyscallError("OpenProcess", err)
	}
	defer windows.CloseHandle(p)
	if err := windows.AssignProcessToJobObject(g.job, p); err != nil {
		return os.NewSyscallError("AssignProcessToJobObject", err)
	}
	return resume(uint32(pid))
}

// resume starts the only thread of a suspended process.
func resume(pid uint32) error {
	snapshot, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPTHREAD, 0)
	if err != nil {
		return os.NewSyscallError("CreateToolhelp32Snapshot", err)
	}
	defer windows.CloseHandle(snapshot)
	e := windows.ThreadEntry32{Size: uint32(unsafe.Sizeof(windows.ThreadEntry32{}))}
	for err = windows.Thread32First(snapshot, &e); err == nil; err = windows.Thread32Next(snapshot, &e) {
		if e.OwnerProcessID != pid {
			continue
		}
		t, err := windows.OpenThread(windows.THREAD_SUSPEND_RESUME, false, e.ThreadID)
		if err != nil {
			return os.NewSyscallError("OpenThread", err)
		}
		defer windows.CloseHandle(t)
		_, err = windows.ResumeThread(t)
		return os.NewSyscallError("ResumeThread", err)
	}
	return os.NewSyscallError("Thread32Next", err)
}

// accounting is JOBOBJECT_BASIC_ACCOUNTING_INFORMATION.
type accounting struct {
	_                                                 [4]int64 // times
	_                                                 uint32   // page faults
	totalProcesses, activeProcesses, endedByViolation uint32
}

// kill ends all processes of the group, and waits until they have let go of files, within reason.
func (g *group) kill() {
	if g.job == 0 {
		return
	}
	_ = windows.TerminateJobObject(g.job, 1)
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		var a accounting
		err := windows.QueryInformationJobObject(g.job, windows.JobObjectBasicAccountingInformation, uintptr(unsafe.Pointer(&a)), uint32(unsafe.Sizeof(a)), nil)
		if err != nil || a.activeProcesses == 0 {
			break
		}
	}
	windows.CloseHandle(g.job)
	g.job = 0
}

// signalOf finds none: Windows has no signals.
func signalOf(*os.ProcessState) int { return 0 }

// setHostname leaves the name: Windows takes another with a restart only.
func setHostname(string) {}

// setUmask does nothing: directories say who may use what is in them.
func setUmask() {}

// syncDisks leaves it to the end of the machine, which is shut down before its disk is read.
func syncDisks() error { return nil }
