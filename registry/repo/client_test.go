package repo

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestIsPlain has hosts on this machine that speak HTTP, that speak TLS, and that take a connection and say nothing.
func TestIsPlain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const plain, secure, mute = "localhost:80", "localhost:443", "localhost:1"
		var dials atomic.Int32
		says := map[string]string{
			plain:  "HTTP/1.1 400 Bad Request\r\n\r\n",
			secure: "\x15\x03\x01\x00\x02\x02\x28", // an alert: it does not like this handshake
		}
		c := startClient(t, &Client{})
		c.transport.plain.DialContext = func(_ context.Context, _, addr string) (net.Conn, error) {
			dials.Add(1)
			ours, theirs := net.Pipe()
			answer := says[addr]
			go func() {
				defer theirs.Close()
				_, _ = theirs.Read(make([]byte, 1<<14))
				_, _ = io.WriteString(theirs, answer)
				_, _ = io.Copy(io.Discard, theirs)
			}()
			return ours, nil
		}
		asked := make(chan bool)
		go func() { asked <- c.isPlain(t.Context(), mute) }()
		synctest.Wait()

		// While one host is waited for, others are not, nor is it waited for by who does not want to.
		began := time.Now()
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		c.isPlain(gone, mute)
		if !c.isPlain(t.Context(), plain) || c.isPlain(t.Context(), secure) {
			t.Error("HTTP and TLS are mistaken for each other")
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("it took %v", d)
		}
		<-asked

		// What is known is not asked again, and nothing is known of who was silent.
		says[mute] = says[secure]
		dials.Store(0)
		for range 2 {
			if c.isPlain(t.Context(), mute) || !c.isPlain(t.Context(), plain) {
				t.Error("HTTP and TLS are mistaken for each other")
			}
		}
		if n := dials.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
	})
}
