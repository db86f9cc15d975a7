package hcs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Microsoft/go-winio"
	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A fakeContainerd is a containerd on a named pipe that runs nothing: its content store is containerd's own, everything else
// keeps what it is told in memory and notes it. What a process does is a function.
type fakeContainerd struct {
	t       *testing.T
	pipe    string
	content content.Store

	mu         sync.Mutex
	calls      []string
	fail       string // the call that fails
	snapshots  map[string]*snapshots.Info
	containers map[string]*containersapi.Container
	leases     map[string]*leasesapi.Lease
	tasks      map[string]*fakeTask
	program    func(s *specs.Spec, stdout, stderr io.Writer, killed <-chan struct{}) uint32

	versionapi.UnimplementedVersionServer
}

type fakeTask struct {
	req    *tasksapi.CreateTaskRequest
	killed chan struct{}
	ended  chan struct{}
	once   sync.Once
	status uint32

	started bool
}

func (f *fakeContainerd) call(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := fmt.Sprintf(format, args...)
	f.calls = append(f.calls, c)
	if name, _, _ := strings.Cut(c, " "); name == f.fail {
		return status.Error(codes.Internal, "fake: "+name+" fails")
	}
	return nil
}

// startFake starts one.
func startFake(t *testing.T) *fakeContainerd {
	t.Helper()
	f := &fakeContainerd{
		t: t, pipe: fmt.Sprintf(`\\.\pipe\obx-fake-%d`, time.Now().UnixNano()),
		snapshots: map[string]*snapshots.Info{}, containers: map[string]*containersapi.Container{},
		leases: map[string]*leasesapi.Lease{}, tasks: map[string]*fakeTask{},
	}
	var err error
	if f.content, err = local.NewLabeledStore(t.TempDir(), &labelStore{all: map[digest.Digest]map[string]string{}}); err != nil {
		t.Fatal(err)
	}
	l, err := winio.ListenPipe(f.pipe, nil)
	if err != nil {
		t.Fatal(err)
	}
	dialAway(f.pipe)
	s := grpc.NewServer()
	versionapi.RegisterVersionServer(s, f)
	contentapi.RegisterContentServer(s, contentserver.New(f.content))
	snapshotsapi.RegisterSnapshotsServer(s, snapshotservice.FromSnapshotter(fakeSnapshots{f}))
	diffapi.RegisterDiffServer(s, diffservice.FromApplierAndComparer(fakeDiffer{f}, fakeDiffer{f}))
	containersapi.RegisterContainersServer(s, fakeContainers{f: f})
	leasesapi.RegisterLeasesServer(s, fakeLeases{f: f})
	tasksapi.RegisterTasksServer(s, fakeTasks{f: f})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		<-served
	})
	return f
}

// dialAway opens a new pipe once for nothing: Wine lets a client take the instance that go-winio never listens on.
func dialAway(name string) {
	timeout := time.Second
	if c, err := winio.DialPipe(name, &timeout); err == nil {
		c.Close()
	}
}

func (f *fakeContainerd) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	return &versionapi.VersionResponse{Version: "fake"}, nil
}

type labelStore struct {
	mu  sync.Mutex
	all map[digest.Digest]map[string]string
}

func (l *labelStore) Get(d digest.Digest) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all[d], nil
}

func (l *labelStore) Set(d digest.Digest, m map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all[d] = m
	return nil
}

func (l *labelStore) Update(d digest.Digest, m map[string]string) (map[string]string, error) {
	return m, l.Set(d, m)
}

// ---- snapshots, by containerd's rules for Windows: one mount, with the paths of all parents

type fakeSnapshots struct{ f *fakeContainerd }

