package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/cas/foreign"
	"github.com/ocurrent/obx/layers"
)

// mergesDomain is where the store keeps which layer a range of layers was merged into.
const mergesDomain = "obx.merges"

// A part is a layer of an image: one of a step, or several merged.
type part struct {
	layers.Layer
	members int // of how many steps' layers it was merged
}

// A span is a range of positions among the own layers of an image, those of its steps.
type span struct{ from, to int }

// radix is how many layers, or ranges of the level below, are merged into one, above a base of so many layers: as many as leave room
// for 4096 own layers and more. 0: none does.
func radix(base int) int {
	switch {
	case base <= 27:
		return 32
	case base <= 75:
		return 16
	case base <= 92:
		return 8
	case base <= 102:
		return 4
	case base <= 108:
		return 2
	}
	return 0
}

// spans says which of n own layers stand together in an image above a base of so many layers: each by itself as long as that gives no
// more than 120; else complete ranges of radix, radix², ... layers, each at a multiple of its length, the largest that fit. So a range
// has the same place in all images that have it, and is merged once.
func spans(base, n int) ([]span, error) {
	step, size := radix(base), 1
	if base+n > maxImageLayers {
		if step == 0 {
			return nil, fmt.Errorf("the base image has %d layers, which leaves no room for %d more: an image has at most %d", base, n, maxImageLayers)
		}
		for size*step <= n {
			size *= step
		}
	}
	var all []span
	for at := 0; at < n; {
		for at+size > n {
			size /= step
		}
		all = append(all, span{at, at + size})
		at += size
	}
	if base+len(all) > maxImageLayers {
		return nil, fmt.Errorf("%d layers on a base of %d are too many", n, base)
	}
	return all, nil
}

// arrange says which layers an image lists for those of a result, and how many of them lead to each state: counts[i] belongs to the first i of
// r.Layers, and is -1 if no layer ends there.
func (c *Cache) arrange(ctx context.Context, r *Result) (parts []part, counts []int, err error) {
	own := make([]part, len(r.Layers)-r.Base)
	for i, l := range r.Layers[r.Base:] {
		own[i] = part{l, c.membersOf(l.DiffID)}
	}
	groups, err := group(r.Base, own)
	if err != nil {
		return nil, nil, err
	}
	counts = make([]int, len(r.Layers)+1)
	for i := range counts {
		counts[i] = -1
	}
	for i, l := range r.Layers[:r.Base] {
		parts = append(parts, part{l, 1})
		counts[i] = i
	}
	at := r.Base
	counts[at] = len(parts)
	for _, g := range groups {
		p, err := c.merge(ctx, g, radix(r.Base))
		if err != nil {
			return nil, nil, err
		}
		parts = append(parts, p)
		at += len(g)
		counts[at] = len(parts)
	}
	return parts, counts, nil
}

// group divides own layers into what the image lists as one each. Some may have been merged before, by the same rule: then their
// boundaries are kept. If they do not fit it (another base below the same layers), they count as one each.
func group(base int, own []part) ([][]part, error) {
	total := 0
	for _, p := range own {
		total += p.members
	}
	ss, err := spans(base, total)
	if err != nil {
		return nil, err
	}
	if groups, ok := divide(own, ss); ok {
		return groups, nil
	}
	if ss, err = spans(base, len(own)); err != nil {
		return nil, err
	}
	for i := range own {
		own[i].members = 1
	}
	groups, _ := divide(own, ss)
	return groups, nil
}

// divide cuts a list of parts at the ends of spans.
func divide(own []part, ss []span) (groups [][]part, ok bool) {
	at, from := 0, 0
	for i, p := range own {
		at += p.members
		if len(groups) == len(ss) {
			return nil, false
		}
		switch end := ss[len(groups)].to; {
		case at == end:
			groups = append(groups, own[from:i+1])
			from = i + 1
		case at > end:
			return nil, false
		}
	}
	return groups, len(groups) == len(ss)
}

