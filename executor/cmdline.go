package executor

import (
	"path"
	"slices"
	"strings"
)

// CmdLine is the command line of Windows's cmd, if that is what runs a command. It has rules of its own: with /S, it takes what is
// between the first and the last quote as it is, and a quote inside must not be escaped as other programs want it.
func CmdLine(argv []string) (line string, ok bool) {
	if len(argv) < 3 {
		return "", false
	}
	name := strings.ToLower(path.Base(strings.ReplaceAll(argv[0], `\`, "/")))
	if name != "cmd" && name != "cmd.exe" {
		return "", false
	}
	options := argv[1 : len(argv)-1]
	if !slices.ContainsFunc(options, func(o string) bool { return strings.EqualFold(o, "/c") }) {
		return "", false
	}
	if slices.ContainsFunc(argv[:len(argv)-1], func(o string) bool { return strings.ContainsAny(o, " \t\"") }) {
		return "", false
	}
	if !slices.ContainsFunc(options, func(o string) bool { return strings.EqualFold(o, "/s") }) {
		options = slices.Insert(slices.Clone(options), 0, "/S")
	}
	return argv[0] + " " + strings.Join(options, " ") + ` "` + argv[len(argv)-1] + `"`, true
}
