package layers

import (
	"context"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/cas/foreign"
)

// Pack makes sure that a layer has bytes: packs its directory into a blob of st if it has none. Deterministic: the same
// directory gives the same DiffID anywhere. Bounded memory.
func Pack(ctx context.Context, st *cas.Store, l Layer, c Compression) (Layer, error) {
	if l.IsZero() || l.Blob.Digest != "" {
		return l, nil
	}
	return packBlob(ctx, st, l, c, func(ctx context.Context, w io.Writer) error { return writeLayer(ctx, w, st.LayerPath(l.Dir)) })
}

// packBlob makes a blob of what write writes.
func packBlob(ctx context.Context, st *cas.Store, l Layer, c Compression, write func(context.Context, io.Writer) error) (Layer, error) {
	blob, err := st.NewBlob()
	if err != nil {
		return Layer{}, fmt.Errorf("pack layer: %w", err)
	}
	defer blob.Close()
	diffID, size, err := pack(ctx, blob, c, write)
	if err != nil {
		return Layer{}, fmt.Errorf("pack layer: %w", err)
	}
	d, n, err := blob.Commit("")
	if err != nil {
		return Layer{}, fmt.Errorf("pack layer: %w", err)
	}
	l.DiffID, l.Size = diffID, size
	l.Blob = ocispec.Descriptor{MediaType: c.mediaType(), Digest: d, Size: n}
	return l, nil
}

// pack writes a layer's bytes compressed, and tells the digest and size of the uncompressed ones.
func pack(ctx context.Context, w io.Writer, c Compression, write func(context.Context, io.Writer) error) (digest.Digest, int64, error) {
	z, err := c.writer(w, packJobs())
	if err != nil {
		return "", 0, err
	}
	h := digest.SHA256.Digester()
	var size int64
	t := newTee(2)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := write(ctx, t)
		t.close(err)
		return err
	})
	g.Go(func() (err error) {
		defer func() { t.readers[0].close(err) }()
		size, err = io.Copy(h.Hash(), t.readers[0])
		return err
	})
	g.Go(func() (err error) {
		defer func() { t.readers[1].close(err) }()
		if _, err := io.Copy(z, t.readers[1]); err != nil {
			z.Close() // ends its goroutines
			return err
		}
		return z.Close()
	})
	if err := g.Wait(); err != nil {
		return "", 0, err
	}
	return h.Digest(), size, nil
}

// WriteTree writes a whole tree as an uncompressed tar, without an entry for its root. Sockets are left out.
func WriteTree(ctx context.Context, w io.Writer, t Tree) error {
	tw := newTarWriter(w)
	if err := tw.tree(ctx, t, &foreign.Level{}); err != nil {
		return fmt.Errorf("write tree: %w", err)
	}
	return tw.close()
}

func (t *tarWriter) tree(ctx context.Context, tree Tree, dir *foreign.Level) error {
	entries, err := tree.ReadDir(dir.String())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := CheckDepth(dir, e.Name()); err != nil {
			return err
		}
		if err := t.treeEntry(ctx, tree, dir.Child(e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (t *tarWriter) treeEntry(ctx context.Context, tree Tree, at *foreign.Level) error {
	name := at.String()
	fi, err := tree.Lstat(name)
	if err != nil {
		return err
	}
	if fi.Mode().Type() == fs.ModeSocket {
		return nil
	}
	h, ino := headerOf(fi)
	if fi.Mode().Type() == fs.ModeSymlink {
		if h.Linkname, err = tree.ReadLink(name); err != nil {
			return err
		}
	}
	xattrs, err := tree.Xattrs(name)
	if err != nil {
		return err
	}
	if err := t.add(at, &h, ino, xattrs, func(w io.Writer) error { return t.copyFile(ctx, w, tree, name, fi) }); err != nil {
		return err
	}
	if fi.IsDir() {
		return t.tree(ctx, tree, at)
	}
	return nil
}

func (t *tarWriter) copyFile(ctx context.Context, w io.Writer, tree Tree, name string, fi fs.FileInfo) error {
	f, err := tree.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	holes, err := holesIn(f, fi)
	if err == nil {
		err = t.addHoles(holes)
	}
	if err != nil {
		return err
	}
	for {
		n, err := f.Read(t.buf)
		if _, werr := w.Write(t.buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