func (s fakeSnapshots) mounts(i *snapshots.Info) []mount.Mount {
	var parents []string
	for p := i.Parent; p != ""; p = s.f.snapshots[p].Parent {
		parents = append(parents, `C:\fake\`+p)
	}
	b, _ := json.Marshal(parents)
	return []mount.Mount{{Type: "windows-layer", Source: `C:\fake\` + i.Name, Options: []string{"rw", mount.ParentLayerPathsFlag + string(b)}}}
}

func (s fakeSnapshots) make(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	if err := s.f.call("%s %s on %s", kind, key, parent); err != nil {
		return nil, err
	}
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	if _, ok := s.f.snapshots[key]; ok {
		return nil, errdefs.ErrAlreadyExists
	}
	if p := s.f.snapshots[parent]; parent != "" && (p == nil || p.Kind != snapshots.KindCommitted) {
		return nil, fmt.Errorf("parent %s: %w", parent, errdefs.ErrNotFound)
	}
	i := &snapshots.Info{Kind: kind, Name: key, Parent: parent}
	for _, o := range opts {
		if err := o(i); err != nil {
			return nil, err
		}
	}
	s.f.snapshots[key] = i
	return s.mounts(i), nil
}

func (s fakeSnapshots) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.make(ctx, snapshots.KindActive, key, parent, opts)
}

func (s fakeSnapshots) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.make(ctx, snapshots.KindView, key, parent, opts)
}

func (s fakeSnapshots) find(key string) (*snapshots.Info, error) {
	if i, ok := s.f.snapshots[key]; ok {
		return i, nil
	}
	return nil, fmt.Errorf("snapshot %s: %w", key, errdefs.ErrNotFound)
}

func (s fakeSnapshots) Mounts(_ context.Context, key string) ([]mount.Mount, error) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	i, err := s.find(key)
	if err != nil {
		return nil, err
	}
	return s.mounts(i), nil
}

func (s fakeSnapshots) Stat(_ context.Context, key string) (snapshots.Info, error) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	i, err := s.find(key)
	if err != nil {
		return snapshots.Info{}, err
	}
	return *i, nil
}

func (s fakeSnapshots) Update(_ context.Context, info snapshots.Info, _ ...string) (snapshots.Info, error) {
	return info, nil
}

func (s fakeSnapshots) Usage(context.Context, string) (snapshots.Usage, error) {
	return snapshots.Usage{}, nil
}

func (s fakeSnapshots) Commit(_ context.Context, name, key string, opts ...snapshots.Opt) error {
	if err := s.f.call("Commit %s as %s", key, name); err != nil {
		return err
	}
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	i, err := s.find(key)
	if err != nil {
		return err
	}
	if _, ok := s.f.snapshots[name]; ok {
		return errdefs.ErrAlreadyExists
	}
	delete(s.f.snapshots, key)
	i.Kind, i.Name = snapshots.KindCommitted, name
	for _, o := range opts {
		if err := o(i); err != nil {
			return err
		}
	}
	s.f.snapshots[name] = i
	return nil
}

func (s fakeSnapshots) Remove(_ context.Context, key string) error {
	if err := s.f.call("Remove %s", key); err != nil {
		return err
	}
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	if _, err := s.find(key); err != nil {
		return err
	}
	delete(s.f.snapshots, key)
	return nil
}

func (s fakeSnapshots) Walk(ctx context.Context, fn snapshots.WalkFunc, _ ...string) error {
	s.f.mu.Lock()
	var all []snapshots.Info
	for _, i := range s.f.snapshots {
		if i.Kind == snapshots.KindCommitted {
			all = append(all, *i)
		}
	}
	s.f.mu.Unlock()
	for _, i := range all {
		if err := fn(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

func (s fakeSnapshots) Close() error { return nil }

// ---- the differ: a layer has one file, named by the snapshot that it is a diff of

type fakeDiffer struct{ f *fakeContainerd }

func (d fakeDiffer) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	if err := d.f.call("Apply to %s", mounts[0].Source); err != nil {
		return ocispec.Descriptor{}, err
	}
	if !strings.Contains(mounts[0].Source, snapshots.UnpackKeyPrefix) {
		return ocispec.Descriptor{}, errors.New("fake: applied to a snapshot that is to be run in")
	}
	b, err := content.ReadBlob(ctx, d.f.content, desc)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var r io.Reader = bytes.NewReader(b)
	if strings.HasSuffix(desc.MediaType, "gzip") {
		if r, err = gzip.NewReader(r); err != nil {
			return ocispec.Descriptor{}, err
		}
	} else if strings.HasSuffix(desc.MediaType, "zstd") {
		z, err := zstd.NewReader(r)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		defer z.Close()
		r = z
	}
	h := digest.SHA256.Digester()
	n, err := io.Copy(h.Hash(), r)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: h.Digest(), Size: n}, err
}

func (d fakeDiffer) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error) {
	if err := d.f.call("Compare %s", upper[0].Source); err != nil {
		return ocispec.Descriptor{}, err
	}
	// Windows's differ wants exactly the direct parent.
	up, err := upper[0].GetParentPaths()
	low, lerr := lower[0].GetParentPaths()
	if err := errors.Join(err, lerr); err != nil {
		return ocispec.Descriptor{}, err
	}
	if len(up) == 0 || !slices.Equal(up[1:], low[min(1, len(low)):]) || up[0] != low[0] {
		return ocispec.Descriptor{}, fmt.Errorf("fake: %q is not the direct parent of %q", low, up)
	}
	var config diff.Config
	for _, o := range opts {
		if err := o(&config); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	var plain, packed bytes.Buffer
	tw := tar.NewWriter(&plain)
	if err := tw.WriteHeader(&tar.Header{Name: "Files/" + fmt.Sprint(len(up)), Mode: 0o666}); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := tw.Close(); err != nil {
		return ocispec.Descriptor{}, err
	}
	z, err := zstd.NewWriter(&packed)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if _, err := z.Write(plain.Bytes()); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := z.Close(); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: config.MediaType, Digest: digest.FromBytes(packed.Bytes()), Size: int64(packed.Len())}
	err = content.WriteBlob(ctx, d.f.content, config.Reference, &packed, desc, content.WithLabels(map[string]string{labels.LabelUncompressed: digest.FromBytes(plain.Bytes()).String()}))
	return desc, err
}

// ---- containers and leases

type fakeContainers struct {
	f *fakeContainerd
	containersapi.UnimplementedContainersServer
}

func (c fakeContainers) Create(_ context.Context, r *containersapi.CreateContainerRequest) (*containersapi.CreateContainerResponse, error) {
	if err := c.f.call("NewContainer %s %s", r.Container.ID, r.Container.Runtime.Name); err != nil {
		return nil, err
	}
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	c.f.containers[r.Container.ID] = r.Container
	return &containersapi.CreateContainerResponse{Container: r.Container}, nil
}

func (c fakeContainers) Get(_ context.Context, r *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if x, ok := c.f.containers[r.ID]; ok {
		return &containersapi.GetContainerResponse{Container: x}, nil
	}
	return nil, status.Error(codes.NotFound, "fake: no container "+r.ID)
}

func (c fakeContainers) List(_ context.Context, r *containersapi.ListContainersRequest) (*containersapi.ListContainersResponse, error) {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	var all []*containersapi.Container
	for _, x := range c.f.containers {
		if strings.HasSuffix(r.Filters[0], "=="+x.Labels[runLabel]) {
			all = append(all, x)
		}
	}
	return &containersapi.ListContainersResponse{Containers: all}, nil
}

func (c fakeContainers) ListStream(*containersapi.ListContainersRequest, containersapi.Containers_ListStreamServer) error {
	return status.Error(codes.Unimplemented, "fake")
}

func (c fakeContainers) Delete(_ context.Context, r *containersapi.DeleteContainerRequest) (*emptypb.Empty, error) {
	if err := c.f.call("DeleteContainer %s", r.ID); err != nil {
		return nil, err
	}
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	delete(c.f.containers, r.ID)
	return &emptypb.Empty{}, nil
}

type fakeLeases struct {
	f *fakeContainerd
	leasesapi.UnimplementedLeasesServer
}

func (l fakeLeases) Create(_ context.Context, r *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	x := &leasesapi.Lease{ID: r.ID, Labels: r.Labels}
	l.f.leases[r.ID] = x
	return &leasesapi.CreateResponse{Lease: x}, nil
}

func (l fakeLeases) List(_ context.Context, r *leasesapi.ListRequest) (*leasesapi.ListResponse, error) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	var all []*leasesapi.Lease
	for _, x := range l.f.leases {
		if strings.HasSuffix(r.Filters[0], "=="+x.Labels[runLabel]) {
			all = append(all, x)
		}
	}
	return &leasesapi.ListResponse{Leases: all}, nil
}

// AddResource refuses what no lease is for. The fake removes no content, so there is nothing to keep.
func (l fakeLeases) AddResource(_ context.Context, r *leasesapi.AddResourceRequest) (*emptypb.Empty, error) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	if l.f.leases[r.ID] == nil {
		return nil, status.Errorf(codes.NotFound, "lease %q", r.ID)
	}
	return &emptypb.Empty{}, nil
}

// Delete removes what the lease alone has kept: the run's snapshots that are not committed.
func (l fakeLeases) Delete(_ context.Context, r *leasesapi.DeleteRequest) (*emptypb.Empty, error) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	delete(l.f.leases, r.ID)
	for key, i := range l.f.snapshots {
		if i.Kind != snapshots.KindCommitted && strings.Contains(key, r.ID) {
			delete(l.f.snapshots, key)
		}
	}
	return &emptypb.Empty{}, nil
}

// ---- tasks

type fakeTasks struct {
	f *fakeContainerd
	tasksapi.UnimplementedTasksServer
}

func (s fakeTasks) task(id string) (*fakeTask, error) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	if t, ok := s.f.tasks[id]; ok {
		return t, nil
	}
	return nil, status.Error(codes.NotFound, "fake: no task "+id)
}

func (s fakeTasks) Create(_ context.Context, r *tasksapi.CreateTaskRequest) (*tasksapi.CreateTaskResponse, error) {
	if err := s.f.call("NewTask %s %s", r.ContainerID, r.Rootfs[0].Type); err != nil {
		return nil, err
	}
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.f.tasks[r.ContainerID] = &fakeTask{req: r, killed: make(chan struct{}), ended: make(chan struct{})}
	return &tasksapi.CreateTaskResponse{ContainerID: r.ContainerID, Pid: 4242}, nil
}

func (s fakeTasks) Start(_ context.Context, r *tasksapi.StartRequest) (*tasksapi.StartResponse, error) {
	if err := s.f.call("Start %s", r.ContainerID); err != nil {
		return nil, err
	}
	t, err := s.task(r.ContainerID)
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	s.f.mu.Lock()
	err = json.Unmarshal(s.f.containers[r.ContainerID].Spec.Value, &spec)
	s.f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var conns []net.Conn
	for _, name := range []string{t.req.Stdout, t.req.Stderr} {
		dialAway(name)
		c, err := winio.DialPipe(name, nil)
		if err != nil {
			return nil, err
		}
		conns = append(conns, c)
	}
	t.started = true
	go func() {
		t.status = s.f.program(&spec, conns[0], conns[1], t.killed)
		close(t.ended)
		time.Sleep(50 * time.Millisecond) // a shim's copying may lag behind
		for _, c := range conns {
			c.Close()
		}
	}()
	return &tasksapi.StartResponse{Pid: 4242}, nil
}

func (s fakeTasks) Wait(ctx context.Context, r *tasksapi.WaitRequest) (*tasksapi.WaitResponse, error) {
	t, err := s.task(r.ContainerID)
	if err != nil {
		return nil, err
	}
	select {
	case <-t.ended:
		return &tasksapi.WaitResponse{ExitStatus: t.status, ExitedAt: timestamppb.Now()}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s fakeTasks) Get(_ context.Context, r *tasksapi.GetRequest) (*tasksapi.GetResponse, error) {
	t, err := s.task(r.ContainerID)
	if err != nil {
		return nil, err
	}
	p := &taskapi.Process{ID: r.ContainerID, ContainerID: r.ContainerID, Pid: 4242, Status: taskapi.Status_RUNNING}
	select {
	case <-t.ended:
		p.Status = taskapi.Status_STOPPED
	default:
	}
	return &tasksapi.GetResponse{Process: p}, nil
}

func (s fakeTasks) Kill(_ context.Context, r *tasksapi.KillRequest) (*emptypb.Empty, error) {
	if err := s.f.call("Kill %s", r.ContainerID); err != nil {
		return nil, err
	}
	t, err := s.task(r.ContainerID)
	if err != nil {
		return nil, err
	}
	t.once.Do(func() {
		close(t.killed)
		if !t.started {
			close(t.ended)
		}
	})
	return &emptypb.Empty{}, nil
}

func (s fakeTasks) Delete(_ context.Context, r *tasksapi.DeleteTaskRequest) (*tasksapi.DeleteResponse, error) {
	if err := s.f.call("DeleteTask %s", r.ContainerID); err != nil {
		return nil, err
	}
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	delete(s.f.tasks, r.ContainerID)
	return &tasksapi.DeleteResponse{}, nil
}
