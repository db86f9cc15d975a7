package layers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/cas"
)

// repacksDomain is where the store keeps which bytes a layer has in another compression.
const repacksDomain = "obx.repacks"

// Repack gives a layer whose bytes are in the store bytes in another compression, of the same diff id. Without a level in c, bytes of c's method stay
// as they are, whoever made them; a level is not seen in bytes, so they are made again, once. The media type is then what the bytes are, which that of
// a foreign layer need not be.
func Repack(ctx context.Context, st *cas.Store, l Layer, c Compression) (Layer, error) {
	if l.IsZero() {
		return l, nil
	}
	if c.Level == 0 {
		is, err := CompressionOf(st, l)
		if err != nil {
			return Layer{}, err
		}
		if is.mediaType() == c.mediaType() {
			l.Blob.MediaType = c.mediaType()
			return l, nil
		}
	}
	key := digest.FromString(fmt.Sprintln(l.DiffID, c)).Encoded()
	if err := st.Hold(repacksDomain, key); err != nil {
		return Layer{}, fmt.Errorf("repack layer: %w", err)
	}
	lock, err := st.Lock(ctx, repacksDomain, key)
	if err != nil {
		return Layer{}, err
	}
	defer lock.Unlock()
	if done, ok := repacked(st, key); ok {
		l.Blob = done.Blob
		return l, nil
	}
	packed, err := packBlob(ctx, st, l, c, func(_ context.Context, w io.Writer) error { return writePlain(st, w, l.Blob.Digest) })
	if err != nil {
		return Layer{}, err
	}
	if l.DiffID != "" && packed.DiffID != l.DiffID {
		return Layer{}, fmt.Errorf("repack layer %s: its uncompressed bytes have digest %s instead of %s", l.Blob.Digest, packed.DiffID, l.DiffID)
	}
	data, err := json.Marshal(packed)
	if err != nil {
		return Layer{}, fmt.Errorf("repack layer: %w", err)
	}
	return packed, st.PutResult(repacksDomain, &cas.Result{Key: key, Created: time.Now(), Data: data, Blobs: []digest.Digest{packed.Blob.Digest}})
}

// repacked gives what was made before.
func repacked(st *cas.Store, key string) (l Layer, ok bool) {
	res, err := st.Result(repacksDomain, key)
	if err != nil || json.Unmarshal(res.Data, &l) != nil {
		return l, false
	}
	size, ok := st.HasBlob(l.Blob.Digest)
	st.Touch(repacksDomain, key)
	return l, ok && size == l.Blob.Size
}

// CompressionOf looks at the bytes of a layer that are in the store. It sees no level.
func CompressionOf(st *cas.Store, l Layer) (Compression, error) {
	f, err := st.Blob(l.Blob.Digest)
	if err != nil {
		return Compression{}, fmt.Errorf("look at layer: %w", err)
	}
	defer f.Close()
	magic := make([]byte, 4)
	n, err := f.ReadAt(magic, 0)
	if err != nil && err != io.EOF {
		return Compression{}, fmt.Errorf("look at layer: %w", err)
	}
	return Compression{Algorithm: algorithmOf(magic[:n])}, nil
}

// writePlain writes a blob uncompressed.
func writePlain(st *cas.Store, w io.Writer, d digest.Digest) error {
	f, err := st.Blob(d)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := decompress(io.NewSectionReader(f, 0, math.MaxInt64))
	if err != nil {
		return fmt.Errorf("decompress: %w", err)
	}
	defer z.Close()
	if _, err := io.Copy(w, z); err != nil {
		return fmt.Errorf("decompress: %w", err)
	}
	return nil
}
