package results

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
)

// InlineLog is how large a log may be to live in the record itself: most are, and a replay then reads one file a step.
const InlineLog = 64 << 10

// A Record is what the store keeps of a result: of a base image, or of a step.
type Record struct {
	Op       string `json:"op"`       // for people: `/src: (run (shell make))`, `(from busybox)`
	Preimage string `json:"preimage"` // of the key that the record is stored under
	// Input is the preimage of the step's input key, if that is another key: what `obx explain` compares with.
	Input  string `json:"input,omitempty"`
	Parent string `json:"parent,omitempty"` // content key of the result before; "" for a base
	// ID names these very files, and ParentID those that they were made on: a result made on other files under the same
	// key (rebuilt since, or not believed any more) does not fit.
	ID       string         `json:"id"`
	ParentID string         `json:"parentID,omitempty"`
	Uses     []keys.ID      `json:"uses,omitempty"`   // content keys of the build that the step copies from
	Layers   []layers.Layer `json:"layers,omitempty"` // of a base: its chain; of a step: one, or none if nothing changed
	Config   *ocispec.Image `json:"config,omitempty"` // of a base
	Ref      string         `json:"ref,omitempty"`    // of a base: where it can be had, NAME@DIGEST
	Env      keys.Context   `json:"context,omitzero"` // of a step: what its command saw
	// Mounts is of a step whose command had cache mounts: the MountTrust of its run.
	Mounts string `json:"mounts,omitempty"`

	// Local says why no other machine may have the result, nor one that was made of it; "" if any may.
	Local string `json:"local,omitempty"`

	// Pulled is set for what came from a cache: then Layers are all its layers, the base image's too, Config is the image's as of this
	// step, and nothing is below it.
	Pulled *Pulled `json:"pulled,omitempty"`

	Log     []byte        `json:"log,omitempty"`
	LogBlob digest.Digest `json:"logBlob,omitempty"` // instead of Log, when that would be large
	Took    time.Duration `json:"took,omitempty"`
}

// Pulled is what came with a result from a cache.
type Pulled struct {
	Base     int             `json:"base"`               // how many of the record's layers are the base image's
	BaseRef  string          `json:"baseRef,omitempty"`  // where the base image can be had
	Steps    []registry.Step `json:"steps"`              // of the stage up to this one
	Others   []registry.Step `json:"others,omitempty"`   // of other stages
	Envelope []byte          `json:"envelope,omitempty"` // with the signatures
}

// DecodeRecord reads the data of what the store has of a key, if this package has written it.
func DecodeRecord(res *cas.Result) (*Record, error) {
	if res.Alias != "" {
		return nil, errors.New("an alias has no record")
	}
	var rec Record
	if err := json.Unmarshal(res.Data, &rec); err != nil {
		return nil, fmt.Errorf("decode the record of %s: %w", res.Key, err)
	}
	// Either a result has one below it, or it tells all by itself.
	if rec.ID == "" || (rec.Parent == "") != (rec.Config != nil) {
		return nil, fmt.Errorf("decode the record of %s: it describes no result", res.Key)
	}
	return &rec, nil
}

// filesID names the files that a layer makes of its parent's.
func filesID(parent string, l layers.Layer) string {
	name := l.Dir
	if name == "" {
		name = l.DiffID.String()
	}
	return digest.FromString(parent + "\n" + name).Encoded()
}

// pulledID names the files of layers, wherever they come from.
func pulledID(chain []layers.Layer) string {
	id := "pulled"
	for _, l := range chain {
		id = filesID(id, layers.Layer{DiffID: l.DiffID})
	}
	return id
}

// Save makes a result visible in the first domain, and points the step's input key to it.
func (p *Places) Save(r *Result, input keys.ID) error {
	rec := r.Record
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode the record of %s: %w", r.Key, err)
	}
	res := &cas.Result{Key: r.Key.String(), Created: time.Now().UTC(), Data: data}
	if rec.Parent != "" {
		res.Parents = []string{rec.Parent}
	}
	for _, id := range rec.Uses {
		res.Parents = append(res.Parents, id.String())
	}
	for _, l := range rec.Layers {
		if l.Dir != "" {
			res.Layers = append(res.Layers, l.Dir)
		}
		if l.Blob.Digest != "" {
			res.Blobs = append(res.Blobs, l.Blob.Digest)
		}
	}
	if rec.LogBlob != "" {
		res.Blobs = append(res.Blobs, rec.LogBlob)
	}
	if pulled := rec.Pulled; pulled != nil {
		for _, step := range slices.Concat(pulled.Steps, pulled.Others) {
			if step.Log.Blob != "" {
				res.Blobs = append(res.Blobs, step.Log.Blob)
			}
		}
	}
	if err := p.Store.PutResult(p.Domains[0], res); err != nil {
		return fmt.Errorf("save result %s: %w", r.Key, err)
	}
	return p.Alias(input, r.Key)
}

// Pack has pack give the layers of a result bytes, and keeps what it gives for the next time.
func (p *Places) Pack(r *Result, pack func(layers.Layer) (layers.Layer, error)) error {
	for s := r; s != nil; s = s.Parent {
		changed := false
		for i, l := range s.Record.Layers {
			packed, err := pack(l)
			if err != nil {
				return fmt.Errorf("pack a layer of %s: %w", s.Key, err)
			}
			changed = changed || packed.Blob.Digest != l.Blob.Digest
			s.Record.Layers[i] = packed
		}
		if !changed {
			continue
		}
		// A copy of another domain's result would look as if it had been made here; and the envelope of what was pulled names the bytes that came.
		res, err := p.Store.Result(p.Domains[0], s.Key.String())
		if err != nil {
			continue
		}
		if rec, err := DecodeRecord(res); err != nil || rec.ID != s.Record.ID || rec.Pulled != nil {
			continue
		}
		if err := p.Save(s, s.Key); err != nil {
			return err
		}
	}
	return nil
}

// Alias points an input key to the content key that answers it, so that the next look-up needs no files.
func (p *Places) Alias(input, content keys.ID) error {
	if input == content {
		return nil
	}
	if known, err := p.Store.Result(p.Domains[0], input.String()); err == nil && known.Alias == content.String() {
		return nil
	}
	err := p.Store.PutResult(p.Domains[0], &cas.Result{
		Key: input.String(), Alias: content.String(), Parents: []string{content.String()}, Created: time.Now().UTC(),
	})
	if err != nil {
		return fmt.Errorf("save alias %s of result %s: %w", input, content, err)
	}
	return nil
}

// Hold leases keys: whoever is to use what they lead to does so before it looks them up.
func (p *Places) Hold(ids ...keys.ID) error {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	for _, d := range p.Domains {
		if err := p.Store.Hold(d, names...); err != nil {
			return fmt.Errorf("lease results in domain %s: %w", d, err)
		}
	}
	return nil
}
