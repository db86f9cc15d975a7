package build

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build/results"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry/images"
)

// An OutputSpec is where a build's result is written to.
type OutputSpec struct {
	Type  string   // "tar" (the files), "local" (the files, into a directory), "oci", "docker" or "registry" (an image)
	Dest  string   // a file, or a directory for local; "-" is standard output; none for registry
	Names []string // of an image: recorded in it, or, of type registry, where it is pushed to
	Dir   bool     // oci: Dest is an OCI layout directory

	KeepSetuid bool        // local: files keep set-user-ID and set-group-ID bits and capabilities
	Image      ImageChange // what the image says, beside what the spec does
	Untagged   bool        // registry: push the image alone, for an index that will name it
}

// String names an output for errors.
func (o OutputSpec) String() string {
	if o.Type == "registry" {
		return "type=registry,name=" + strings.Join(o.Names, ",name=")
	}
	return "type=" + o.Type + ",dest=" + o.Dest
}

// Written says what an output has become.
type Written struct {
	What   string        // "files", "image" or "index"
	Names  []string      // of an image
	Where  string        // a file or directory; none for registry
	Size   int64         // bytes of a file; of an image elsewhere, of its layers; of a directory, of its files as a tar
	Sent   int64         // registry: bytes that it did not have
	Digest digest.Digest // of an image, its manifest's; of files, that of their tar

	Manifest ocispec.Descriptor // of an image
}

// Write writes the result of the outermost stage of a plan that Run has built.
func (b *Builder) Write(ctx context.Context, p *keys.Plan, rep *Report, o OutputSpec, stdout io.Writer) (Written, error) {
	id, err := keys.ParseID(rep.Key)
	if err != nil {
		return Written{}, err
	}
	// Another process may have rebuilt the record, or one below it, by now. The files of this one are leased.
	places, top := b.places(nil), rep.result
	if top == nil || !top.Here() {
		var missing keys.ID
		if top, missing = places.Load(id); top == nil {
			return Written{}, fmt.Errorf("result %s is no longer in the store: run the build again", missing)
		}
	}
	wrote := Written{What: "files", Where: o.Dest, Names: o.Names}
	if o.Type == "tar" || o.Type == "local" {
		err = b.withTree(ctx, top, func(t layers.Tree) error { return b.writeFiles(ctx, t, o, stdout, &wrote) })
	} else {
		wrote.What = "image"
		err = b.writeImage(ctx, places, p, top, o, stdout, &wrote)
	}
	if err := b.Store.Full(err); err != nil {
		return Written{}, fmt.Errorf("write output %s: %w", o, err)
	}
	return wrote, nil
}

func (b *Builder) writeFiles(ctx context.Context, t layers.Tree, o OutputSpec, stdout io.Writer, wrote *Written) (err error) {
	h := digest.SHA256.Digester()
	counter := &countingWriter{w: h.Hash()}
	if o.Type == "tar" {
		err = toFile(o.Dest, stdout, func(w io.Writer) error { return layers.WriteTree(ctx, io.MultiWriter(w, counter), t) })
	} else {
		err = toDir(o.Dest, func(dir string) error { return b.export(ctx, dir, t, o, counter) })
	}
	wrote.Size, wrote.Digest = counter.n, h.Digest()
	return err
}

func (b *Builder) writeImage(
	ctx context.Context, places *results.Places, p *keys.Plan, top *results.Result, o OutputSpec, stdout io.Writer, wrote *Written,
) error {
	img, err := b.image(ctx, places, p, top, o)
	if err != nil {
		return err
	}
	toTar := func(write func(w io.Writer) (ocispec.Descriptor, error)) error {
		return toFile(o.Dest, stdout, func(w io.Writer) (err error) {
			counter := &countingWriter{w: w}
			wrote.Manifest, err = write(counter)
			wrote.Size = counter.n
			return err
		})
	}
	switch {
	case o.Type == "registry":
		err = b.pushImage(ctx, top, img, o, wrote)
	case o.Type == "docker":
		err = toTar(func(w io.Writer) (ocispec.Descriptor, error) {
			return images.WriteDocker(ctx, w, b.Store, img, o.Names...)
		})
	case o.Dir:
		wrote.Size = sizeOf(img)
		err = toDir(o.Dest, func(dir string) (err error) {
			wrote.Manifest, err = images.WriteOCIDir(ctx, dir, b.Store, img, o.Names...)
			return err
		})
	default:
		err = toTar(func(w io.Writer) (ocispec.Descriptor, error) {
			return images.WriteOCI(ctx, w, b.Store, img, o.Names...)
		})
	}
	wrote.Digest = wrote.Manifest.Digest
	return err
}

