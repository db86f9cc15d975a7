package hcs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/layers"
)

// Committed snapshots of layers are what takes time to make again (the base layers of Windows are gigabytes), so they outlive their
// run: they are named by what is in them, as those of any image, and removed when nothing has used them for some time.
const (
	rootLabel = "containerd.io/gc.root"
	usedLabel = "obx.used" // the day of the last use
)

// A stacker makes chains of a store's layers snapshots of a daemon, by the daemon's own differ.
type stacker struct {
	d     *daemon
	store *cas.Store
	keys  atomic.Int64
	puts  sync.Map // of names to *semaphore.Weighted: what two stages go on from is applied once
}

// key names an active snapshot of the run.
func (s *stacker) key() string { return s.d.run + "-" + strconv.FormatInt(s.keys.Add(1), 10) }

// chainID names the snapshot of a layer on a parent, as the OCI image specification has it.
func chainID(parent string, l layers.Layer) string {
	if parent == "" {
		return l.DiffID.String()
	}
	return digest.FromString(parent + " " + l.DiffID.String()).String()
}

// put makes a layer upon the snapshot parent a committed snapshot.
func (s *stacker) put(ctx context.Context, parent string, l layers.Layer) (name string, err error) {
	name = chainID(parent, l)
	one, _ := s.puts.LoadOrStore(name, semaphore.NewWeighted(1))
	if err := one.(*semaphore.Weighted).Acquire(ctx, 1); err != nil {
		return "", err
	}
	defer one.(*semaphore.Weighted).Release(1)
	ctx = s.d.context(ctx)
	switch info, err := s.d.snaps.Stat(ctx, name); {
	case err == nil:
		return name, s.touch(ctx, info)
	case !errdefs.IsNotFound(err):
		return "", fmt.Errorf("look for snapshot %s: %w", name, err)
	}
	ctx, drop, err := s.d.hold(ctx) // afterwards the snapshot has the data, and so has the store
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, drop()) }()
	if err := s.send(ctx, l); err != nil {
		return "", fmt.Errorf("give layer %s to containerd: %w", l.Blob.Digest, err)
	}
	return name, s.apply(ctx, name, parent, l)
}

// send makes a layer's bytes content of the daemon, which the lease of ctx holds.
func (s *stacker) send(ctx context.Context, l layers.Layer) error {
	// A write that finds the bytes there, from another run, may end without a lease of them: so they are leased before.
	id, _ := leases.FromContext(ctx)
	bytes := leases.Resource{ID: l.Blob.Digest.String(), Type: "content"}
	if err := s.d.client.LeasesService().AddResource(ctx, leases.Lease{ID: id}, bytes); err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	f, err := s.store.Blob(l.Blob.Digest)
	if err != nil {
		return err
	}
	defer f.Close()
	return content.WriteBlob(ctx, s.d.client.ContentStore(), s.key(), f, l.Blob)
}

// apply fills a snapshot with what the daemon has of a layer, as pulling would, and commits it.
func (s *stacker) apply(ctx context.Context, name, parent string, l layers.Layer) (err error) {
	// Where a snapshot to run in needs space of its own made, this prefix says that none is needed.
	key := snapshots.UnpackKeyPrefix + "-" + s.key()
	mounts, err := s.d.snaps.Prepare(ctx, key, parent)
	if err != nil {
		return fmt.Errorf("prepare a snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.drop(ctx, key))
		}
	}()
	got, err := s.d.client.DiffService().Apply(ctx, l.Blob, mounts)
	if err != nil {
		return fmt.Errorf("apply layer %s: %w", l.Blob.Digest, err)
	}
	if got.Digest != l.DiffID {
		return fmt.Errorf("apply layer %s: the uncompressed bytes have digest %s instead of %s", l.Blob.Digest, got.Digest, l.DiffID)
	}
	err = s.d.snaps.Commit(ctx, name, key, snapshots.WithLabels(map[string]string{
		rootLabel: time.Now().UTC().Format(time.RFC3339),
		usedLabel: today(),
	}))
	if errdefs.IsAlreadyExists(err) { // somebody was faster
		return s.drop(ctx, key)
	}
	if err != nil {
		return fmt.Errorf("commit snapshot %s: %w", name, err)
	}
	return nil
}

// drop removes a snapshot.
func (s *stacker) drop(ctx context.Context, key string) error {
	err := s.d.snaps.Remove(s.d.context(context.WithoutCancel(ctx)), key)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	return nil
}

// take makes what was changed in the active snapshot key upon the snapshot parent a layer of the store, and a
// committed snapshot. It does what a push and a pull would, so the layer is known to be one that can be gone on from, and
// no second copy of its data is kept.
func (s *stacker) take(ctx context.Context, key, parent string) (l layers.Layer, name string, err error) {
	fail := func(err error) (layers.Layer, string, error) { return layers.Layer{}, "", err }
	ctx, drop, err := s.d.hold(ctx)
	if err != nil {
		return fail(err)
	}
	defer func() { err = errors.Join(err, drop()) }()
	desc, err := rootfs.CreateDiff(ctx, key, s.d.snaps, s.d.client.DiffService(), diff.WithMediaType(ocispec.MediaTypeImageLayerZstd), diff.WithReference(s.key()))
	if err != nil {
		return fail(fmt.Errorf("diff snapshot %s: %w", key, err))
	}
	if l, err = s.fetch(ctx, desc); err != nil {
		return fail(fmt.Errorf("take layer %s from containerd: %w", desc.Digest, err))
	}
	name = chainID(parent, l)
	if err := s.apply(ctx, name, parent, l); err != nil {
		return fail(err)
	}
	return l, name, s.drop(ctx, key)
}

// fetch makes content of the daemon a layer of the store.
func (s *stacker) fetch(ctx context.Context, desc ocispec.Descriptor) (layers.Layer, error) {
	cs := s.d.client.ContentStore()
	info, err := cs.Info(ctx, desc.Digest)
	if err != nil {
		return layers.Layer{}, err
	}
	ra, err := cs.ReaderAt(ctx, desc)
	if err != nil {
		return layers.Layer{}, err
	}
	defer ra.Close()
	blob := ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	return layers.Load(ctx, s.store, blob, digest.Digest(info.Labels[labels.LabelUncompressed]), io.NewSectionReader(ra, 0, ra.Size()), layers.Bytes, layers.Limits{})
}

func today() string { return time.Now().UTC().Format(time.DateOnly) }

// touch notes the use of a snapshot, once a day.
func (s *stacker) touch(ctx context.Context, info snapshots.Info) error {
	if info.Labels[usedLabel] == today() {
		return nil
	}
	info.Labels[usedLabel] = today()
	if _, err := s.d.snaps.Update(ctx, info, "labels."+usedLabel); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("note the use of snapshot %s: %w", info.Name, err)
	}
	return nil
}

// prune removes committed snapshots that nobody has used for some time. Those that others need cannot be removed: their turn comes
// when the others are gone.
func (s *stacker) prune(ctx context.Context, before time.Time) error {
	ctx = s.d.context(ctx)
	for {
		var old []string
		err := s.d.snaps.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			used, err := time.Parse(time.DateOnly, info.Labels[usedLabel])
			if err == nil && used.Before(before) {
				old = append(old, info.Name)
			}
			return nil
		}, "kind==committed")
		if err != nil {
			return fmt.Errorf("list snapshots: %w", err)
		}
		removed := false
		for _, name := range old {
			removed = s.d.snaps.Remove(ctx, name) == nil || removed
		}
		if !removed {
			return nil
		}
	}
}
