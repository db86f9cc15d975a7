//go:build !windows

package repo

// certsDir is where Docker keeps the certificates of registries.
func certsDir() string { return "/etc/docker/certs.d" }

func certsDirName(addr string) string { return addr }