// sizeOf is how many bytes the layers of an image have.
func sizeOf(img images.Image) (n int64) {
	for _, l := range img.Layers {
		n += l.Blob.Size
	}
	return n
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// export writes files into a directory, and warns of those that are left out.
func (b *Builder) export(ctx context.Context, dir string, t layers.Tree, o OutputSpec, asTar io.Writer) error {
	left, err := layers.ExportTree(ctx, dir, t, o.KeepSetuid, asTar)
	if err == nil && left.Count > 0 && b.Events != nil {
		b.Events(Event{Kind: Warned, Time: time.Now(), Message: fmt.Sprintf(
			"output %s: device nodes are left out, %d in all, the first is /%s: type=tar has them", o.Dest, left.Count, left.First)})
	}
	return err
}

// withTree opens the files of a result.
func (b *Builder) withTree(ctx context.Context, s *results.Result, use func(layers.Tree) error) (err error) {
	var r root
	if err := b.open(ctx, &r, s); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	tree, err := r.Files(ctx)
	if err != nil {
		return err
	}
	return use(tree)
}

// image describes a result as an image: every layer packed, and a configuration that starts a container where a step
// after the last operation would have run.
func (b *Builder) image(ctx context.Context, places *results.Places, p *keys.Plan, top *results.Result, o OutputSpec) (images.Image, error) {
	c := b.Compression
	if o.Type == "docker" && c.Algorithm == "" {
		c.Algorithm = "gzip" // Docker reads zstd since its version 23
	}
	if err := b.pack(ctx, places, top, c); err != nil {
		return images.Image{}, err
	}
	chain := top.Layers()
	base, _ := top.Base()
	for i, l := range chain {
		// Others have a base image's layers as they are: they are changed for who asks for it, or could not read them.
		if i < base && b.Compression.Algorithm == "" {
			is, err := layers.CompressionOf(b.Store, l)
			if err != nil {
				return images.Image{}, err
			}
			if o.Type != "docker" || is.Algorithm != "zstd" {
				continue
			}
		}
		var err error
		if chain[i], err = layers.Repack(ctx, b.Store, l, c); err != nil {
			return images.Image{}, err
		}
	}
	outer := p.Stages[len(p.Stages)-1]
	cfg := top.Config(outer.Base.Platform)
	results.SetContext(&cfg.Config, top.BaseConfig(), outer.Contexts[len(outer.Spec.Ops)])
	o.Image.apply(&cfg)
	return images.Image{Config: cfg, Layers: chain}, nil
}

// pack makes sure that the layers of a result have bytes. Bytes that are not in the store come from the cache that has them; if there is none, the layer
// is packed again.
func (b *Builder) pack(ctx context.Context, places *results.Places, top *results.Result, c layers.Compression) error {
	asked := false
	return places.Pack(top, func(l layers.Layer) (packed layers.Layer, err error) {
		if b.lacksBytes(l) && !asked {
			asked = true
			if err := places.FetchBytes(ctx, top); err != nil {
				return l, err
			}
		}
		if b.lacksBytes(l) && l.Dir != "" {
			l = layers.Layer{Dir: l.Dir}
		}
		err = b.Store.WithRoom(ctx, func() (err error) {
			packed, err = layers.Pack(ctx, b.Store, l, c)
			return err
		})
		return packed, err
	})
}

// lacksBytes reports a layer that has been packed, but whose bytes are not in the store.
func (b *Builder) lacksBytes(l layers.Layer) bool {
	if l.Blob.Digest == "" {
		return false
	}
	_, ok := b.Store.HasBlob(l.Blob.Digest)
	return !ok
}

// toDir writes a directory. A new one is for its owner alone, for what is in it was not made with this machine's users
// in mind, and appears when it is whole. One that exists is added to, and keeps what was written when writing fails.
func toDir(dest string, write func(dir string) error) error {
	dest = filepath.Clean(dest)
	if _, err := os.Lstat(dest); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return err
		}
		return write(dest)
	}
	parent := filepath.Dir(dest)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(parent, "."+filepath.Base(dest)+".*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // nothing, when it is renamed
	if err := write(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, dest)
}

