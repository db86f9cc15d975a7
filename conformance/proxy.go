package conformance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A Proxy stands before a registry, counts what passes, and does what networks and registries do on bad days. It is an http.Handler too, for
// tests that want it behind TLS.
//
//	p := conformance.StartProxy(t, conformance.StartRegistry(t))
//	p.Break(func(r *http.Request) conformance.Fault {
//		if conformance.KindOf(r) == "GET blob" {
//			return conformance.Fault{After: 100, Reset: true}
//		}
//		return conformance.Fault{}
//	})
//
// The function that Break takes is called in the request's own goroutine before anything is forwarded: it may wait, and so put requests into
// an order.
type Proxy struct {
	Addr string

	target *httputil.ReverseProxy
	quit   chan struct{} // closed at the test's end

	delay  atomic.Int64
	mu     sync.Mutex
	broken func(*http.Request) Fault
	rate   int
	tokens float64
	filled time.Time
	server *http.Server
	counts map[string]Count
	log    []string
	flight int
	peak   int
}

// A Fault is what happens to one request. The zero Fault is none. Fields can be combined; they are looked at in this order.
type Fault struct {
	Delay time.Duration // before anything else
	Hang  bool          // nothing is ever answered; the request ends when its client goes away
	Deaf  bool          // as Hang, but the body of the request is not even read
	Drop  bool          // the connection is reset, nothing is forwarded

	// The request is answered without asking the registry.
	Status   int         // with this status,
	Header   http.Header // these headers (Retry-After),
	Body     string      // and this body
	Redirect string      // to this URL (Status 0: 307)

	// The request is sent to the registry, or part of it, and its answer changed. What changes a body does nothing to an empty one.
	Cut      int64 // the connection is reset after so many bytes of the request's body
	Lose     bool  // the answer is lost: the connection is reset once the registry has acted
	After    int64 // how many bytes of the body go through before what follows
	Reset    bool  // the connection is reset
	Stall    bool  // no more bytes come
	Truncate bool  // the body ends, and the header says so
	Corrupt  bool  // one byte is another
	Append   int64 // so many more bytes follow the body, and the header says so; After does not count
}

// A Count is what passed of one kind.
type Count struct {
	Requests       int
	Sent, Received int64 // bytes of bodies: to the registry, from it
}

// StartProxy starts a proxy before the registry at addr, on a loopback port of its own.
func StartProxy(t testing.TB, addr string) *Proxy {
	t.Helper()
	p := &Proxy{
		quit:   make(chan struct{}),
		counts: make(map[string]Count),
		target: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr}),
	}
	transport := &http.Transport{MaxIdleConns: 64, MaxIdleConnsPerHost: 64, DisableCompression: true}
	p.target.Transport = transport
	p.target.ErrorLog = log.New(io.Discard, "", 0) // clients that go away are part of the tests
	p.target.BufferPool = buffers{}
	p.target.ModifyResponse = modifyResponse
	p.target.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { reset(w) }
	p.Addr = freeAddr(t)
	if err := p.listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(p.quit)
		p.Kill()
		transport.CloseIdleConnections()
	})
	return p
}

type buffers struct{}

func (buffers) Get() []byte { return make([]byte, 256<<10) }
func (buffers) Put([]byte)  {}

func (p *Proxy) listen() error {
	l, err := net.Listen("tcp", p.Addr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: p, ErrorLog: log.New(io.Discard, "", 0)}
	p.mu.Lock()
	p.server = srv
	p.mu.Unlock()
	go func() { _ = srv.Serve(l) }()
	return nil
}

// Kill makes the registry look dead: all connections are closed, new ones refused.
func (p *Proxy) Kill() {
	p.mu.Lock()
	srv := p.server
	p.server = nil
	p.mu.Unlock()
	if srv != nil {
		_ = srv.Close()
	}
}

// Revive undoes Kill.
func (p *Proxy) Revive(t testing.TB) {
	t.Helper()
	var err error
	for range 50 { // the port may have been taken for a moment
		if err = p.listen(); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal(err)
}

// Break sets what happens to each request from now on; nil mends all.
func (p *Proxy) Break(fault func(*http.Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.broken = fault
}

// SetDelay delays each request by d, as a registry far away does.
func (p *Proxy) SetDelay(d time.Duration) { p.delay.Store(int64(d)) }

// SetRate allows so many requests a second, in bursts of as many; others get 429 and Retry-After: 1. Zero is no limit.
func (p *Proxy) SetRate(perSecond int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate, p.tokens, p.filled = perSecond, float64(perSecond), time.Now()
}

// allow takes one token of the rate.
func (p *Proxy) allow() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == 0 {
		return true
	}
	now := time.Now()
	p.tokens = min(p.tokens+now.Sub(p.filled).Seconds()*float64(p.rate), float64(p.rate))
	p.filled = now
	if p.tokens < 1 {
		return false
	}
	p.tokens--
	return true
}

// KindOf names what a request is about: "HEAD manifest", "GET blob", "POST upload", "PUT upload", "GET tags", "GET other".
func KindOf(r *http.Request) string {
	what := "other"
	switch path := r.URL.Path; {
	case strings.Contains(path, "/blobs/uploads/"):
		what = "upload"
	case strings.Contains(path, "/blobs/"):
		what = "blob"
	case strings.Contains(path, "/manifests/"):
		what = "manifest"
	case strings.HasSuffix(path, "/tags/list"):
		what = "tags"
	}
	return r.Method + " " + what
}

// Counts gives what has passed since the last call, by kind. Requests count when they begin, refused ones too.
func (p *Proxy) Counts() map[string]Count {
	p.mu.Lock()
	defer p.mu.Unlock()
	counts := p.counts
	p.counts, p.log, p.peak = make(map[string]Count), nil, p.flight
	return counts
}

// Total adds counts up.
func Total(counts map[string]Count) Count {
	var sum Count
	for _, c := range counts {
		sum.Requests += c.Requests
		sum.Sent += c.Sent
		sum.Received += c.Received
	}
	return sum
}

// Requests lists the requests since the last call of Counts, in order: "GET /v2/x/blobs/sha256:...".
func (p *Proxy) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.log)
}

