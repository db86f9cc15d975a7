package guest

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/qemu/wire"
	"github.com/ocurrent/obx/executor/qemu/words"
	"github.com/ocurrent/obx/layers"
)

// A Machine is where an agent runs, as far as who talks with it has to know.
type Machine interface {
	Ended() <-chan struct{} // is closed when the machine has ended
	Fail(err error)         // ends the machine for a reason; the first one counts
	Why(err error) error    // waits for the machine's end, and says why it has ended if nobody knows more than err
}

// An Agent is a conversation with obx's agent in a machine. It is greeted, begun, and then asked, by one goroutine at a time.
type Agent struct {
	// Patience is how long an agent may say nothing that has something to do: it beats much more often, if the machine has time for it.
	Patience time.Duration

	m       Machine
	control net.Conn     // nil until there is an agent
	in      *wire.Reader // of control
	input   net.Conn     // what processes read
	plain   bool         // it has no sandbox

	ending     atomic.Bool    // its system was told to shut down
	forwarding sync.WaitGroup // what goes by ssh
}

// NewAgent is the agent that answers at two ports of a machine: by that for requests, and that for what processes read. Both are nil in a machine whose
// agent talks by ssh alone.
func NewAgent(m Machine, control, input net.Conn) *Agent {
	a := &Agent{Patience: agentPatience, m: m, control: control, input: input}
	if control != nil {
		a.in = wire.NewReader(bufio.NewReaderSize(control, 256<<10))
	}
	return a
}

// agentPatience is the Patience of a new Agent.
const agentPatience = 5 * time.Minute

// Plain reports whether the agent has no sandbox: its processes are ones of the machine's own, with what limits the machine has. It cannot mount layers.
func (a *Agent) Plain() bool { return a.plain }

// Close ends the conversation. What waits for a word of the agent is told so.
func (a *Agent) Close() {
	for _, c := range []net.Conn{a.control, a.input} {
		if c != nil {
			c.Close()
		}
	}
	a.forwarding.Wait()
}

// Greet waits for the agent's greeting, up to a limit: then the error is a *BootError. An agent of another obx, or one that cannot work where it is, is an
// error as well.
func (a *Agent) Greet(ctx context.Context, limit time.Duration) error {
	if err := a.control.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = a.control.SetReadDeadline(time.Unix(1, 0)) })
	kind, b, err := a.in.Next()
	if !stop() && err == nil { // the deadline may be set from now on
		err = context.Cause(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return &BootError{Limit: limit}
		}
		return a.m.Why(err)
	}
	var hello wire.Hello
	if kind != wire.KindHello || json.Unmarshal(b, &hello) != nil {
		return errors.New("the machine's agent does not greet")
	}
	if hello.Version != wire.Version {
		return fmt.Errorf("the machine's agent is that of another obx (version %d instead of %d): `obx base agent` writes this one's",
			hello.Version, wire.Version)
	}
	if hello.Err != "" {
		return fmt.Errorf("the machine cannot be made ready: %s", words.Printable(hello.Err))
	}
	return a.control.SetReadDeadline(time.Time{})
}

// drain drops what an agent may have said just before it was stopped.
func (a *Agent) drain() {
	_ = a.control.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	for {
		if _, _, err := a.in.Next(); err != nil {
			return
		}
	}
}

// Begin is the first request to an agent: it sets the clock and the random generator.
func (a *Agent) Begin(ctx context.Context) error {
	seed := make([]byte, 64)
	_, _ = rand.Read(seed) // never fails
	_, err := a.Ask(ctx, wire.Request{Begin: &wire.Begin{Seed: seed}}, nil, nil)
	return err
}

// A BootError is a machine that did not boot in time.
type BootError struct {
	Limit   time.Duration
	Console string // its last words, or a remark in parentheses
}

func (e *BootError) Error() string {
	s := fmt.Sprintf("the machine did not boot within %v (--qemu-boot-time)", e.Limit)
	if e.Console != "" {
		s += "; its console says: " + e.Console
	}
	return s
}

