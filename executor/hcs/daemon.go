package hcs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

const (
	namespace = "obx" // of containerd
	runLabel  = "obx.run"

	// connectPatience is how long a containerd that is just starting is waited for.
	connectPatience = 5 * time.Second

	// creationPatience is more than containerd takes to make a task, or to give it up.
	creationPatience = time.Second
)

// A daemon is a containerd as one run of obx uses it.
type daemon struct {
	address string
	client  *client.Client
	snaps   snapshots.Snapshotter
	version string
	run     string // what everything that is made there carries
}

func (o Options) complete() Options {
	if o.Address == "" {
		o.Address = defaultAddress
	}
	if o.Snapshotter == "" {
		o.Snapshotter = defaultSnapshotter
	}
	return o
}

// connect reaches the containerd that the options name.
func connect(ctx context.Context, o Options) (*daemon, error) {
	fail := func(err error) (*daemon, error) { return nil, fmt.Errorf("reach containerd at %s: %w", o.Address, err) }
	c, err := client.New(o.Address, client.WithTimeout(connectPatience), client.WithDefaultRuntime(runtimeName))
	if err != nil {
		return fail(err)
	}
	d := &daemon{address: o.Address, client: c, snaps: c.SnapshotService(o.Snapshotter)}
	if d.version, err = d.await(ctx); err != nil {
		return fail(errors.Join(fmt.Errorf("%w: %s", err, howToStart), c.Close()))
	}
	return d, nil
}

// await waits until the daemon answers, and says which version it is.
func (d *daemon) await(ctx context.Context) (version string, err error) {
	deadline := time.Now().Add(connectPatience)
	for {
		v, err := d.client.Version(d.context(ctx))
		if err == nil || !errdefs.IsUnavailable(err) || time.Now().After(deadline) || ctx.Err() != nil {
			return v.Version, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// context is for calls to the daemon.
func (d *daemon) context(ctx context.Context) context.Context {
	ctx = namespaces.WithNamespace(ctx, namespace)
	if d.run != "" {
		ctx = leases.WithLease(ctx, d.run)
	}
	return ctx
}

// begin makes the lease that keeps all that the run makes, and that it makes alone.
func (d *daemon) begin(ctx context.Context, run string) error {
	ctx = d.context(ctx)
	d.run = run // with an error too: it may have been made
	_, err := d.client.LeasesService().Create(ctx, leases.WithID(run), leases.WithLabel(runLabel, run))
	if err != nil {
		return fmt.Errorf("make a lease: %w", err)
	}
	return nil
}

// hold makes a lease for content that is there for a moment: what is made with the context that it gives, or was there, stays until drop is called, and
// goes then unless somebody else holds it.
func (d *daemon) hold(ctx context.Context) (held context.Context, drop func() error, err error) {
	ctx = d.context(ctx)
	ls := d.client.LeasesService()
	l, err := ls.Create(ctx, leases.WithRandomID(), leases.WithLabel(runLabel, d.run))
	if err != nil {
		return nil, nil, fmt.Errorf("make a lease: %w", err)
	}
	drop = func() error {
		if err := ls.Delete(context.WithoutCancel(ctx), l, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete a lease: %w", err)
		}
		return nil
	}
	return leases.WithLease(ctx, l.ID), drop, nil
}

// end removes all that a run has in containerd: this one's, or a dead one's.
func (d *daemon) end(ctx context.Context, run string) error {
	ctx = namespaces.WithNamespace(context.WithoutCancel(ctx), namespace)
	all, err := d.client.Containers(ctx, fmt.Sprintf("labels.%q==%s", runLabel, run))
	if err != nil {
		return fmt.Errorf("list containers of run %s: %w", run, err)
	}
	var errs []error
	deadline := time.Now()
	if run != d.run {
		deadline = deadline.Add(creationPatience)
	}
	for _, c := range all {
		if err := d.remove(ctx, c, deadline); err != nil {
			errs = append(errs, fmt.Errorf("remove container %s: %w", c.ID(), err))
		}
	}
	// What a lease alone has kept goes with it, before the call returns.
	ls, err := d.client.LeasesService().List(ctx, fmt.Sprintf("labels.%q==%s", runLabel, run))
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("list leases of run %s: %w", run, err))...)
	}
	for _, l := range ls {
		err := d.client.LeasesService().Delete(ctx, l, leases.SynchronousDelete)
		if err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete a lease of run %s: %w", run, err))
		}
	}
	return errors.Join(errs...)
}

// close removes all that the run has in containerd, what left removes beside it, and last its directory, and ends the connection. What cannot
// be removed keeps the directory, so that a later start tries again. r is nil if it was not made.
func (d *daemon) close(r *runDir, left func(*runDir) error) error {
	if r == nil {
		return d.client.Close()
	}
	err := errors.Join(d.end(context.Background(), r.name()), left(r))
	if err == nil {
		err = r.remove()
	} else {
		_ = r.lock.Close()
	}
	return errors.Join(err, d.client.Close())
}

// check is the line of a health report.
func (o Options) check(ctx context.Context) (string, error) {
	d, err := connect(ctx, o)
	if err != nil {
		return "", err
	}
	return d.version + " at " + o.Address, d.client.Close()
}

// remove kills what runs in a container and removes it. A task that containerd is just making is waited for until deadline: it cannot be seen, and
// when its creation has failed, because the client was killed, it needs the run's directory to be deleted.
func (d *daemon) remove(ctx context.Context, c client.Container, deadline time.Time) error {
	task, err := c.Task(ctx, nil)
	for errdefs.IsNotFound(err) && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
		task, err = c.Task(ctx, nil)
	}
	switch {
	case errdefs.IsNotFound(err):
		// If a client was killed while it deleted a task, the task may be gone, and containerd waits for who deletes it again: until then the shim
		// stays, and containerd asks that for the task.
		_, err := d.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: c.ID()})
		if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		if err := endShim(c.ID()); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if _, err := task.Delete(ctx, client.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	if err := c.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}
