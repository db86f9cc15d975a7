package rootfs

import (
	"context"
	"strings"
	"sync"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/layers"
)

// Chains makes chains of layers ready for what can merge only so many of them.
type Chains struct {
	Store *cas.Store
	Max   int // chains have fewer layers than that

	// Block is how many of the lowest layers become one when there are more. A fixed number makes the same chain, and the chain of a
	// later step, flatten to the same layer.
	Block int

	mu   sync.Mutex
	made map[string]string // layer directories that were made one, joined by spaces, to that one
}

// A Chain is the layers of one root, base first.
type Chain struct {
	of      *Chains
	pending []layers.Layer // the end of the chain, not looked at yet
	dirs    []string       // names of layer directories
}

// New begins a chain. Zero layers in it are skipped.
func (cs *Chains) New(ls []layers.Layer) Chain {
	c := Chain{of: cs}
	for _, l := range ls {
		c.Add(l)
	}
	return c
}

// Add puts a layer on top.
func (c *Chain) Add(l layers.Layer) {
	if !l.IsZero() {
		c.pending = append(c.pending, l)
	}
}

// Grow puts a layer directory of the store on top, of which whoever uses the chain knows already.
func (c *Chain) Grow(dir string) { c.dirs = append(c.dirs, dir) }

// All makes all layers directories, and gives their paths, base first.
func (c *Chain) All(ctx context.Context) ([]string, error) {
	_, err := c.unpack(ctx)
	return c.paths(), err
}

// Paths makes all layers directories, not more of them than can be merged, and gives their paths, base first, and the names of those that
// were added since the last call.
func (c *Chain) Paths(ctx context.Context) (paths, added []string, err error) {
	if added, err = c.unpack(ctx); err != nil {
		return nil, added, err
	}
	for len(c.dirs) >= c.of.Max {
		one, err := c.of.flatten(ctx, c.dirs[:c.of.Block])
		if err != nil {
			return nil, added, err
		}
		c.dirs = append([]string{one}, c.dirs[c.of.Block:]...)
	}
	return c.paths(), added, nil
}

func (c *Chain) paths() []string {
	paths := make([]string, len(c.dirs))
	for i, d := range c.dirs {
		paths[i] = c.of.Store.LayerPath(d)
	}
	return paths
}

// unpack makes layers directories that were not looked at yet, as they are on top of those below, and gives the names of those that are new.
func (c *Chain) unpack(ctx context.Context) (added []string, err error) {
	if len(c.pending) == 0 {
		return nil, nil
	}
	st := c.of.Store
	stack := layers.NewStack(st, c.dirs)
	defer stack.Close()
	for i, l := range c.pending {
		if l.Dir == "" || !st.HasLayer(l.Dir) {
			if l, err = layers.Unpack(ctx, st, l); err != nil {
				return nil, err
			}
			c.pending[i] = l // it is not done again if a later one fails
		}
		if err := stack.Add(ctx, l.Dir); err != nil {
			return nil, err
		}
	}
	if err := stack.Flush(ctx); err != nil {
		return nil, err
	}
	c.dirs, c.pending = stack.Dirs, nil
	return stack.Added, nil
}

// flatten makes one layer directory of several. Every root with the same long chain begins with the same.
func (cs *Chains) flatten(ctx context.Context, dirs []string) (string, error) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	key := strings.Join(dirs, " ")
	if name, ok := cs.made[key]; ok {
		return name, nil
	}
	l, err := layers.FlattenBase(ctx, cs.Store, dirs)
	if err != nil {
		return "", err
	}
	if cs.made == nil {
		cs.made = map[string]string{}
	}
	cs.made[key] = l.Dir
	return l.Dir, nil
}

// NewChange is a change that is a layer of the store already: it needs nothing of its root.
func NewChange(l layers.Layer) executor.Change { return change{l} }

type change struct{ layer layers.Layer }

func (c change) Layer(context.Context) (layers.Layer, error) { return c.layer, nil }
func (c change) Close() error                                { return nil }