// Peak is how many requests were under way at the same time since the last call of Counts.
func (p *Proxy) Peak() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peak
}

// Format prints counts for people, one line a kind.
func Format(counts map[string]Count) string {
	var b strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		c := counts[kind]
		fmt.Fprintf(&b, "%-16s %5d requests, %d bytes sent, %d received\n", kind, c.Requests, c.Sent, c.Received)
	}
	return b.String()
}

func (p *Proxy) add(kind string, c Count) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.counts[kind]
	p.counts[kind] = Count{was.Requests + c.Requests, was.Sent + c.Sent, was.Received + c.Received}
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind := KindOf(r)
	p.add(kind, Count{Requests: 1})
	p.mu.Lock()
	broken := p.broken
	p.log = append(p.log, r.Method+" "+r.URL.RequestURI())
	p.flight++
	p.peak = max(p.peak, p.flight)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.flight--
		p.mu.Unlock()
	}()
	var f Fault
	if broken != nil {
		f = broken(r)
	}
	p.sleep(r, time.Duration(p.delay.Load())+f.Delay)
	switch {
	case f.Hang, f.Deaf:
		if f.Hang { // or it would not be seen that the client goes away
			_, _ = io.Copy(io.Discard, r.Body)
		}
		select {
		case <-r.Context().Done():
		case <-p.quit:
		}
		reset(w)
		return
	case f.Drop:
		reset(w)
		return
	case !p.allow():
		f = Fault{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"1"}}}
	}
	if f.Status != 0 || f.Redirect != "" {
		answer(w, f)
		return
	}
	if r.Body != nil {
		r.Body = &countedBody{r.Body, f.Cut, func(n int) { p.add(kind, Count{Sent: int64(n)}) }}
	}
	if f.Lose {
		p.target.ServeHTTP(httptest.NewRecorder(), r)
		reset(w)
		return
	}
	p.target.ServeHTTP(&faultyWriter{ResponseWriter: w, fault: f, proxy: p, request: r, kind: kind}, r.WithContext(withFault(r.Context(), f)))
}

func answer(w http.ResponseWriter, f Fault) {
	maps.Copy(w.Header(), f.Header)
	status := f.Status
	if f.Redirect != "" {
		w.Header().Set("Location", f.Redirect)
		if status == 0 {
			status = http.StatusTemporaryRedirect
		}
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, f.Body)
}

func (p *Proxy) sleep(r *http.Request, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	case <-p.quit:
	}
}

// reset ends a connection with RST, or a stream of HTTP/2.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if c, ok := conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	conn.Close()
}

// modifyResponse makes the head of an answer fit the body that a fault leaves.
func modifyResponse(resp *http.Response) error {
	f, ok := resp.Request.Context().Value(faultKey{}).(Fault)
	if !ok || resp.ContentLength < 0 || resp.Request.Method == http.MethodHead {
		return nil
	}
	n := resp.ContentLength
	switch {
	case f.Truncate:
		n = min(n, f.After)
	case f.Append > 0:
		n += f.Append
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(resp.Body, io.LimitReader(zeros{}, f.Append)), resp.Body}
	}
	resp.ContentLength = n
	resp.Header.Set("Content-Length", strconv.FormatInt(n, 10))
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

type faultKey struct{}

func withFault(ctx context.Context, f Fault) context.Context {
	return context.WithValue(ctx, faultKey{}, f)
}

type countedBody struct {
	io.ReadCloser
	cut   int64 // 0 or after how many bytes it ends in an error
	count func(n int)
}

func (b *countedBody) Read(p []byte) (int, error) {
	if b.cut > 0 {
		p = p[:min(int64(len(p)), b.cut)]
	}
	n, err := b.ReadCloser.Read(p)
	b.count(n)
	if b.cut > 0 {
		if b.cut -= int64(n); b.cut == 0 {
			return n, io.ErrClosedPipe
		}
	}
	return n, err
}

// A faultyWriter passes the body of an answer on until its fault.
type faultyWriter struct {
	http.ResponseWriter
	fault   Fault
	proxy   *Proxy
	request *http.Request
	kind    string
	written int64
}

func (w *faultyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *faultyWriter) Write(b []byte) (int, error) {
	left := w.fault.After - w.written
	if !w.fault.Reset && !w.fault.Stall && !w.fault.Truncate && !w.fault.Corrupt || left > int64(len(b)) {
		return w.pass(b)
	}
	if w.fault.Corrupt {
		if left >= 0 && left < int64(len(b)) {
			b = bytes.Clone(b)
			b[left] ^= 1
		}
		return w.pass(b)
	}
	if _, err := w.pass(b[:max(left, 0)]); err != nil {
		return 0, err
	}
	switch {
	case w.fault.Truncate:
		return len(b), nil
	case w.fault.Stall:
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		select {
		case <-w.request.Context().Done():
		case <-w.proxy.quit:
		}
	default:
		_ = http.NewResponseController(w.ResponseWriter).Flush()
	}
	reset(w.ResponseWriter)
	return 0, net.ErrClosed
}

func (w *faultyWriter) pass(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.written += int64(n)
	w.proxy.add(w.kind, Count{Received: int64(n)})
	return n, err
}