// Ask sends a request, and after it what send sends, and gives every frame that comes before the reply to handle. Both may be nil: then there is nothing
// to send, or no frame may come. An error of either, and the end of ctx, end the machine: the agent is in the middle of something. So does an agent
// that says or takes nothing for too long. An error in the reply does not.
func (a *Agent) Ask(ctx context.Context, req wire.Request, send func(io.Writer) error, handle func(wire.Kind, []byte) error) (reply wire.Reply, err error) {
	defer context.AfterFunc(ctx, func() { a.m.Fail(fmt.Errorf("the process was stopped: %w", context.Cause(ctx))) })()
	req.Now = time.Now()
	to := &patientWriter{a: a}
	err = wire.WriteJSON(to, wire.KindRequest, req)
	if err == nil && send != nil {
		if err = send(to); err != nil && to.err == nil {
			a.m.Fail(err) // the agent waits for the rest
		}
	}
	if err != nil {
		return reply, a.m.Why(err)
	}
	defer func() { _ = a.control.SetReadDeadline(time.Time{}) }()
	for {
		_ = a.control.SetReadDeadline(time.Now().Add(a.Patience))
		kind, b, err := a.in.Next()
		if err != nil {
			if a.ending.Load() && errors.Is(err, io.EOF) {
				return reply, nil // with the system, its agent has ended before it could answer
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				a.m.Fail(fmt.Errorf("the machine hangs: it has said nothing for %v", a.Patience))
			}
			return reply, a.m.Why(err)
		}
		if kind == wire.KindBeat {
			continue
		}
		if kind == wire.KindReply {
			if err := decode(b, &reply); err != nil {
				return wire.Reply{}, err
			}
			if reply.Err != "" {
				return reply, errors.New(words.Printable(reply.Err))
			}
			return reply, nil
		}
		if handle == nil {
			return reply, fmt.Errorf("the machine's agent sends %q out of place", kind)
		}
		if err := handle(kind, b); err != nil {
			a.m.Fail(err) // the agent has more to say that nobody listens to
			return reply, err
		}
	}
}

// A patientWriter writes to a machine's agent, which takes it in time.
type patientWriter struct {
	a   *Agent
	err error // of the connection
}

func (w *patientWriter) Write(p []byte) (int, error) {
	_ = w.a.control.SetWriteDeadline(time.Now().Add(w.a.Patience))
	n, err := w.a.control.Write(p)
	if err != nil {
		w.err = err
		if errors.Is(err, os.ErrDeadlineExceeded) {
			w.a.m.Fail(fmt.Errorf("the machine hangs: it has taken nothing for %v", w.a.Patience))
		}
	}
	return n, err
}

// Run has the agent run a process, which writes to out, and gives it what p.Stdin has. change is given the frames of changes to caches. The reply has how
// the process has ended, in words that are printable; the error is as of Ask. A terminal is p.Stdin, and out is not used.
func (a *Agent) Run(ctx context.Context, p executor.Process, caches []wire.Cache, out io.Writer, change func(wire.Kind, []byte) error) (wire.Reply, error) {
	req := wire.Run{Process: p, Caches: caches, Input: p.Stdin != nil}
	req.Process.Stdin = nil
	in, err := openInput(p, portInput(a.input))
	if err != nil {
		return wire.Reply{}, err
	}
	defer in.close()
	if p.Terminal {
		out = p.Stdin
		req.Rows, req.Cols = in.size()
	}
	reply, err := a.Ask(ctx, wire.Request{Run: &req}, nil, func(k wire.Kind, b []byte) error {
		switch k {
		case wire.KindOutput:
			if _, err := out.Write(b); err != nil {
				return fmt.Errorf("write the log: %w", err)
			}
			return nil
		case wire.KindInput:
			return in.end()
		}
		return change(k, b)
	})
	reply.Start = words.Printable(reply.Start)
	if reply.Exit != nil {
		reply.Exit.Limit = words.Printable(reply.Exit.Limit)
	}
	return reply, err
}

// Unpack has the agent unpack the files of a layer directory as u says. The reply's Start says why a process that needs them cannot start.
func (a *Agent) Unpack(ctx context.Context, u wire.Unpack, dir string) (wire.Reply, error) {
	reply, err := a.Ask(ctx, wire.Request{Unpack: &u}, func(w io.Writer) error {
		if err := layers.WriteChange(ctx, wire.FrameWriter{W: w, Kind: wire.KindTar}, dir); err != nil {
			return err
		}
		return wire.Write(w, wire.KindTar, nil)
	}, nil)
	reply.Start = words.Printable(reply.Start)
	return reply, err
}
