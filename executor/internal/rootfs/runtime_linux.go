package rootfs

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/mod/semver"
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

// RuntimeVersion is the first line of what an OCI runtime says of itself; "" if it says nothing.
func RuntimeVersion(ctx context.Context, file string) string {
	out, _ := exec.CommandContext(ctx, file, "--version").Output() // whether it works is another check
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

// RuntimeWarning says why a runtime of a version should be replaced; "" if there is no reason.
func RuntimeWarning(version string) string {
	v, isRunc := strings.CutPrefix(version, "runc version ")
	if !isRunc || runcIsFixed("v"+v) {
		return ""
	}
	return fmt.Sprintf("runc %s is older than 1.2.8, 1.3.3 and 1.4.0, which have the fixes of November 2025 "+
		"(CVE-2025-31133, CVE-2025-52565, CVE-2025-52881: a step could get out of its container by masked paths, the console or writes to /proc); "+
		"before 1.1.12, a working directory could, too (CVE-2024-21626): "+
		"install a newer one, unless your distribution has put the fixes into this one", v)
}

// runcIsFixed reports whether a release of runc has the fixes of CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881. What is no version is not judged.
func runcIsFixed(v string) bool {
	switch {
	case !semver.IsValid(v):
		return true
	case semver.MajorMinor(v) == "v1.3":
		return semver.Compare(v, "v1.3.3") >= 0
	case semver.MajorMinor(v) == "v1.4":
		return semver.Compare(v, "v1.4.0-rc.3") >= 0
	}
	return semver.Compare(v, "v1.2.8") >= 0
}
