package fake

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/ocurrent/obx/executor"
)

// A shell interprets one script.
type shell struct {
	ctx     context.Context
	p       executor.Process
	out     io.Writer
	files   tree
	mounted tree // what is at the targets of mounts, and hides files
	status  int
}

func (s *shell) run(script string) error {
	for _, line := range strings.FieldsFunc(script, func(c rune) bool { return c == '\n' || c == ';' }) {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if words := s.split(line); len(words) > 0 {
			if err := s.command(words); errors.Is(err, errDone) {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	return exitError(s.status)
}

func exitError(status int) error {
	if status == 0 {
		return nil
	}
	return &executor.ExitError{Reason: executor.Exited, Code: status}
}

// split makes words of a line.
func (s *shell) split(line string) []string {
	var words []string
	var word strings.Builder
	var quote rune
	begun := false
	end := func() {
		if begun {
			words = append(words, word.String())
		}
		word.Reset()
		begun = false
	}
	runes := []rune(line)
	for i := 0; i < len(runes); i++ {
		c := runes[i]
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, begun = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			end()
		case c == '$' && quote != '\'':
			n := i + 1
			for n < len(runes) && (runes[n] == '_' || runes[n] >= '0' && runes[n] <= '9' || runes[n] >= 'A' && runes[n] <= 'Z' || runes[n] >= 'a' && runes[n] <= 'z') {
				n++
			}
			word.WriteString(s.variable(string(runes[i+1 : n])))
			i, begun = n-1, true
		default:
			word.WriteRune(c)
			begun = true
		}
	}
	end()
	return words
}

func (s *shell) variable(name string) string {
	for _, v := range s.p.Env {
		if n, value, ok := strings.Cut(v, "="); ok && n == name {
			return value
		}
	}
	return ""
}

// command runs one command. Its error is the end of the script.
func (s *shell) command(words []string) error {
	name, args := words[0], words[1:]
	flags := ""
	for name != "echo" && len(args) > 0 && strings.HasPrefix(args[0], "-") {
		flags += args[0][1:]
		args = args[1:]
	}
	s.status = 0
	var err error
	switch name {
	case "echo":
		err = s.echo(args)
	case "cat":
		err = s.each(args, s.cat)
	case "mkdir":
		err = s.each(args, func(n string) error { return s.mkdir(n, strings.Contains(flags, "p")) })
	case "rm":
		err = s.each(args, func(n string) error {
			return s.rm(n, strings.ContainsAny(flags, "rR"), strings.Contains(flags, "f"))
		})
	case "ln":
		if len(args) != 2 || flags != "s" {
			return errors.New("fake: ln takes -s, a target and a name")
		}
		link := &node{header: &tar.Header{Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: args[0]}}
		err = s.each(args[1:], func(n string) error { return s.put(n, link) })
	case "chmod":
		if len(args) < 2 {
			return errors.New("fake: chmod takes a mode and paths")
		}
		mode, perr := strconv.ParseInt(args[0], 8, 32)
		if perr != nil {
			return fmt.Errorf("fake: chmod: %w", perr)
		}
		err = s.each(args[1:], func(n string) error { return s.chmod(n, mode) })
	case "sleep":
		return s.sleep(args)
	case "exit":
		status, perr := strconv.Atoi(strings.Join(args, " "))
		if perr != nil {
			return fmt.Errorf("fake: exit: %w", perr)
		}
		return s.exit(status)
	case "true":
	case "false":
		s.status = 1
	case "fail":
		return errors.New(strings.Join(args, " "))
	case "kill":
		signal, perr := strconv.Atoi(strings.Join(args, " "))
		if perr != nil {
			return fmt.Errorf("fake: kill: %w", perr)
		}
		return &executor.ExitError{Reason: executor.Signaled, Signal: signal}
	case "hog":
		return &executor.ExitError{Reason: executor.OOM, Signal: 9, Limit: "its limit"}
	case "refuse":
		return &executor.StartError{Msg: strings.Join(args, " ")}
	default:
		_, err = fmt.Fprintf(s.out, "sh: %s: not found\n", name)
		s.status = 127
	}
	return err
}

// errDone is a script's end by `exit 0`.
var errDone = errors.New("done")

func (s *shell) exit(status int) error {
	if status == 0 {
		return errDone
	}
	return exitError(status)
}

// each does the same for all paths; those that fail are told, and set the status.
func (s *shell) each(names []string, do func(name string) error) error {
	for _, n := range names {
		if !path.IsAbs(n) {
			n = path.Join(s.p.Dir, n)
		}
		var bad *fs.PathError
		switch err := do(clean(n)); {
		case errors.As(err, &bad):
			if _, err := fmt.Fprintf(s.out, "%s: %v\n", n, bad.Err); err != nil {
				return err
			}
			s.status = 1
		case err != nil:
			return err
		}
	}
	return nil
}

// at tells which tree a path is in, and what is there.
func (s *shell) at(name string) (tree, *node) {
	if s.isMounted(name) {
		return s.mounted, s.mounted[name]
	}
	return s.files, s.files[name]
}

func (s *shell) isMounted(name string) bool {
	for _, m := range s.p.Mounts {
		if t := clean(m.Target); name == t || strings.HasPrefix(name, t+"/") {
			return true
		}
	}
	return false
}

func (s *shell) echo(args []string) error {
	var to string
	add := false
	for i, a := range args {
		if rest, ok := strings.CutPrefix(a, ">"); ok {
			rest, add = strings.CutPrefix(rest, ">")
			to = strings.Join(append([]string{rest}, args[i+1:]...), "")
			args = args[:i]
			break
		}
	}
	text := strings.Join(args, " ") + "\n"
	if to == "" {
		_, err := io.WriteString(s.out, text)
		return err
	}
	return s.each([]string{to}, func(name string) error {
		mode := int64(0o644)
		data := []byte(text)
		if _, n := s.at(name); n != nil {
			if n.isDir() {
				return &fs.PathError{Op: "open", Path: name, Err: errors.New("is a directory")}
			}
			mode = n.header.Mode
			if add {
				data = append(bytes.Clone(n.data), data...)
			}
		}
		return s.put(name, newFile(data, mode))
	})
}

// put puts something into a directory.
func (s *shell) put(name string, n *node) error {
	t, before := s.at(name)
	if dir := clean(path.Dir(name)); !t.isDir(dir) {
		return &fs.PathError{Op: "create", Path: name, Err: fs.ErrNotExist}
	}
	t[name] = n
	if before == nil {
		t.touch(name)
	}
	return nil
}

func (s *shell) cat(name string) error {
	_, n := s.at(name)
	if n == nil || n.header.Typeflag != tar.TypeReg {
		return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	_, err := s.out.Write(n.data)
	return err
}

func (s *shell) mkdir(name string, parents bool) error {
	t, n := s.at(name)
	if parents {
		t.mkdirAll(name)
		return nil
	}
	if n != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: fs.ErrExist}
	}
	return s.put(name, newDir())
}

func (s *shell) rm(name string, recursive, force bool) error {
	t, n := s.at(name)
	switch {
	case n == nil && force:
		return nil
	case n == nil:
		return &fs.PathError{Op: "rm", Path: name, Err: fs.ErrNotExist}
	case n.isDir() && !recursive:
		return &fs.PathError{Op: "rm", Path: name, Err: errors.New("is a directory")}
	}
	t.remove(name)
	return nil
}

func (s *shell) chmod(name string, mode int64) error {
	t, n := s.at(name)
	if n == nil {
		return &fs.PathError{Op: "chmod", Path: name, Err: fs.ErrNotExist}
	}
	t[name] = n.with(func(h *tar.Header) { h.Mode = mode })
	return nil
}

func (s *shell) sleep(args []string) error {
	seconds, err := strconv.ParseFloat(strings.Join(args, " "), 64)
	if err != nil {
		return fmt.Errorf("fake: sleep: %w", err)
	}
	select {
	case <-s.ctx.Done():
		return s.ctx.Err()
	case <-time.After(time.Duration(seconds * float64(time.Second))):
		return nil
	}
}
