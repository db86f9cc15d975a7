// Package executor is the contract of a sandbox: what runs one process after another in a root file system made of
// layers, and gives back what each has changed.
//
// An executor sees layers and the local store. It knows nothing of specs, keys, caches on registries, or of which
// step it runs: package executor/build does. It keeps nothing that cannot be had again from layers.
package executor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/layers"
)

// An Executor makes root file systems on one platform. It is safe for concurrent use.
type Executor interface {
	Platform() ocispec.Platform

	// Open begins a root file system with the files of a chain of layers, base first. Zero layers in it are skipped. Open is
	// cheap: what is costly waits for the first use.
	Open(ctx context.Context, chain []layers.Layer) (Root, error)

	// Close ends everything that the executor has started.
	Close() error
}

// A Preparer is an Executor that can begin in the background what its first Run needs. Calling Prepare is never needed: it
// saves time when it is done while something else is waited for, as answers of a cache. An error is one that each use of the Executor would meet.
type Preparer interface {
	Prepare() error
}

// A BytesReader is an Executor that may open layers from their bytes alone: where ReadsBytes says so, what comes from elsewhere is not
// unpacked into the store.
type BytesReader interface {
	ReadsBytes() bool
}

// A Root is a private, writable root file system. Its methods are called one at a time.
type Root interface {
	// Run runs one process to its end and writes what it prints to out, in the order in which it was written.
	// The error is nil for exit status 0, *ExitError for a process that ended otherwise, *StartError for one that
	// could not start because of what the spec or the image says; any other error is the infrastructure's.
	// Cancelling ctx kills the process and all that it has started. After an error the root's changes since the
	// last Freeze are dropped.
	Run(ctx context.Context, p Process, out io.Writer) error

	// Freeze ends a step: it takes what has changed since Open or the last Freeze. It is fast: packing can come
	// later. The Root goes on from it.
	Freeze(ctx context.Context) (Change, error)

	// Add goes on from the present state with one more layer, one that was not made by Run (a copy step's). What has changed
	// must have been frozen before.
	Add(ctx context.Context, l layers.Layer) error

	// Files reads the present files. The tree is valid until the next call of another method.
	Files(ctx context.Context) (layers.Tree, error)

	Close() error
}

// A Change is what one step has changed. It can be read until its own Close, after the Root's too.
type Change interface {
	// Layer makes the change a layer of the store, one that Open takes: the zero Layer if nothing changed.
	Layer(ctx context.Context) (layers.Layer, error)
	Close() error
}

// A Process is what runs in a Root.
type Process struct {
	Argv     []string
	Env      []string // NAME=VALUE, complete, in the order that the process sees; HOME is added if missing
	Dir      string   // absolute; made (root:root 0755) if missing
	UID, GID int
	User     string // by name, for Windows; then UID and GID mean nothing

	// OSVersion is that of the base image, for Windows: what it needs of the host. "" is not known.
	OSVersion string

	Hostname string // "" is "builder"
	Network  Network
	Mounts   []Mount
	Limits   Limits
	FastSync bool // sync calls do nothing and return 0

	// Refused, if it is not nil, is called before Run returns if the process wanted to make what only root of the machine can ("a device node"), and
	// could not, because the executor runs in a user namespace. Whatever the process did then, elsewhere it may do something else.
	Refused func(wanted []string) `json:"-"`

	// Terminal runs the process on a terminal: Stdin is one, and out is not used. Nil Stdin is an empty one.
	Stdin    *os.File
	Terminal bool
}

// A Network is what a process reaches.
type Network int

const (
	NetworkNone Network = iota // a loopback interface of its own
	NetworkHost
)

// A Mount is a directory or file that a process sees and that is no part of the result.
type Mount struct {
	Target string // absolute in the root
	Cache  *Cache // exactly one of Cache and Secret is set
	Secret *Secret
}

// A Cache is a directory that outlives the step, kept by the store under Domain and Name.
type Cache struct {
	Domain  string
	Name    string
	Sharing string // "" or "private" (copy-on-write; the first to finish wins), "shared" or "locked"
}

