//go:build unix && !linux

package cas

// nobodyKnown is no user: there are no user namespaces.
func nobodyKnown() int { return -1 }
