package cas

import "os"

// claim makes the store's directory. Who may use it is what it inherits from the directory that it is in.
func claim(dir string) error { return os.MkdirAll(dir, 0o700) }

// closeToOthers does nothing: Windows has no modes.
func closeToOthers(string) error { return nil }
