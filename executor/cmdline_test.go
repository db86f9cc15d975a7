package executor

import "testing"

func TestCmdLine(t *testing.T) {
	for _, test := range []struct {
		argv []string
		want string // "" if cmd's rules do not apply
	}{
		{[]string{"cmd", "/S", "/C", `echo "a b" > c`}, `cmd /S /C "echo "a b" > c"`},
		{[]string{`C:\Windows\System32\CMD.EXE`, "/c", "dir"}, `C:\Windows\System32\CMD.EXE /S /c "dir"`},
		{[]string{"cmd", "/D", "/S", "/C", "x"}, `cmd /D /S /C "x"`},
		{[]string{"cmd", "/K", "x"}, ""},
		{[]string{"cmd"}, ""},
		{[]string{`C:\a b\cmd.exe`, "/C", "x"}, ""},
		{[]string{"powershell", "-Command", "x"}, ""},
	} {
		got, ok := CmdLine(test.argv)
		if got != test.want || ok != (test.want != "") {
			t.Errorf("%q: got %q, want %q", test.argv, got, test.want)
		}
	}
}
