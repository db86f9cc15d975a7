package overlay

import (
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// wait waits until the first process of a pid namespace has ended: all others have ended then, too. It is a child of this process, or was a
// runtime's that has ended. Once cancelled is closed, or the process has stopped, it is killed.
//
// A thread can ask to be traced by its process's parent (PTRACE_TRACEME), which is this process, and wants to trace nobody. Then a signal or an
// execve stops it, and a wait takes that for news; if it took it for the end, all the others would outlive their step. And when such a thread
// has ended, the process has not, until its tracer has waited for the thread: a process that ends by itself then is waited for until it is cancelled,
// at the latest by its time-out.
func wait(init *os.Process, cancelled <-chan struct{}) (*os.ProcessState, error) {
	ended, stopped, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		select {
		case <-cancelled:
		case <-stopped:
		case <-ended:
			return
		}
		_ = init.Kill() // the first of its pid namespace: all others die with it
		for wait := time.Millisecond; ; wait = min(2*wait, time.Second) {
			select {
			case <-ended:
				return
			case <-time.After(wait):
				reapTraced(init.Pid)
			}
		}
	}()
	told := false
	for {
		has, err := hasEnded(init.Pid)
		if err != nil || has {
			break // Wait tells of the error
		}
		if !told {
			close(stopped)
			told = true
		}
		time.Sleep(time.Millisecond) // it is being killed
	}
	close(ended)
	<-over
	return init.Wait()
}

// hasEnded waits for news of a child, and reports whether it has ended.
func hasEnded(pid int) (bool, error) {
	var info unix.Siginfo
	for {
		// Stops of who is traced are always told.
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			const exited, killed, dumped = 1, 2, 3
			return err == nil && (info.Code == exited || info.Code == killed || info.Code == dumped), err
		}
	}
}

// reapTraced waits for the threads of a process that have ended and are traced by a thread of this process. Who has another tracer or none is no child
// of this process.
func reapTraced(pid int) {
	threads, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task/[0-9]*"))
	for _, dir := range threads {
		if tid, err := strconv.Atoi(filepath.Base(dir)); err == nil && tid != pid {
			_, _ = unix.Wait4(tid, nil, unix.WALL|unix.WNOHANG, nil)
		}
	}
}
