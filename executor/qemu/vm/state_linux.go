package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// maxStateAge is how long a state is kept that nobody uses.
const maxStateAge = 30 * 24 * time.Hour

// timeless is the architecture of which QEMU (7.2, and many after it) does not save the timers: now and then a machine that goes on sleeps for good.
const timeless = "riscv64"

// A foundState is what was found out about a size of machines: they cannot be saved, if err is there.
type foundState struct {
	state *savedState
	err   error
}

// A savedState is a machine whose agent has greeted.
type savedState struct{ dir string }

func (s *savedState) memory() string  { return filepath.Join(s.dir, "memory") }
func (s *savedState) disk() string    { return filepath.Join(s.dir, "disk") }
func (s *savedState) devices() string { return filepath.Join(s.dir, "devices") }

// bootID begins the names of states of this boot of the host.
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return strings.ReplaceAll(strings.TrimSpace(string(id)), "-", "")[:16], nil
}

// stateKey names everything that a state depends on.
func (k *Maker) stateKey(h hardware) (string, error) {
	sum := sha256.New()
	info, err := os.Stat(h.qemu)
	if err != nil {
		return "", err
	}
	host := ""
	if h.accel == "kvm" { // the processor's features are part of the machine
		b, err := os.ReadFile("/proc/cpuinfo")
		if err != nil {
			return "", err
		}
		host = firstProcessor(string(b))
	}
	b := boardOf(h)
	fmt.Fprintf(sum, "1\n%s %d %v\n%s %s %d %d\n%+v\n%s\n", h.qemu, info.Size(), info.ModTime().UTC(), h.arch, h.accel, h.memory, h.cpus, b, host)
	boot, err := bootID()
	if err != nil {
		return "", err
	}
	for _, name := range []string{h.kernel, h.initrd} {
		f, err := os.Open(name)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(sum, f)
		f.Close()
		if err != nil {
			return "", err
		}
	}
	return boot + "-" + hex.EncodeToString(sum.Sum(nil))[:32], nil
}

// firstProcessor is what cpuinfo says of the first, less what changes.
func firstProcessor(info string) string {
	var m, f string
	for line := range strings.SplitSeq(info, "\n") {
		switch {
		case line == "":
			return m + f
		case strings.HasPrefix(line, "model"):
			m += line
		case strings.HasPrefix(line, "flags"), strings.HasPrefix(line, "Features"), strings.HasPrefix(line, "microcode"):
			f += line
		}
	}
	return m + f
}

// state finds the saved machine of a size, or makes it. It is nil where machines are not saved.
func (k *Maker) state(ctx context.Context, memory int64) (*savedState, error) {
	if k.options.NoState || k.options.Arch == timeless {
		return nil, nil
	}
	if err := k.saving.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	defer k.saving.Release(1)
	if f, ok := k.states[memory]; ok {
		return f.state, f.err
	}
	h := k.hardware(memory)
	key, err := k.stateKey(h)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(k.options.Store.Dir(), StateDir, key)
	s := &savedState{dir}
	if _, err := os.Stat(s.devices()); err != nil {
		if err := k.save(ctx, h, dir); err != nil {
			if ctx.Err() == nil {
				k.states[memory] = foundState{err: err} // once is enough
			}
			return nil, err
		}
		k.dropOldStates()
	}
	now := time.Now()
	_ = os.Chtimes(dir, now, now)
	k.states[memory] = foundState{state: s}
	return s, nil
}

// forgetState drops a state that does not work.
func (k *Maker) forgetState(memory int64, s *savedState) {
	_ = k.saving.Acquire(context.Background(), 1) // always succeeds
	defer k.saving.Release(1)
	if k.states[memory].state == s {
		k.states[memory] = foundState{}
		_ = k.options.Store.Trash(s.dir)
	}
}

// dropOldStates drops those that nobody has used for long, or that are of no use since the host has booted.
func (k *Maker) dropOldStates() {
	boot, err := bootID()
	if err != nil {
		return
	}
	dirs, _ := filepath.Glob(filepath.Join(k.options.Store.Dir(), StateDir, "*"))
	for _, d := range dirs {
		if info, err := os.Stat(d); err == nil && (time.Since(info.ModTime()) > maxStateAge || !strings.HasPrefix(filepath.Base(d), boot+"-")) {
			_ = k.options.Store.Trash(d)
		}
	}
}

