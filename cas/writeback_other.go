//go:build !linux

package cas

import "os"

// startWriteback does nothing where there is no call for it.
func startWriteback(*os.File, int64, int64) {}
