package cas

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// writeFile makes a new file, or nothing.
func writeFile(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(path)
		return err
	}
	return nil
}

// install renames tmp to path, making path's directory when it is missing.
func install(tmp, path string) error {
	err := Rename(tmp, path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		err = Rename(tmp, path)
	}
	return err
}

// filesBelow lists the paths that are depth levels below dir. After an error it goes on with what it can list.
func filesBelow(dir string, depth int) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) { walkLevels(dir, depth, yield) }
}

func walkLevels(dir string, depth int, yield func(string, error) bool) bool {
	entries, err := readDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		err = nil
	}
	if err != nil && !yield(dir, err) {
		return false
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if depth > 1 {
			if !walkLevels(path, depth-1, yield) {
				return false
			}
		} else if !yield(path, nil) {
			return false
		}
	}
	return true
}

func randomHex() string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// validName reports whether s can name a domain or a layer directory: it is its own file name everywhere.
func validName(s string) bool {
	if s == "" || len(s) > 128 || strings.HasSuffix(s, ".") || reserved(s) {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// CheckDomain says what is wrong with the name of a domain, which is a file name everywhere.
func CheckDomain(domain string) error {
	if !validName(domain) {
		return fmt.Errorf("domain %q: it must be lower-case letters and digits, and '.', '_' and '-' between them", domain)
	}
	return nil
}

// maxName bounds escaped names, so that there is room for a suffix in the 255 bytes of a file name.
const maxName = 200

// escape turns any string into a file name that is valid and distinct on every system, the case-insensitive ones
// too. Names that need no escape are themselves.
func escape(s string) string {
	var b strings.Builder
	for i, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '_', c == '-', c == '.' && i > 0 && i < len(s)-1:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	e := b.String()
	switch {
	case e == "":
		return "%"
	case reserved(e):
		return fmt.Sprintf("%%%02x%s", e[0], e[1:])
	case len(e) > maxName:
		// No escape has a '-' after its '%'.
		return fmt.Sprintf("%s%%-%x", e[:maxName-2-2*sha256.Size], sha256.Sum256([]byte(s)))
	}
	return e
}

// reserved reports the names that Windows takes for devices, whatever follows the first dot.
func reserved(s string) bool {
	base, _, _ := strings.Cut(s, ".")
	switch strings.TrimRight(base, "0123456789") {
	case "con", "prn", "aux", "nul":
		return len(base) == 3
	case "com", "lpt":
		return len(base) == 4
	}
	return false
}

// WhileBusy does something with files that others may open, replace or remove at that moment: again as long as they are in the way, as they can be on
// Windows.
func WhileBusy(do func() error) error { return whileBusy(do) }

// openFile is os.OpenFile for a file that others may replace or remove at that moment. What it makes are locks and such: whoever else could
// open one could lock it, and stop all builds.
func openFile(name string, flags int) (f *os.File, err error) {
	err = whileBusy(func() error {
		f, err = os.OpenFile(name, flags, 0o600)
		return err
	})
	return f, err
}

// readDir is os.ReadDir for a directory that others may move or remove at that moment.
func readDir(name string) (entries []fs.DirEntry, err error) {
	err = whileBusy(func() error {
		entries, err = os.ReadDir(name)
		return err
	})
	return entries, err
}

// readFile is os.ReadFile for a file that others may replace or remove at that moment.
func readFile(name string) (b []byte, err error) {
	err = whileBusy(func() error {
		b, err = os.ReadFile(name)
		return err
	})
	return b, err
}