// save boots a machine and saves it as dir.
func (k *Maker) save(ctx context.Context, h hardware, dir string) (err error) {
	tmp, err := os.MkdirTemp(k.tmp, "state-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	s := &savedState{tmp}
	memoryFile, err := os.OpenFile(s.memory(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer memoryFile.Close()
	if err := errors.Join(memoryFile.Chmod(0o666), memoryFile.Truncate(h.memory)); err != nil {
		return err
	}
	devices, err := os.OpenFile(s.devices(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer devices.Close()
	disk, err := os.OpenFile(s.disk(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer disk.Close()
	if err := errors.Join(disk.Chmod(0o666), CopySparse(disk, k.scratch)); err != nil {
		return err
	}
	m, err := k.start(h, machineFiles{memory: memory{file: memoryFile, share: true}, scratch: disk})
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.hello(ctx, k.options.BootTimeout); err != nil {
		return err
	}
	if err := m.save(ctx, devices); err != nil {
		return fmt.Errorf("save a machine: %w", err)
	}
	// QEMU opens it again for each machine, and maps it privately.
	if err := os.Chmod(tmp, 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		if _, serr := os.Stat(dir); serr == nil { // another was faster
			return nil
		}
		return err
	}
	return nil
}

// ignoreShared leaves memory out of a migration that both sides have in the same file.
var ignoreShared = map[string]any{"capabilities": []map[string]any{{"capability": "x-ignore-shared", "state": true}}}

// save writes all of a machine but its memory.
func (m *Machine) save(ctx context.Context, devices *os.File) error {
	if err := m.qmp.call(ctx, "stop", nil, nil); err != nil {
		return err
	}
	if err := m.qmp.call(ctx, "migrate-set-capabilities", ignoreShared, nil); err != nil {
		return err
	}
	if err := m.qmp.callWith(ctx, devices, "getfd", map[string]any{"fdname": "state"}, nil); err != nil {
		return err
	}
	if err := m.qmp.call(ctx, "migrate", map[string]any{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	return m.migrated(ctx)
}

// migrationPatience is for what takes a tenth of a second.
const migrationPatience = 30 * time.Second

// migrated waits for the end of a migration.
func (m *Machine) migrated(ctx context.Context) error {
	limit := time.After(migrationPatience)
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		var info struct {
			Status string
			Desc   string `json:"error-desc"`
		}
		if err := m.qmp.call(ctx, "query-migrate", nil, &info); err != nil {
			return err
		}
		switch info.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("migration %s: %s", info.Status, info.Desc)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		case <-m.ended:
			return m.Why(errMonitor)
		case <-limit:
			return errors.New("the migration does not end")
		}
	}
}

// restore starts a machine that goes on from a state.
func (k *Maker) restore(ctx context.Context, size int64, s *savedState) (_ *Machine, err error) {
	memoryFile, err := os.Open(s.memory())
	if err != nil {
		return nil, err
	}
	defer memoryFile.Close()
	devices, err := os.Open(s.devices())
	if err != nil {
		return nil, err
	}
	defer devices.Close()
	scratch, err := k.newScratch(s.disk())
	if err != nil {
		return nil, err
	}
	defer scratch.Close()
	m, err := k.start(k.hardware(size), machineFiles{memory: memory{file: memoryFile}, state: devices, scratch: scratch})
	if err != nil {
		return nil, err
	}
	if err := m.goOn(ctx, devices); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Machine) goOn(ctx context.Context, devices *os.File) error {
	if err := m.unlock(ctx, migrationPatience, errors.New("QEMU's monitor does not answer")); err != nil {
		return err
	}
	if err := m.qmp.call(ctx, "migrate-set-capabilities", ignoreShared, nil); err != nil {
		return err
	}
	if err := m.qmp.callWith(ctx, devices, "getfd", map[string]any{"fdname": "state"}, nil); err != nil {
		return err
	}
	if err := m.qmp.call(ctx, "migrate-incoming", map[string]any{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	if err := m.migrated(ctx); err != nil {
		return err
	}
	return m.qmp.call(ctx, "cont", json.RawMessage("{}"), nil)
}
