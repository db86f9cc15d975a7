package guest

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/ocurrent/obx/executor"
)

// TestInputNotTaken ends an input whose machine takes nothing of it.
func TestInputNotTaken(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	if _, err := write.WriteString("typed"); err != nil {
		t.Fatal(err)
	}
	port, agent := net.Pipe()
	defer port.Close()
	defer agent.Close()
	in, err := openInput(executor.Process{Stdin: read}, portInput(port))
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 1)
	if _, err := agent.Read(first); err != nil { // the rest is on its way from now on
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		in.close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(inputPatience + 20*time.Second):
		t.Fatal("it waits for the machine")
	}
}
