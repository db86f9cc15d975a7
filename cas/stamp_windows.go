package cas

import "io/fs"

// stampOf has no more than these on Windows: a change that keeps both is not seen.
func stampOf(info fs.FileInfo) stamp {
	return stamp{size: info.Size(), mtime: info.ModTime().UnixNano()}
}
