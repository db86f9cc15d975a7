package rootfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestAppArmorProfile has the real parser read the profile; no kernel is needed for that.
func TestAppArmorProfile(t *testing.T) {
	parser, err := lookProgram("apparmor_parser")
	if err != nil {
		t.Fatalf("%v (apt-get install apparmor)", err)
	}
	cmd := exec.Command(parser, "--skip-kernel-load", "--skip-cache")
	cmd.Stdin = strings.NewReader(appArmorProfile)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if !strings.Contains(appArmorProfile, "\nprofile "+appArmorName+" ") {
		t.Errorf("the profile is not called %s", appArmorName)
	}
}

// TestAppArmor loads with a stand-in for the parser: the kernels of test machines have no AppArmor.
func TestAppArmor(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		return file
	}
	on, off := write("on", "Y\n"), write("off", "N\n")
	loaded, others := write("loaded", "docker-default (enforce)\n"+appArmorName+" (enforce)\n"), write("others", "x"+appArmorName+" (enforce)\n")
	takes := write("takes", "#!/bin/sh\ncat > "+filepath.Join(dir, "took")+"\n")
	fails := write("fails", "#!/bin/sh\ncat >/dev/null; echo no such abi >&2; exit 1\n")
	for _, test := range []struct {
		what          string
		a             appArmor
		want, problem string
	}{
		{"no AppArmor", appArmor{filepath.Join(dir, "none"), loaded, takes}, "", ""},
		{"turned off", appArmor{off, loaded, takes}, "", ""},
		{"loaded already", appArmor{on, loaded, "no-such-parser"}, appArmorName, ""},
		{"loads it", appArmor{on, others, takes}, appArmorName, ""},
		{"no parser", appArmor{on, others, "no-such-parser"}, "", "no-such-parser is not installed"},
		{"parser fails", appArmor{on, others, fails}, "", "no such abi"},
	} {
		got, err := test.a.load()
		if got != test.want || (err == nil) != (test.problem == "") || err != nil && !strings.Contains(err.Error(), test.problem) {
			t.Errorf("%s: %q, %v", test.what, got, err)
		}
	}
	if took, err := os.ReadFile(filepath.Join(dir, "took")); err != nil || string(took) != appArmorProfile {
		t.Errorf("the parser got %q, %v", took, err)
	}
}
