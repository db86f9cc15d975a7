package repo

import (
	"os"
	"path/filepath"
	"strings"
)

// certsDir is where Docker keeps the certificates of registries.
func certsDir() string { return filepath.Join(os.Getenv("ProgramData"), "docker", "certs.d") }

// certsDirName leaves out what a file name cannot hold.
func certsDirName(addr string) string { return strings.ReplaceAll(addr, ":", "") }
