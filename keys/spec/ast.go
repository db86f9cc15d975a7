package spec

import (
	"fmt"
	"iter"
)

// A Pos is a place in a spec's text. The zero Pos belongs to a node that a program made, which may leave every Pos out.
type Pos struct {
	Line int // from 1
	Col  int // in bytes, from 1
}

func (p Pos) String() string { return fmt.Sprintf("%d:%d", p.Line, p.Col) }

// A Spec is one whole spec file: the outermost stage, and what Format needs to keep comments.
type Spec struct {
	// File is the name that errors use, as given to Parse.
	File string
	Stage

	// What Parse read, by the place of each stage, build, from and operation: Format prints the unchanged ones from
	// it, with their comments. Nil for a spec that a program made.
	source map[Pos]*node
	doc    *node // the file: a list without parentheses

	partial bool // Parse has found mistakes: what is empty may be what it did not understand
}

// A Stage starts at a base image and applies operations in order.
type Stage struct {
	Pos    Pos
	Builds []Build // nested stages, in the order of the text; a later one of the same name shadows an earlier one
	From   From
	Ops    []Op
}

// A Build is a nested stage with the name that copies use for it.
type Build struct {
	Pos   Pos
	Name  string
	Stage *Stage
}

// Stages visits a stage and all that are nested in it, in the order of the text: a stage comes after those in it.
func (st *Stage) Stages() iter.Seq[*Stage] {
	return func(yield func(*Stage) bool) { st.visit(yield) }
}

func (st *Stage) visit(yield func(*Stage) bool) bool {
	for _, b := range st.Builds {
		if b.Stage != nil && !b.Stage.visit(yield) {
			return false
		}
	}
	return yield(st)
}

// From names the base image of a stage, as the user wrote it.
type From struct {
	Pos   Pos
	Image string
}

// An Op is one operation of a stage: *Comment, *Workdir, *Shell, *Env, *User, *Run or *Copy.
type Op interface {
	// Position tells where the operation's opening parenthesis is.
	Position() Pos
	op()
}

// Comment is (comment TEXT). It is printed in the log and changes nothing.
type Comment struct {
	Pos  Pos
	Text string
}

// Workdir is (workdir DIR): the directory of later operations, joined to the present one when relative.
type Workdir struct {
	Pos Pos
	Dir string
}

// Shell is (shell ARG...): the words that later commands are appended to.
type Shell struct {
	Pos  Pos
	Argv []string
}

// Env is (env NAME VALUE).
type Env struct {
	Pos         Pos
	Name, Value string
}

// User is (user (uid N) (gid N)), or (user (name S)) for Windows.
type User struct {
	Pos  Pos
	UID  int
	GID  int
	Name string // if not empty, UID and GID mean nothing
}

// Run is (run (shell COMMAND) ...).
type Run struct {
	Pos     Pos
	Command string // one argument, appended to the shell's words
	Caches  []Mount
	Network []string // as written: none, or "host"
	Secrets []Mount
}

// A Mount is a cache or secret item of a run: (ID (target PATH) (buildkit_options ((KEY VALUE)...))).
type Mount struct {
	Pos     Pos
	ID      string
	Target  string   // where it is mounted: a cache's directory or a secret's file
	Options []Option // buildkit_options, in order; of a cache, "sharing" means the same to obx
}

// An Option is one (KEY VALUE) of buildkit_options.
type Option struct{ Key, Value string }

// Copy is (copy (src PATH...) (dst PATH) ...).
type Copy struct {
	Pos     Pos
	From    string // the name of a build in scope; "" is the source directory
	Src     []string
	Dst     string
	Exclude []string // base names, matched at every depth below a source
}

func (o *Comment) Position() Pos { return o.Pos }
func (o *Workdir) Position() Pos { return o.Pos }
func (o *Shell) Position() Pos   { return o.Pos }
func (o *Env) Position() Pos     { return o.Pos }
func (o *User) Position() Pos    { return o.Pos }
func (o *Run) Position() Pos     { return o.Pos }
func (o *Copy) Position() Pos    { return o.Pos }

func (*Comment) op() {}
func (*Workdir) op() {}
func (*Shell) op()   {}
func (*Env) op()     {}
func (*User) op()    {}
func (*Run) op()     {}
func (*Copy) op()    {}
