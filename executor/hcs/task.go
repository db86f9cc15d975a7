package hcs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// A job is one process that a daemon runs.
type job struct {
	id      string
	spec    *specs.Spec
	runtime string
	options any // of the runtime
	rootfs  []mount.Mount
	fifos   string // a directory for named pipes

	stdin  io.Reader // nil: an empty one
	out    io.Writer
	resize <-chan [2]uint32 // width and height; not nil for a process on a terminal

	// created is called before the process starts, ended after it has ended and before anything of it is removed.
	created func(pid uint32) error
	ended   func() error
}

// A createError is the runtime's refusal to make or start a container.
type createError struct{ error }

// An ended is how a job was over.
type ended struct {
	status uint32
	killed bool // by do, since its ctx was over
}

// do runs a job to its end. Cancelling ctx kills it; an error that wraps that of ctx says that it was not even started. When do returns without an
// error of the daemon's, nothing of the container is left.
func (d *daemon) do(ctx context.Context, j *job) (end ended, err error) {
	clean := d.context(context.WithoutCancel(ctx))
	if err := ctx.Err(); err != nil {
		return end, err
	}
	labels := map[string]string{runLabel: d.run}
	c, err := d.client.NewContainer(clean, j.id, client.WithSpec(j.spec), client.WithRuntime(j.runtime, j.options), client.WithContainerLabels(labels))
	if err != nil {
		return end, fmt.Errorf("make a container: %w", err)
	}
	defer func() {
		if derr := c.Delete(clean); derr != nil && !errdefs.IsNotFound(derr) {
			err = errors.Join(err, fmt.Errorf("delete a container: %w", derr))
		}
	}()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	streams := newStreams(j, stop)
	task, err := c.NewTask(clean, streams.creator(j), client.WithRootFS(j.rootfs))
	if err != nil {
		return end, createError{err}
	}
	unfinished := []client.ProcessDeleteOpts{client.WithProcessKill}
	defer func() {
		streams.close()
		if _, derr := task.Delete(clean, unfinished...); derr != nil && !errdefs.IsNotFound(derr) {
			err = errors.Join(err, fmt.Errorf("delete a task: %w", derr))
		}
	}()
	exited, err := task.Wait(clean)
	if err != nil {
		return end, fmt.Errorf("wait for a task: %w", err)
	}
	if err := j.created(task.Pid()); err != nil {
		return end, err
	}
	if err := ctx.Err(); err != nil {
		return end, err
	}
	if err := task.Start(clean); err != nil {
		return end, createError{err}
	}
	streams.serve(clean, task, j)
	var exit client.ExitStatus
	select {
	case exit = <-exited:
	case <-ctx.Done():
		err := task.Kill(clean, syscall.SIGKILL)
		if err != nil && !errdefs.IsNotFound(err) {
			hangUp(task)
			return end, fmt.Errorf("kill a task: %w", err)
		}
		end.killed = err == nil // else it was over before
		exit = <-exited
	}
	if err := exit.Error(); err != nil {
		// The daemon does not know, and the process may go on for hours, with its end of the pipes.
		hangUp(task)
		return end, fmt.Errorf("wait for a task: %w", err)
	}
	if err := j.ended(); err != nil {
		hangUp(task)
		return end, err
	}
	unfinished = nil
	task.IO().Wait()
	end.status = exit.ExitCode()
	return end, streams.out.failure()
}

// hangUp stops reading what a task writes.
func hangUp(task client.Task) {
	if io := task.IO(); io != nil {
		io.Cancel()
		_ = io.Close()
	}
}

// streams are what a process reads and writes.
type streams struct {
	out  *output
	in   *input
	done chan struct{} // closed when the process is over
	busy sync.WaitGroup
}

func newStreams(j *job, failed func()) *streams {
	s := &streams{out: &output{w: j.out, failed: failed}, done: make(chan struct{})}
	if j.stdin != nil {
		s.in = &input{r: j.stdin, end: make(chan struct{})}
	}
	return s
}

// serve passes on the end of the input, and the terminal's size.
func (s *streams) serve(ctx context.Context, task client.Task, j *job) {
	if s.in != nil {
		s.busy.Go(func() {
			select {
			case <-s.in.end:
				_ = task.CloseIO(ctx, client.WithStdinCloser) // the process may be over
			case <-s.done:
			}
		})
	}
	if j.resize != nil {
		s.busy.Go(func() {
			for {
				select {
				case size := <-j.resize:
					_ = task.Resize(ctx, size[0], size[1])
				case <-s.done:
					return
				}
			}
		})
	}
}

func (s *streams) close() {
	close(s.done)
	s.busy.Wait()
}

// An output takes what comes by several pipes. When it cannot be written any more, the process is stopped; what it
// still writes is dropped, or it would wait for ever.
type output struct {
	mu     sync.Mutex
	w      io.Writer
	err    error
	failed func()
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return len(p), nil
	}
	if _, err := o.w.Write(p); err != nil {
		o.err = fmt.Errorf("write the log: %w", err)
		o.failed()
	}
	return len(p), nil
}

// failure is why the log could not be written.
func (o *output) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// An input tells when it has been read to its end.
type input struct {
	r    io.Reader
	end  chan struct{}
	once sync.Once
}

func (i *input) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	if err != nil {
		i.once.Do(func() { close(i.end) })
	}
	return n, err
}