// toFile writes a file that appears when it is whole.
func toFile(dest string, stdout io.Writer, write func(io.Writer) error) error {
	if dest == "-" {
		return write(stdout)
	}
	if info, err := os.Stat(dest); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(dest, os.O_WRONLY, 0) // a device or a pipe cannot be replaced
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	// The user's mask says who may read it, as of any file.
	f, err := os.OpenFile(filepath.Join(filepath.Dir(dest), "."+filepath.Base(dest)+"."+rand.Text()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = errors.Join(write(f), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), dest)
}

// StateBefore makes sure that everything before a step is there, by building it where it is not, and gives the key of
// the state that the step starts from.
func (b *Builder) StateBefore(ctx context.Context, p *keys.Plan, step *keys.Step) (string, error) {
	rep, err := b.run(ctx, cutAt(p, step), true)
	if err != nil {
		return "", err
	}
	return rep.Key, nil
}

// cutAt is the part of a plan that a step needs: its stage up to the step, as the outermost stage, and the stages that
// it copies from.
func cutAt(p *keys.Plan, step *keys.Step) *keys.Plan {
	stage := *step.Stage
	ops := *stage.Spec
	ops.Ops = ops.Ops[:step.OpIndex]
	stage.Spec, stage.Steps, stage.Parent, stage.Users = &ops, stage.Steps[:step.Index], nil, 0
	stage.Contexts = stage.Contexts[:step.OpIndex+1]
	users := map[*keys.Stage]int{}
	var need func(s []*keys.Step)
	need = func(steps []*keys.Step) {
		for _, s := range steps {
			if s.From == nil {
				continue
			}
			if users[s.From]++; users[s.From] == 1 {
				need(s.From.Steps)
			}
		}
	}
	need(stage.Steps)
	cut := &keys.Plan{Platform: p.Platform, Salt: p.Salt}
	renamed := map[*keys.Stage]*keys.Stage{}
	for _, s := range p.Stages {
		if users[s] > 0 {
			c := *s
			c.Users = users[s]
			renamed[s] = &c
			cut.Stages = append(cut.Stages, &c)
		}
	}
	cut.Stages = append(cut.Stages, &stage)
	for _, s := range cut.Stages {
		if r, ok := renamed[s.Parent]; ok {
			s.Parent = r
		} else if s != &stage {
			s.Parent = &stage
		}
		steps := make([]*keys.Step, len(s.Steps))
		for i, old := range s.Steps {
			c := *old
			c.Stage, c.From = s, renamed[old.From]
			steps[i] = &c
		}
		s.Steps = steps
		cut.Steps = append(cut.Steps, steps...)
	}
	return cut
}

// A Session is an interactive command in the state of a result.
type Session struct {
	Context keys.Context // env, user, directory and shell
	Argv    []string     // empty: the context's shell, interactive
	Network executor.Network
	TTY     *os.File // nil: Stdin and Output are used
	Stdin   *os.File
	Output  io.Writer
}

// defaultPath is where a session looks for commands if neither the image nor the spec says: Docker's default.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Shell runs a session. What it changes is dropped.
func (b *Builder) Shell(ctx context.Context, key string, s Session) (err error) {
	id, err := keys.ParseID(key)
	if err != nil {
		return err
	}
	top, missing := b.places(nil).Load(id)
	if top == nil {
		return fmt.Errorf("result %s is not in the store", missing)
	}
	var r root
	if err := b.open(ctx, &r, top); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	p := executor.Process{
		Argv:     s.Argv,
		Env:      results.Environ(top.BaseConfig(), s.Context),
		Dir:      s.Context.Workdir,
		UID:      s.Context.User.UID,
		GID:      s.Context.User.GID,
		User:     s.Context.User.Name,
		Hostname: hostname,
		Network:  s.Network,
		Limits:   b.Limits,
		Stdin:    s.Stdin,
	}
	if len(p.Argv) == 0 {
		// The last word of a shell is what makes it take a command: -c.
		p.Argv = s.Context.Shell[:max(1, len(s.Context.Shell)-1)]
	}
	if cfg := top.BaseConfig(); (cfg == nil || cfg.OS != "windows") && !slices.ContainsFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, "PATH=") }) {
		// Whoever types a command expects it to be found, whatever the image says; a step has what the image and the spec say.
		p.Env = append(p.Env, "PATH="+defaultPath)
	}
	if s.TTY != nil {
		p.Stdin, p.Terminal = s.TTY, true
		if !slices.ContainsFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, "TERM=") }) {
			p.Env = append(p.Env, "TERM="+os.Getenv("TERM"))
		}
	}
	return r.Run(ctx, p, s.Output)
}
