package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A qmp is a connection to QEMU's monitor. Commands are sent one at a time.
type qmp struct {
	conn   *net.UnixConn
	event  func(name string, data json.RawMessage)
	answer chan qmpMessage // closed when the connection ends

	mu sync.Mutex
}

type qmpMessage struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

func newQMP(conn *net.UnixConn, event func(string, json.RawMessage)) *qmp {
	q := &qmp{conn: conn, event: event, answer: make(chan qmpMessage, 1)}
	go q.read()
	return q
}

// read ends with the connection, which ends with QEMU.
func (q *qmp) read() {
	defer close(q.answer)
	for in := json.NewDecoder(q.conn); ; {
		var m qmpMessage
		if err := in.Decode(&m); err != nil {
			return
		}
		switch {
		case m.Event != "":
			q.event(m.Event, m.Data)
		case m.Return != nil || m.Error != nil:
			q.answer <- m
		}
	}
}

var errMonitor = errors.New("QEMU does not answer on its monitor")

// call sends a command, with a file if it is not nil, and waits for the answer.
func (q *qmp) call(ctx context.Context, command string, arguments any, result any) error {
	return q.callWith(ctx, nil, command, arguments, result)
}

func (q *qmp) callWith(ctx context.Context, file *os.File, command string, arguments any, result any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	var oob []byte
	if file != nil {
		oob = unix.UnixRights(int(file.Fd()))
	}
	if _, _, err := q.conn.WriteMsgUnix(append(b, '\n'), oob, nil); err != nil {
		return fmt.Errorf("%s: %w", command, errMonitor)
	}
	select {
	case m, ok := <-q.answer:
		switch {
		case !ok:
			return fmt.Errorf("%s: %w", command, errMonitor)
		case m.Error != nil:
			return fmt.Errorf("%s: QEMU says: %s", command, m.Error.Desc)
		case result != nil:
			return json.Unmarshal(m.Return, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, ctx.Err())
	}
}
