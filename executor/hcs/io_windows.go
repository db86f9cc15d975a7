package hcs

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/Microsoft/go-winio"
	"github.com/containerd/containerd/v2/pkg/cio"
)

// acceptPatience is how long a shim may take to connect its ends once the process is over. It does so before it starts one.
const acceptPatience = 2 * time.Second

// creator makes the pipes of a task. containerd's own for Windows do not wait for the output's end, and so lose it.
func (s *streams) creator(*job) cio.Creator {
	return func(id string) (cio.IO, error) {
		p := &pipes{connected: make(chan struct{})}
		name := func(stream string) string { return fmt.Sprintf(`\\.\pipe\obx-%s-%s`, id, stream) }
		p.config = cio.Config{Stdout: name("stdout"), Stderr: name("stderr")}
		drain := func(c net.Conn) { _, _ = io.Copy(s.out, c) }
		err := errors.Join(p.serve(p.config.Stdout, drain), p.serve(p.config.Stderr, drain))
		if s.in != nil {
			p.config.Stdin = name("stdin")
			err = errors.Join(err, p.serve(p.config.Stdin, func(c net.Conn) { _, _ = io.Copy(c, s.in) }))
		}
		if err != nil {
			return nil, errors.Join(err, p.Close())
		}
		go func() {
			p.accepting.Wait()
			close(p.connected)
		}()
		return p, nil
	}
}

// pipes are the named pipes of a task: containerd's shim connects to each.
type pipes struct {
	config    cio.Config
	listeners []net.Listener
	accepting sync.WaitGroup
	connected chan struct{} // closed when all are connected, or closed
	output    sync.WaitGroup
}

func (p *pipes) serve(name string, use func(net.Conn)) error {
	l, err := winio.ListenPipe(name, nil)
	if err != nil {
		return fmt.Errorf("make pipe %s: %w", name, err)
	}
	p.listeners = append(p.listeners, l)
	p.accepting.Add(1)
	task := func() {
		c, err := l.Accept()
		p.accepting.Done()
		if err != nil {
			return // cancelled
		}
		use(c)
		c.Close()
	}
	if name == p.config.Stdin {
		go task() // who writes to it may never end
	} else {
		p.output.Go(task)
	}
	return nil
}

func (p *pipes) Config() cio.Config { return p.config }

// Wait waits for the output's end.
func (p *pipes) Wait() {
	select {
	case <-p.connected:
	case <-time.After(acceptPatience):
		p.Cancel()
	}
	p.output.Wait()
}

// Cancel ends the waiting for connections.
func (p *pipes) Cancel() {
	for _, l := range p.listeners {
		_ = l.Close()
	}
}

func (p *pipes) Close() error {
	p.Cancel()
	return nil
}
