//go:build !linux

package cas

func lowerPriority() {}
