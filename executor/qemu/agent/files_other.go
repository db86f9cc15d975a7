//go:build !linux

package main

import "archive/tar"

func passing(string) bool { return false }

// setXattrs leaves them: no other system has those of Linux.
func setXattrs(string, *tar.Header) error { return nil }
