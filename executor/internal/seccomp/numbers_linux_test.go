package seccomp

import (
	"bufio"
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the files that tests compare with")

// columns are those of syscalls.txt, in their order.
var columns = []string{"amd64", "386", "arm64", "arm", "riscv64"}

// TestNumbers compares the table of system calls with golang.org/x/sys, which has it from the kernel.
func TestNumbers(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string]map[string]string{}
	set := func(name, column, number string) {
		if all[name] == nil {
			all[name] = map[string]string{}
		}
		all[name][column] = number
	}
	line := regexp.MustCompile(`^\s*SYS_(\w+)\s*=\s*(\d+)`)
	for _, c := range columns {
		f, err := os.Open(filepath.Join(strings.TrimSpace(string(out)), "unix", "zsysnum_linux_"+c+".go"))
		if err != nil {
			t.Fatal(err)
		}
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if m := line.FindStringSubmatch(sc.Text()); m != nil {
				set(strings.ToLower(m[1]), c, m[2])
			}
		}
		f.Close()
	}
	// What that has not: a second name, and the calls of 32-bit ARM that no other architecture has.
	set("sync_file_range2", "arm", all["arm_sync_file_range"]["arm"])
	for name, n := range map[string]int{"breakpoint": 1, "cacheflush": 2, "set_tls": 5} {
		set(name, "arm", fmt.Sprintf("%#x", privateARM+n))
	}
	var b strings.Builder
	write := func(fields ...string) { b.WriteString(strings.Join(fields, " ") + "\n") }
	write(append([]string{"name"}, columns...)...)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fields := []string{name}
		for _, c := range columns {
			fields = append(fields, cmp.Or(all[name][c], "-"))
		}
		write(fields...)
	}
	golden(t, "syscalls.txt", b.String())
}

// golden compares a text with that of a file.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) == got {
		return
	}
	old := strings.Split(string(want), "\n")
	for _, line := range strings.Split(got, "\n") {
		if !slices.Contains(old, line) {
			t.Errorf("%s has no line %q; write it anew with -update, and read what changes", file, line)
		}
	}
	t.Errorf("%s is not as made now", file)
}
