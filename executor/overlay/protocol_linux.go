package overlay

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/internal/rootfs"
)

// How the maker and its supervisor talk: over one seqpacket socket (fd 3 of the supervisor) the maker sends, for each
// run, one message of fds, in the order of the constants below. The first is a stream socket for that run alone: a request
// goes one way and replies come back, as JSON; when these end, the run's mounts are gone. Shutting down the maker's half
// kills the run. The end of the seqpacket socket ends the supervisor.
const (
	fdConn   = iota // the run's own socket
	fdStdin         // the process's standard input
	fdStdout        // its standard output and error; with a terminal, a socket on which its controlling end is sent
	fdRoot          // the mount of its root
	fdMounts        // the mounts of its caches follow
)

// A request is one run.
type request struct {
	ID       string        `json:"id"`      // of the container; unique
	Runtime  string        `json:"runtime"` // path, or Builtin
	Spec     *specs.Spec   `json:"spec"`    // config.json
	Files    []rootfs.File `json:"files"`
	Binds    []rootfs.Bind `json:"binds"`
	Terminal bool          `json:"terminal"`
	Cgroup   string        `json:"cgroup"`
	Probe    bool          `json:"probe"`  // only create the container, to see whether the runtime works
	Detach   bool          `json:"detach"` // tell that the process has exited before its mounts are gone

	// Which filter of system calls Builtin installs. The supervisor is this program, and makes the same as the maker would.
	HostNetwork bool `json:"hostNetwork"`
	FastSync    bool `json:"fastSync"`
}

// A reply is what happened to a run. Started comes before exited, where a runtime could say things before; a refused or broken run has but one reply.
type reply struct {
	Event event `json:"event"`
	rootfs.Exit
	Error string   `json:"error"`
	Said  []string `json:"said"` // the runtime's own error messages

	Refused []string `json:"refused,omitempty"` // what executor.Process.Refused is told
}

type event string

const (
	started event = "started"
	exited  event = "exited"
	refused event = "refused" // the runtime could not start the process
	broken  event = "broken"  // the supervisor could not do its part
)

// Names in a run's directory, which is PRIV/ID and on the supervisor's tmpfs.
const (
	stateName   = "state" // in PRIV: the runtime's --root
	consoleName = "console"
)

// sendFDs sends open files as one message.
func sendFDs(socket int, files ...*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	return unix.Sendmsg(socket, []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
}

// maxFDs is the kernel's limit of fds in one message.
const maxFDs = 253

// recvFDs receives what sendFDs has sent. No files and no error is the end of the socket.
func recvFDs(socket int) ([]*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4*maxFDs))
	n, oobn, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	if n == 0 && oobn == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return nil, errors.Join(errors.New("receive: a message without files"), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "fd "+strconv.Itoa(i))
	}
	return files, nil
}

// socketPair makes two connected sockets.
func socketPair(kind int) (a, b *os.File, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return os.NewFile(uintptr(p[0]), "socket"), os.NewFile(uintptr(p[1]), "socket"), nil
}

// streamConn takes over a stream socket.
func streamConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

func bundleDir(priv, id string) string { return filepath.Join(priv, id) }
