package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocurrent/obx/executor/internal/rootfs"
	"github.com/ocurrent/obx/executor/internal/sandbox"
)

// runtimes are tried in this order, when the builtin sandbox does not work: crun starts a process in a third of runc's time.
var runtimes = []string{"crun", "runc"}

// probeFile, in the store, has what was found out about runtimes.
const probeFile = "runtime.json"

// A probe is one runtime as it was when it was tried. Any change of the file or the kernel makes it void.
type probe struct {
	Path    string    `json:"path"`
	Size    int64     `json:"size"`
	Time    time.Time `json:"time"`
	Kernel  string    `json:"kernel"`
	Cgroups string    `json:"cgroups"` // where they are mounted: crun refuses some ways
	Err     string    `json:"error,omitempty"`
}

func (e *Executor) newProbe(file string) (probe, error) {
	which := file
	if file == Builtin {
		which = "/proc/self/exe"
	}
	st, err := os.Stat(which)
	if err != nil {
		return probe{}, err
	}
	release, err := kernelRelease()
	if err != nil {
		return probe{}, err
	}
	return probe{
		Path:    file,
		Size:    st.Size(),
		Time:    st.ModTime().UTC(),
		Kernel:  release,
		Cgroups: strings.Join(e.Cgroups.Hierarchies, " "),
	}, nil
}

func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// findRuntimes lists the runtimes to use, best first.
func findRuntimes(want string) ([]string, error) {
	if want == Builtin {
		return []string{Builtin}, sandbox.Supported()
	}
	if want != "" {
		file, err := rootfs.FindRuntime(want)
		if err != nil {
			return nil, err
		}
		return []string{file}, nil
	}
	var found []string
	if sandbox.Supported() == nil {
		found = append(found, Builtin)
	}
	for _, n := range runtimes {
		if file, err := rootfs.FindRuntime("", n); err == nil {
			found = append(found, file)
		}
	}
	if len(found) == 0 {
		_, err := rootfs.FindRuntime("", runtimes...)
		return nil, err
	}
	return found, nil
}

// untried reports whether the runtime was chosen without a probe, since there is no other.
func (e *Executor) untried() bool { return e.options.Runtime == "" && len(e.candidates) == 1 }

func noRuntime(why error) error { return fmt.Errorf("steps cannot run here: %w", why) }

// runtime chooses the runtime, once.
func (e *Executor) runtime(ctx context.Context, s *supervisor) (string, error) {
	e.choosing.Lock()
	defer e.choosing.Unlock()
	if e.chosen != "" {
		return e.chosen, nil
	}
	if e.options.Runtime != "" || e.untried() { // the user's wish, or the only one: it fails by itself if it does not work
		e.chosen = e.candidates[0]
		return e.chosen, nil
	}
	known := e.readProbes()
	var errs []error
	for _, file := range e.candidates {
		p, err := e.newProbe(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if old, ok := known[file]; ok && old.sameAs(p) {
			p = old
		} else {
			if err := e.try(ctx, s, file); err != nil {
				if ctx.Err() != nil {
					return "", ctx.Err()
				}
				p.Err = err.Error()
			}
			if file != Builtin || p.Err == "" { // that one is soon tried again, and nothing else is as fast
				known[file] = p
				e.writeProbes(known)
			}
		}
		if p.Err == "" {
			e.chosen = file
			if len(errs) > 0 && e.candidates[0] == Builtin && e.options.Warn != nil {
				e.options.Warn(fmt.Sprintf("steps run with %s, which takes more time, since obx's own sandbox does not work here: %v", file, errs[0]))
			}
			return file, nil
		}
		errs = append(errs, fmt.Errorf("%s: %s", file, p.Err))
	}
	// What does not work may be mended by something that a probe does not look at: try again next time.
	_ = os.Remove(filepath.Join(e.options.Store.Dir(), probeFile))
	return "", noRuntime(errors.Join(errs...))
}

func (p probe) sameAs(q probe) bool {
	p.Err, q.Err = "", ""
	return p == q
}

func (e *Executor) readProbes() map[string]probe {
	known := map[string]probe{}
	b, err := os.ReadFile(filepath.Join(e.options.Store.Dir(), probeFile))
	if err != nil || json.Unmarshal(b, &known) != nil {
		return map[string]probe{}
	}
	return known
}

// writeProbes is for speed only: an error costs no more than the next probe.
func (e *Executor) writeProbes(known map[string]probe) {
	b, err := json.MarshalIndent(known, "", "  ")
	if err != nil {
		return
	}
	tmp := filepath.Join(e.TempDir(), probeFile)
	if os.WriteFile(tmp, b, 0o644) == nil {
		_ = os.Rename(tmp, filepath.Join(e.options.Store.Dir(), probeFile))
	}
}

// try looks whether a runtime works here.
func (e *Executor) try(ctx context.Context, s *supervisor, file string) error {
	id := e.NewID()
	return e.Try(ctx, id, box{e, s, bundleDir(s.priv, id), file})
}
