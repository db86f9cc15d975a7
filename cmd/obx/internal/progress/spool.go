package progress

import (
	"bytes"
	"fmt"
	"io"
	"os"
)

// spoolMemory is how much of a waiting stage's log is kept in memory.
const spoolMemory = 1 << 20

// A spool keeps what a stage prints until its turn comes: in memory, and what is more in a temporary file that has
// no name any longer, so that nothing is left behind however obx ends. The zero spool is empty.
type spool struct {
	mem  bytes.Buffer
	file *os.File
}

func (s *spool) Write(p []byte) (int, error) {
	if s.file == nil && s.mem.Len()+len(p) <= spoolMemory {
		return s.mem.Write(p)
	}
	if s.file == nil {
		f, err := os.CreateTemp("", "obx-log-*")
		if err != nil {
			return 0, fmt.Errorf("spool the log of a stage: %w", err)
		}
		// Where an open file cannot be removed, Close does it.
		os.Remove(f.Name())
		s.file = f
	}
	return s.file.Write(p)
}

// drain writes all that was kept to w, and empties the spool.
func (s *spool) drain(w io.Writer) error {
	defer s.Close()
	if _, err := s.mem.WriteTo(w); err != nil {
		return err
	}
	if s.file == nil {
		return nil
	}
	if _, err := s.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err := io.Copy(w, s.file)
	return err
}

func (s *spool) Close() error {
	s.mem = bytes.Buffer{}
	if s.file == nil {
		return nil
	}
	f := s.file
	s.file = nil
	err := f.Close()
	os.Remove(f.Name())
	return err
}