// Caches lists the mounts of caches in the order in which their use begins: some have to be waited for, and one order keeps two processes from waiting
// for each other. Mounts of the same cache follow each other.
func (p *Process) Caches() []Mount {
	caches := slices.DeleteFunc(slices.Clone(p.Mounts), func(m Mount) bool { return m.Cache == nil })
	slices.SortStableFunc(caches, func(a, b Mount) int {
		return cmp.Or(cmp.Compare(a.Cache.Domain, b.Cache.Domain), cmp.Compare(a.Cache.Name, b.Cache.Name))
	})
	return caches
}

// A Secret is a read-only file whose bytes live in memory only.
type Secret struct {
	Data []byte
	Mode os.FileMode // 0: 0644
}

// Limits of one process and all that it starts. Zero fields mean no limit, but for PIDs. They are in no key: they say whether a step comes to its end,
// not what it makes.
type Limits struct {
	Memory  int64   // bytes
	CPUs    float64 // processors
	PIDs    int64   // 0: DefaultPIDs where they can be counted; negative: no limit
	Timeout time.Duration

	// What the process may add to its root and its cache mounts, together: bytes of disk, and files. They are looked at while it runs, and once
	// more at its end, so it may have more for a moment.
	Disk   int64
	Inodes int64
}

// DefaultPIDs is how many processes a process has with all that it starts, if nothing else is said. A step that forks without end would take them from
// everybody else on the machine.
const DefaultPIDs = 32768

// A Reason says how a process ended.
type Reason string

const (
	Exited       Reason = "exit"    // by itself, with Code
	Signaled     Reason = "signal"  // by Signal
	TimedOut     Reason = "timeout" // Limits.Timeout
	OOM          Reason = "oom"     // Limits.Memory
	DiskFull     Reason = "disk"    // Limits.Disk
	TooManyFiles Reason = "inodes"  // Limits.Inodes
)

// An ExitError is a process that ended without success.
type ExitError struct {
	Reason Reason
	Code   int    // of Exited; of OOM if the process outlived the one that was killed
	Signal int    // of Signaled, and of OOM otherwise
	Limit  string // of TimedOut, OOM, DiskFull and TooManyFiles: the limit, for people ("10s", "64MiB")
}

// Ended reports whether a process whose Run has given err came to its own end, be it a bad one: then its cache mounts keep what it wrote. What took more
// of the disk than it may is not kept.
func Ended(err error) bool {
	var exit *ExitError
	return err == nil || errors.As(err, &exit) && exit.Reason != DiskFull && exit.Reason != TooManyFiles
}

func (e *ExitError) Error() string {
	switch e.Reason {
	case Signaled:
		return fmt.Sprintf("killed by signal %d", e.Signal)
	case TimedOut:
		return "stopped: it ran longer than " + e.Limit
	case OOM:
		return "killed: it used more memory than " + e.Limit
	case DiskFull:
		return "stopped: it used more disk than " + e.Limit
	case TooManyFiles:
		return "stopped: it made more files than " + e.Limit
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// A StartError is a process that could not start because of the spec or the image: no such program, a working
// directory that is a file.
type StartError struct {
	Msg string
}

func (e *StartError) Error() string { return e.Msg }

// A Check is one line of a health report: something that an executor needs.
type Check struct {
	Name    string
	Detail  string // what was found
	Warning string // what is not well, though builds run, and what to do
	Err     error  // what is wrong and what to do; nil if builds can run
}

// A Health is a report in the making.
type Health struct{ Checks []Check }

// Check looks at one thing and adds what it finds.
func (h *Health) Check(name string, look func() (detail string, err error)) {
	detail, err := look()
	h.Checks = append(h.Checks, Check{Name: name, Detail: detail, Err: err})
}

// Warn sets what is not well with the last Check; "" if all is.
func (h *Health) Warn(msg string) { h.Checks[len(h.Checks)-1].Warning = msg }

// Failed reports whether anything is wrong so far.
func (h *Health) Failed() bool {
	return slices.ContainsFunc(h.Checks, func(c Check) bool { return c.Err != nil })
}