// merge makes one layer of a group. A group that is larger than step is merged from groups of the level below, so that each level is merged once.
func (c *Cache) merge(ctx context.Context, g []part, step int) (part, error) {
	if len(g) == 1 {
		return g[0], nil
	}
	size := 0
	for _, p := range g {
		size += p.members
	}
	if below := size / step; below > 1 {
		var ss []span
		for at := 0; at < size; at += below {
			ss = append(ss, span{at, at + below})
		}
		groups, ok := divide(g, ss)
		if !ok {
			return part{}, errors.New("merge layers: a range does not end where its members do")
		}
		g = nil
		for _, sub := range groups {
			p, err := c.merge(ctx, sub, step)
			if err != nil {
				return part{}, err
			}
			g = append(g, p)
		}
	}
	l, err := c.flatten(ctx, g)
	if err != nil {
		return part{}, fmt.Errorf("merge %d layers: %w", size, err)
	}
	return part{l, size}, nil
}

// flatten makes one layer of several, or gives that which was made before.
func (c *Cache) flatten(ctx context.Context, g []part) (layers.Layer, error) {
	h := digest.SHA256.Digester()
	fmt.Fprintln(h.Hash(), c.Compression)
	for _, p := range g {
		fmt.Fprintln(h.Hash(), p.DiffID)
	}
	key := h.Digest().Encoded()
	done, err := c.merges.Claim(ctx, key)
	if err != nil {
		return layers.Layer{}, err
	}
	defer done()
	if err := c.Store.Hold(mergesDomain, key); err != nil {
		return layers.Layer{}, err
	}
	if l, ok := c.flattened(key); ok {
		return l, nil
	}
	lock, err := c.Store.Lock(ctx, mergesDomain, key)
	if err != nil {
		return layers.Layer{}, err
	}
	defer lock.Unlock()
	if l, ok := c.flattened(key); ok {
		return l, nil
	}
	dirs := make([]string, len(g))
	for i, p := range g {
		l := p.Layer
		if l.Dir == "" || !c.Store.HasLayer(l.Dir) {
			l.Dir = ""
			if l, err = c.fetchLayer(ctx, l, nil, layers.Files, nil); err != nil {
				return layers.Layer{}, err
			}
		}
		dirs[i] = l.Dir
		if c.isDisk(l.Dir) {
			return layers.Layer{}, fmt.Errorf("layers of disks are not merged: a build on a disk image shares no more than %d of them", maxImageLayers)
		}
	}
	l, err := layers.Flatten(ctx, c.Store, dirs)
	if err != nil {
		return layers.Layer{}, err
	}
	if l, err = layers.Pack(ctx, c.Store, l, c.Compression); err != nil {
		return layers.Layer{}, err
	}
	data, err := json.Marshal(l)
	if err != nil {
		return layers.Layer{}, err
	}
	return l, c.Store.PutResult(mergesDomain, &cas.Result{
		Key: key, Created: time.Now(), Data: data, Layers: []string{l.Dir}, Blobs: []digest.Digest{l.Blob.Digest},
	})
}

// flattened gives a merged layer that the store has.
func (c *Cache) flattened(key string) (l layers.Layer, ok bool) {
	res, err := c.Store.Result(mergesDomain, key)
	if err != nil || json.Unmarshal(res.Data, &l) != nil || l.Blob.Digest == "" || !c.Store.HasLayer(l.Dir) {
		return l, false
	}
	size, ok := c.Store.HasBlob(l.Blob.Digest)
	c.Store.Touch(mergesDomain, key)
	return l, ok && size == l.Blob.Size
}

// membersOf tells what Find has learned of a layer. (What was merged here is not noted: the last of its members, which a result
// has in its place, may be the very same layer.)
func (c *Cache) membersOf(diffID digest.Digest) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(c.members[diffID], 1)
}

func (c *Cache) noteMembers(diffID digest.Digest, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.members == nil {
		c.members = make(map[digest.Digest]int)
	}
	c.members[diffID] = n
}

// isDisk reports whether a layer directory has a disk, which is one of a chain.
func (c *Cache) isDisk(name string) bool {
	root, err := os.OpenRoot(c.Store.LayerPath(name))
	if err != nil {
		return false
	}
	defer root.Close()
	names, err := foreign.ListIn(root, layers.DiskDir, -1)
	return err == nil && slices.ContainsFunc(names, layers.IsDiskName)
}
