package hcs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	sys "golang.org/x/sys/windows"
)

const lockSuffix = ".lock"

// runsDir has the runs on each containerd. It is not in the store: containerd is the whole computer's.
func runsDir() string {
	data := os.Getenv("ProgramData")
	if data == "" {
		data = `C:\ProgramData`
	}
	return filepath.Join(data, "obx", "run")
}

// A runDir is where a run has its mounts, and the secrets of the steps that it runs:
//
//	RUN.lock     open, for nobody else to open, while the run lives
//	RUN\         the directory
type runDir struct {
	dir  string
	lock *os.File
}

func (r *runDir) name() string { return filepath.Base(r.dir) }

// runsAccess is who may use the directory of all runs: the system and administrators. What is in it has names that cannot be guessed, and
// who knows one may read it: a user of a container needs that, for a secret.
const runsAccess = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICIIO;GRGX;;;BU)"

// makeRunsDir makes the directory of all runs. One that a user has made before is taken away from them.
func makeRunsDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	sd, err := sys.SecurityDescriptorFromString(runsAccess)
	if err != nil {
		return err
	}
	acl, _, err := sd.DACL()
	if err == nil {
		err = sys.SetNamedSecurityInfo(dir, sys.SE_FILE_OBJECT, sys.DACL_SECURITY_INFORMATION|sys.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, acl, nil)
	}
	if err != nil {
		return fmt.Errorf("keep others out of %s: %w", dir, err)
	}
	return nil
}

// newRunDir makes one in top, whose name begins with prefix.
func newRunDir(top, prefix string) (*runDir, error) {
	if err := makeRunsDir(filepath.Dir(top)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(top, 0o700); err != nil {
		return nil, err
	}
	for {
		dir, err := os.MkdirTemp(top, prefix+"-")
		if err != nil {
			return nil, err
		}
		lock, err := openAlone(dir+lockSuffix, sys.CREATE_NEW)
		if err != nil {
			return nil, errors.Join(err, os.Remove(dir))
		}
		return &runDir{dir, lock}, nil
	}
}

// openAlone opens a file that nobody else has open, and that nobody else can open meanwhile.
func openAlone(name string, how uint32) (*os.File, error) {
	p, err := sys.UTF16PtrFromString(name)
	if err != nil {
		return nil, err
	}
	h, err := sys.CreateFile(p, sys.GENERIC_READ|sys.GENERIC_WRITE, 0, nil, how, sys.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(h), name), nil
}

// remove removes the directory, and gives up the run's name.
func (r *runDir) remove() error {
	// Others may remove the lock as soon as it is closed: they know by the directory that nothing is left.
	if err := os.RemoveAll(r.dir); err != nil {
		return errors.Join(err, r.lock.Close())
	}
	err := r.lock.Close()
	// Who looks for dead runs at this moment has it open, sees that nothing is left, and removes it.
	taken := func(err error) bool {
		return errors.Is(err, sys.ERROR_SHARING_VIOLATION) || errors.Is(err, sys.ERROR_ACCESS_DENIED)
	}
	if rerr := os.Remove(r.lock.Name()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) && !taken(rerr) {
		err = errors.Join(err, rerr)
	}
	return err
}

// deadRuns takes over the directories in top of runs whose process was killed.
func deadRuns(top string) ([]*runDir, error) {
	locks, err := filepath.Glob(filepath.Join(top, "*"+lockSuffix))
	if err != nil {
		return nil, err
	}
	var dead []*runDir
	for _, name := range locks {
		lock, err := openAlone(name, sys.OPEN_EXISTING)
		if err != nil {
			continue // its owner lives, or removes it
		}
		dead = append(dead, &runDir{strings.TrimSuffix(name, lockSuffix), lock})
	}
	return dead, nil
}
