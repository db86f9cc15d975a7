package repo

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"testing"

	"google.golang.org/grpc/test/bufconn"
)

// bubbleTransport reaches one server, whatever a URL names, without a network: in a bubble of synctest it has the clock of that.
func bubbleTransport(t *testing.T, p Patience, handler http.HandlerFunc) *transport {
	t.Helper()
	l := bufconn.Listen(64 << 10)
	srv := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = srv.Serve(l) }()
	tr := newTransport(p, "")
	tr.plain.Proxy = nil
	tr.plain.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return l.DialContext(ctx) }
	t.Cleanup(func() {
		tr.plain.CloseIdleConnections()
		srv.Close()
	})
	return tr
}

// startClient has a client ready whose transport a test changes.
func startClient(t testing.TB, c *Client) *Client {
	t.Helper()
	if err := c.init(); err != nil {
		t.Fatal(err)
	}
	return c
}
