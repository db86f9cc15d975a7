//go:build !windows

package hcs

import (
	"io"

	"github.com/containerd/containerd/v2/pkg/cio"
)

// creator makes the pipes of a task.
func (s *streams) creator(j *job) cio.Creator {
	var stdin io.Reader
	if s.in != nil {
		stdin = s.in
	}
	opts := []cio.Opt{cio.WithStreams(stdin, s.out, s.out), cio.WithFIFODir(j.fifos)}
	if j.resize != nil {
		opts = append(opts, cio.WithTerminal)
	}
	return cio.NewCreator(opts...)
}
