package spec

import (
	"path"
	"strings"
)

// What executors and kernels can do of one thing. A spec that asks for more is told so with its place, not by whatever fails
// first when the step runs. Each is a round number below the least of theirs: overlay mounts of a run are passed in one
// message of up to 253 descriptors; Linux takes arguments of 128 KiB, of all together a quarter of the stack's limit (2 MiB
// as a rule), names of 255 bytes and paths of 4,096, of which sandboxes need some themselves.
const (
	maxMounts    = 100  // caches and secrets of one run
	maxVariables = 1000 // of one stage
	maxArgument  = 128<<10 - 1
	maxProcess   = 1 << 20 // bytes of a command with its shell and variables
	maxName      = 255     // bytes of each name in a path
	maxPath      = 1024    // bytes of a path
	perString    = 1 + 8   // what the kernel adds to each: a NUL and a pointer
)

// A stageState is what operations have set so far that the limits concern.
type stageState struct {
	dir   string
	shell int            // bytes
	env   map[string]int // bytes of each variable
	sum   int            // of env
}

// limits checks an operation of a stage, as far as Linux sets the limits.
func (c *checker) limits(op Op, s *stageState) {
	if o, ok := op.(*Run); ok {
		if n := len(o.Caches) + len(o.Secrets); n > maxMounts {
			c.errorf(o.Pos, "%d caches and secrets in one run: at most %d can be mounted", n, maxMounts)
		}
	}
	if c.windows {
		return
	}
	switch o := op.(type) {
	case *Workdir:
		if !strings.HasPrefix(o.Dir, "/") {
			s.dir = path.Join(s.dir, o.Dir)
		} else {
			s.dir = path.Clean(o.Dir)
		}
		c.path(c.arg(o, "", 0), "the working directory", s.dir)
		s.dir = s.dir[:min(len(s.dir), 2*maxPath)] // each operation looks at all of it: it cannot grow with each
	case *Shell:
		s.shell = 0
		for i, arg := range o.Argv {
			s.shell += c.argument(c.arg(o, "", i), "an argument", arg)
		}
	case *Env:
		n := c.argument(c.arg(o, "", 1), "the variable "+shorten(o.Name, 40), o.Name+"="+o.Value)
		if s.sum += n - s.env[o.Name]; s.env[o.Name] == 0 && len(s.env) == maxVariables {
			c.errorf(o.Pos, "more than %d variables in one stage", maxVariables)
		}
		s.env[o.Name] = n
	case *Run:
		n := c.argument(c.arg(o, "shell", 0), "the command", o.Command) + s.shell + s.sum
		if n > maxProcess {
			c.errorf(o.Pos, "a command of %d bytes with its shell and variables: Linux takes %d, so put long values into a file", n, maxProcess)
		}
		for _, m := range o.Caches {
			c.path(m.Pos, "the target of cache "+quote(m.ID), m.Target)
		}
		for _, m := range o.Secrets {
			c.path(m.Pos, "the target of secret "+quote(m.ID), m.Target)
		}
	case *Copy:
		dst := o.Dst
		if !strings.HasPrefix(dst, "/") {
			dst = path.Join(s.dir, dst)
		}
		c.path(c.arg(o, "dst", 0), "the destination", dst)
	}
}

// argument checks one string that a process is given, and says how much of the kernel's room it takes.
func (c *checker) argument(pos Pos, what, s string) int {
	if len(s) > maxArgument {
		c.errorf(pos, "%s has %d bytes: Linux takes %d, so put it into a file", what, len(s), maxArgument)
	}
	return len(s) + perString
}

// path checks the lengths of a path and of the names in it.
func (c *checker) path(pos Pos, what, p string) {
	if len(p) > maxPath {
		c.errorf(pos, "%s has %d bytes: a path can have %d", what, len(p), maxPath)
		return
	}
	for name := range strings.SplitSeq(p, "/") {
		if len(name) > maxName {
			c.errorf(pos, "%s has a name of %d bytes: Linux takes %d", what, len(name), maxName)
			return
		}
	}
}
