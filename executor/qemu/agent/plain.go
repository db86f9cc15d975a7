package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/wire"
)

// A plainServer answers requests in a machine that has nothing to make a sandbox of: another system than Linux, or an old one. A process is one
// of the machine's own then, and the machine the sandbox. Obx has put the program there, and talks with it by its standard input and output.
type plainServer struct {
	in     *wire.Reader
	out    io.Writer
	begun  bool          // the machine is obx's
	caches []*plainCache // of the next process
}

// servePlain answers requests until in ends.
func servePlain(in io.Reader, out io.Writer) error {
	s := &plainServer{in: wire.NewReader(bufio.NewReaderSize(in, 64<<10)), out: &lockedWriter{w: out}}
	setUmask()
	if _, err := io.WriteString(s.out, wire.Marker); err != nil {
		return err
	}
	if err := wire.WriteJSON(s.out, wire.KindHello, wire.Hello{Version: wire.Version}); err != nil {
		return err
	}
	err := answerAll(s.in, s.out, s.answer)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

// answerAll answers one request after another.
func answerAll(in *wire.Reader, out io.Writer, answer func(context.Context, wire.Request) (wire.Reply, error)) error {
	for {
		kind, b, err := in.Next()
		if err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		var req wire.Request
		if kind != wire.KindRequest {
			return fmt.Errorf("read a request: it is a %q", kind)
		}
		if err := json.Unmarshal(b, &req); err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		clear(b) // it may have had secrets
		stop := startBeat(out)
		reply, err := answer(context.Background(), req)
		stop()
		var start *executor.StartError
		switch {
		case errors.As(err, &reply.Exit):
		case errors.As(err, &start):
			reply.Start = start.Msg
		case err != nil:
			reply.Err = err.Error()
		}
		if err := wire.WriteJSON(out, wire.KindReply, reply); err != nil {
			return err
		}
	}
}

// startBeat says again and again that the agent lives. out takes frames of several goroutines.
func startBeat(out io.Writer) (stop func()) {
	var mu sync.Mutex
	var t *time.Timer
	stopped := false
	mu.Lock()
	defer mu.Unlock()
	t = time.AfterFunc(wire.BeatEvery, func() {
		mu.Lock()
		defer mu.Unlock()
		if !stopped && wire.Write(out, wire.KindBeat, nil) == nil {
			t.Reset(wire.BeatEvery)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		t.Stop()
	}
}

func (s *plainServer) answer(_ context.Context, req wire.Request) (reply wire.Reply, err error) {
	switch {
	case req.Begin != nil: // it has booted, and has drawn random numbers of its own
		s.begun = true
		err = tameSystem()
	case req.Run != nil:
		err = s.run(*req.Run)
	case req.Freeze != nil && req.Freeze.ShutDown:
		err = shutDown()
	case req.Freeze != nil:
		err = syncDisks()
	case req.Unpack != nil && req.Unpack.Cache != nil:
		if err = s.mountCache(*req.Unpack); err != nil {
			err = errors.Join(err, wire.NewTarReader(s.in).Drain())
			break
		}
		err = answerFiles(req, s.in, s.out, unpacker{confined: true})
	case req.Unpack != nil:
		err = answerFiles(req, s.in, s.out, unpacker{confined: s.isCache(req.Unpack.Dir)}) // a cache's further layers
	case req.List != nil, req.Read != nil:
		err = answerFiles(req, s.in, s.out, unpacker{})
	default:
		err = errors.New("the agent does not do that in a machine without a sandbox")
	}
	return reply, err
}

func (s *plainServer) run(r wire.Run) (err error) {
	if s.begun {
		if err := tameSystem(); err != nil {
			return err
		}
	}
	mounts, err := mountSecrets(r.Process.Mounts)
	if err != nil {
		return errors.Join(err, mounts.undo())
	}
	defer func() {
		ended := executor.Ended(err)
		// A failed step's machine is not used again, so what cannot be taken away then does no harm.
		if undone := errors.Join(mounts.undo(), s.unmountCaches(ended)); ended && undone != nil {
			err = undone
		}
	}()
	for _, c := range s.caches {
		if err := c.begin(); err != nil {
			return err
		}
	}
	return s.runProcess(r)
}

// runProcess runs a process to its end, with frames as its input if there is one.
func (s *plainServer) runProcess(r wire.Run) error {
	var stdin, typed *os.File
	var pumped chan struct{}
	if r.Input {
		in, w, err := os.Pipe()
		if err != nil {
			return err
		}
		stdin, typed = in, w
		pumped = make(chan struct{})
		go func() {
			defer close(pumped)
			pump(s.in, w, nil)
		}()
	}
	out := &gate{w: wire.FrameWriter{W: s.out, Kind: wire.KindOutput}}
	err := runPlain(r.Process, stdin, out)
	out.close()
	if pumped != nil {
		_ = typed.SetWriteDeadline(time.Now()) // somebody may have the other end who does not read
		// The host ends the input when it has this announcement, an empty output.
		if werr := wire.Write(s.out, wire.KindInput, nil); werr != nil {
			return werr
		}
		<-pumped
	}
	return err
}

// A gate passes what is written until it is closed: a process that outlives its step may still write.
type gate struct {
	mu     sync.Mutex
	w      io.Writer
	closed bool
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return 0, io.ErrClosedPipe
	}
	return g.w.Write(p)
}

func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
}

// A lockedWriter keeps frames whole.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// pump copies the input that comes in frames to its end. What nobody reads any more is dropped.
func pump(in *wire.Reader, w *os.File, resize func(wire.WindowSize)) {
	defer w.Close()
	broken := false
	for {
		kind, b, err := in.Next()
		switch {
		case err != nil:
			return
		case kind == wire.KindSize && resize != nil:
			var size wire.WindowSize
			if json.Unmarshal(b, &size) == nil {
				resize(size)
			}
		case kind != wire.KindInput:
		case len(b) == 0:
			return
		case !broken:
			_, err := w.Write(b)
			broken = err != nil
		}
	}
}

// runOnTerminal runs a process on the terminal that this program has itself. arg is a wire.Run, as JSON in base64.
func runOnTerminal(arg string) (code int, err error) {
	b, err := base64.StdEncoding.DecodeString(arg)
	if err != nil {
		return 0, err
	}
	var r wire.Run
	if err := json.Unmarshal(b, &r); err != nil {
		return 0, err
	}
	cmd, err := command(r.Process)
	if err != nil {
		return 0, err
	}
	// What is typed to interrupt something is the process's business. To ignore it would be inherited.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGQUIT)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = exitOf(cmd.Run(), cmd)
	var exit *executor.ExitError
	if errors.As(err, &exit) {
		return terminalCode(exit), nil
	}
	return 0, err
}

// terminalCode is a process's end as a shell would tell it.
func terminalCode(e *executor.ExitError) int {
	if e.Reason == executor.Signaled {
		return 128 + e.Signal
	}
	return e.Code
}

// mainPlain is the program, if it was started as one without a sandbox.
func mainPlain() bool {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "plain":
		if err := servePlain(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "obx agent:", err)
			os.Exit(1)
		}
	case len(os.Args) == 3 && os.Args[1] == "terminal":
		code, err := runOnTerminal(os.Args[2])
		if err != nil {
			fmt.Fprintln(os.Stderr, "obx agent:", err)
			code = startFailed
		}
		os.Exit(code)
	default:
		return false
	}
	return true
}

// startFailed is the status of a terminal whose process did not start, as a shell has it.
const startFailed = 127
