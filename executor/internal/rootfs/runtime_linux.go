package rootfs

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// FindRuntime finds the OCI runtime that is wanted, or if that is "", the first of the usual ones that is there.
func FindRuntime(want string, usual ...string) (string, error) {
	if want != "" {
		file, err := lookProgram(want)
		if err != nil {
			return "", fmt.Errorf("no OCI runtime %q", want)
		}
		return file, nil
	}
	for _, name := range usual {
		if file, err := lookProgram(name); err == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("no OCI runtime: neither %s is installed; try `apt-get install runc`", strings.Join(usual, " nor "))
}

// lookProgram finds a program, also where administrators' programs are and users' PATHs do not lead.
func lookProgram(name string) (string, error) {
	p, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/sbin"} {
		if err == nil {
			break
		}
		p, err = exec.LookPath(filepath.Join(dir, name))
	}
	if err != nil {
		return "", err
	}
	return filepath.Abs(p)
}
