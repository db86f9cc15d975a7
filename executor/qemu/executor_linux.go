package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/qemu/guest"
	"github.com/ocurrent/obx/executor/qemu/layerdisk"
	"github.com/ocurrent/obx/executor/qemu/vm"
	"github.com/ocurrent/obx/layers"
)

// An Executor runs processes in virtual machines.
type Executor struct {
	maker   *vm.Maker
	options vm.Options    // of maker
	account guest.Account // of disk images
	foreign bool          // machines are of another system than Linux
	tmp     string        // its own directory in the store's TempDir
	empty   string        // an empty layer directory, the root of what has no layers
	void    string        // another, below everything that is mounted for reading
	chains  rootfs.Chains

	mu     sync.Mutex
	metas  map[string]*layerdisk.Layer // of layer directories
	parked *diskRoot                   // whose machine waits for a root with the same disk
	closed bool
}

// New makes an executor of machines with some options, which log in to disk images without an agent by an account. Machines start with the first Run.
func New(o vm.Options, account guest.Account) (*Executor, error) {
	maker, err := vm.New(o)
	if err != nil {
		return nil, err
	}
	o = maker.Options()
	e := &Executor{
		maker: maker, options: o, account: account, foreign: o.Foreign(), metas: map[string]*layerdisk.Layer{},
		chains: rootfs.Chains{Store: o.Store, Max: maxLayers, Block: flattenBlock},
	}
	if e.tmp, err = os.MkdirTemp(o.Store.TempDir(), "qemu-"); err == nil {
		e.empty, e.void = filepath.Join(e.tmp, "empty"), filepath.Join(e.tmp, "void")
		err = cmp.Or(rootfs.MakeEmpty(e.empty), rootfs.MakeEmpty(e.void))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make an executor: %w", err), maker.Close())
	}
	return e, nil
}

// Platform is that of the machines.
func (e *Executor) Platform() ocispec.Platform {
	return ocispec.Platform{OS: e.options.OS, Architecture: e.options.Arch}
}

// Prepare saves a machine, if there is none, in the background.
func (e *Executor) Prepare() error {
	if !e.foreign {
		e.maker.Prepare()
	}
	return nil
}

// Open begins a root file system.
func (e *Executor) Open(_ context.Context, chain []layers.Layer) (executor.Root, error) {
	return &openedRoot{files: root{e: e, chain: e.chains.New(chain)}}, nil
}

// Close ends all machines.
func (e *Executor) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	parked := e.parked
	e.parked = nil
	e.mu.Unlock()
	if parked != nil {
		parked.end()
	}
	return errors.Join(e.maker.Close(), e.options.Store.Trash(e.tmp))
}
