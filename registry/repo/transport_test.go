package repo

import (
	"context"
	"errors"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for v, want := range map[string]time.Duration{
		"":                              0,
		"3":                             3 * time.Second,
		"-3":                            0,
		"x":                             0,
		"Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second,
		"Fri, 02 Jan 2026 03:04:00 GMT": 0,
	} {
		if got := retryAfter(v, now); got != want {
			t.Errorf("%q: got %v, want %v", v, got, want)
		}
	}
}

func TestTransportRetries(t *testing.T) {
	tests := []struct {
		name     string
		method   string
		answers  []int // the last stays; 0 breaks the connection
		want     int   // 0: an error
		requests int32
	}{
		{"fine", "GET", []int{200}, 200, 1},
		{"busy once", "GET", []int{503, 200}, 200, 2},
		{"throttled twice", "HEAD", []int{429, 429, 200}, 200, 3},
		{"bad gateway", "GET", []int{502, 200}, 200, 2},
		{"broken connections", "GET", []int{0, 0, 200}, 200, 3},
		{"always an error", "GET", []int{500}, 500, maxRetries + 1},
		{"a gateway to nowhere", "GET", []int{503}, 503, maxRetries + 1},
		{"always broken", "GET", []int{0}, 0, maxRetries + 1},
		{"final", "GET", []int{404, 200}, 404, 1},
		{"with a body", "PUT", []int{500, 200}, 200, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var n atomic.Int32
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				status := tt.answers[min(int(n.Add(1)), len(tt.answers))-1]
				if b, _ := io.ReadAll(r.Body); r.Method == "PUT" && string(b) != "body" {
					t.Errorf("the body is %q", b)
				}
				if status == 0 {
					panic(http.ErrAbortHandler)
				}
				w.WriteHeader(status)
			}))
			defer srv.Close()
			tr := newTransport(Patience{Backoff: time.Millisecond}, "")
			defer tr.plain.CloseIdleConnections()
			var body io.Reader
			if tt.method == "PUT" {
				body = strings.NewReader("body")
			}
			req, err := http.NewRequest(tt.method, srv.URL, body)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(req)
			if err != nil && tt.want != 0 {
				t.Fatal(err)
			}
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode != tt.want {
					t.Errorf("got status %d", resp.StatusCode)
				}
			}
			// On a reused connection, net/http itself retries once more.
			if got := n.Load(); got != tt.requests {
				t.Errorf("%d requests, want %d", got, tt.requests)
			}
		})
	}
}

func TestTransportPausesHost(t *testing.T) {
	var first atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !first.Swap(true) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}))
	defer srv.Close()
	tr := newTransport(Patience{Backoff: time.Millisecond}, "")
	defer tr.plain.CloseIdleConnections()
	begin := time.Now()
	done := make(chan struct{})
	get := func() {
		defer func() { done <- struct{}{} }()
		req, _ := http.NewRequest("GET", srv.URL, nil)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Error(err)
			return
		}
		resp.Body.Close()
	}
	go get()
	time.Sleep(100 * time.Millisecond)
	go get() // is held back though nobody refused it
	<-done
	<-done
	if d := time.Since(begin); d < time.Second || d > 3*time.Second {
		t.Errorf("it took %v", d)
	}
}

func TestTransportGivesUpWaiting(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	defer srv.Close()
	tr := newTransport(Patience{}, "")
	defer tr.plain.CloseIdleConnections()
	req, _ := http.NewRequest("GET", srv.URL, nil)
	begin := time.Now()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusTooManyRequests || time.Since(begin) > time.Second {
		t.Errorf("status %d after %v", resp.StatusCode, time.Since(begin))
	}
}

// What a host costs once, it does not cost again: it is down.
func TestTransportDown(t *testing.T) {
	const all = maxRetries + 1
	const some = -1 // more than one
	tests := []struct {
		name     string
		status   int // 0 breaks the connection
		header   http.Header
		requests []int // of one call after the other
	}{
		{"500", 500, nil, []int{all, all, 0, 0}}, // the first may be the fault of what it asked for
		{"503", 503, nil, []int{all, all, 0}},
		{"429", 429, nil, []int{some, 0, 0}},
		{"429 for long", 429, http.Header{"Retry-After": {"3600"}}, []int{1, 0}},
		{"503 for long", 503, http.Header{"Retry-After": {"3600"}}, []int{1, 0}},
		{"broken connections", 0, nil, []int{all, 0, 0}},
		{"not found", 404, nil, []int{1, 1, 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int32
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n.Add(1)
				if tt.status == 0 {
					panic(http.ErrAbortHandler)
				}
				maps.Copy(w.Header(), tt.header)
				w.WriteHeader(tt.status)
			}))
			srv.Config.ErrorLog = log.New(io.Discard, "", 0)
			defer srv.Close()
			p := Patience{Backoff: time.Millisecond}
			if tt.status == 429 {
				p.Vain = 100 * time.Millisecond
			}
			tr := newTransport(p, "")
			tr.plain.DisableKeepAlives = true // net/http sends again what a reused connection has lost
			for i, want := range tt.requests {
				n.Store(0)
				req, err := http.NewRequest([]string{"GET", "HEAD", "POST"}[i%3], srv.URL, http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := tr.RoundTrip(req)
				if err == nil {
					resp.Body.Close()
				}
				if got := int(n.Load()); got != want && (want != some || got < 2) {
					t.Errorf("call %d took %d requests, want %d", i+1, got, want)
				}
				if down := errors.As(err, new(*downError)); down != (want == 0) {
					t.Errorf("call %d: %v", i+1, err)
				}
			}
		})
	}
}

// Errors that a host answers count in a row: between them it gives what else it is asked for.
func TestTransportRecovers(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bad" {
			w.WriteHeader(500)
		}
	}))
	defer srv.Close()
	tr := newTransport(Patience{Backoff: time.Millisecond}, "")
	defer tr.plain.CloseIdleConnections()
	get := func(path string) error {
		req, err := http.NewRequest(http.MethodGet, srv.URL+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	for i, path := range []string{"/bad", "/good", "/bad", "/good", "/bad", "/bad"} {
		if err := get(path); err != nil {
			t.Fatalf("request %d: %v", i+1, err)
		}
	}
	if err := get("/good"); !errors.As(err, new(*downError)) {
		t.Errorf("after two in a row: %v", err)
	}
}

func aHost(t *testing.T) *host {
	h, err := newTransport(Patience{}, "").host("registry.example")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Many that are refused at the same time wait for one pause, and have used up only that.
func TestTransportPausesAddUpOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, err := newTransport(Patience{Vain: 3 * time.Second}, "").host("registry.example")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				if !h.pause(time.Second) || h.wait(t.Context()) != nil {
					t.Error("patience ends with the first pause")
				}
			})
		}
		wg.Wait()
		if !h.pause(1500*time.Millisecond) || h.isDown() != nil {
			t.Error("patience ends with the second pause")
		}
		if h.wait(t.Context()); h.pause(time.Second) {
			t.Error("patience never ends")
		}
		h.vigil.relents()
		if !h.pause(2 * time.Second) {
			t.Error("patience does not come back")
		}
	})
}

// A host that was never there is asked for a result only twice; one that was has the time to start again.
func TestTransportConnectionRefused(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer srv.Close()
	dead := new(atomic.Bool)
	for _, tt := range []struct {
		name    string
		seen    bool
		passing bool
		want    int32
	}{
		{"never there", false, true, 2},
		{"never there, but needed", false, false, maxRetries + 1},
		{"there before", true, true, maxRetries + 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var dials atomic.Int32
			tr := newTransport(Patience{Backoff: time.Millisecond}, "")
			tr.plain.DisableKeepAlives = true
			dial := tr.plain.DialContext
			tr.plain.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				dials.Add(1)
				if dead.Load() {
					return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
				}
				return dial(ctx, network, addr)
			}
			get := func() (int32, error) {
				dials.Store(0)
				ctx := t.Context()
				if tt.passing {
					ctx = InPassing(ctx)
				}
				req, err := http.NewRequestWithContext(ctx, "GET", srv.URL, nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := tr.RoundTrip(req)
				if err == nil {
					resp.Body.Close()
				}
				return dials.Load(), err
			}
			dead.Store(false)
			if tt.seen {
				if _, err := get(); err != nil {
					t.Fatal(err)
				}
			}
			dead.Store(true)
			if n, err := get(); n != tt.want || !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%d tries, want %d: %v", n, tt.want, err)
			}
			if n, err := get(); n != 0 || err == nil {
				t.Errorf("again: %d tries, %v", n, err)
			}
		})
	}
}

// A pause that is made longer is longer for those who wait already, and they do not all go on at the same moment.
func TestHostWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := aHost(t)
		begin := time.Now()
		h.pause(time.Second)
		var mu sync.Mutex
		ends := make(map[time.Duration]bool)
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				if err := h.wait(t.Context()); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				ends[time.Since(begin)] = true
			})
		}
		time.Sleep(500 * time.Millisecond)
		h.pause(2 * time.Second)
		wg.Wait()
		for d := range ends {
			if d < 2500*time.Millisecond || d > 4*time.Second {
				t.Errorf("one goes on after %v", d)
			}
		}
		if len(ends) < 16 {
			t.Errorf("they go on at %d moments", len(ends))
		}
	})
}

func TestTransportIsCancelled(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "20")
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer srv.Close()
	tr := newTransport(Patience{}, "")
	defer tr.plain.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", srv.URL, nil)
	begin := time.Now()
	if _, err := tr.RoundTrip(req); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
}

// brokenSource gives bytes of s in pieces, each ending in one of errs in turn.
func brokenSource(s string, errs ...error) (open func(int64) (io.ReadCloser, error), opened *int) {
	opened = new(int)
	return func(offset int64) (io.ReadCloser, error) {
		i := *opened
		*opened++
		if i >= len(errs) {
			return io.NopCloser(strings.NewReader(s[offset:])), nil
		}
		n := min(offset+3, int64(len(s)))
		return io.NopCloser(io.MultiReader(strings.NewReader(s[offset:n]), errReader{errs[i]})), nil
	}, opened
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestResumingReader(t *testing.T) {
	const s = "the quick brown fox jumps over the lazy dog"
	quick := func(int) error { return nil }
	reset := errors.New("connection reset")
	open, opened := brokenSource(s, reset, io.EOF, reset)
	b, err := io.ReadAll(newResumingReader(int64(len(s)), open, quick))
	if err != nil || string(b) != s || *opened != 4 {
		t.Errorf("got %q, %v with %d connections", b, err, *opened)
	}

	open, opened = brokenSource(s, reset, reset, reset, reset, reset, reset, reset, reset, reset, reset)
	b, err = io.ReadAll(newResumingReader(int64(len(s)), open, quick))
	if !errors.Is(err, reset) || *opened != maxFailures+1 || !strings.HasPrefix(s, string(b)) {
		t.Errorf("got %q, %v with %d connections", b, err, *opened)
	}

	open, _ = brokenSource(s + " and more")
	b, err = io.ReadAll(newResumingReader(int64(len(s)), open, quick))
	if err != nil || string(b) != s {
		t.Errorf("got %q, %v", b, err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	open, _ = brokenSource(s, reset)
	if _, err = io.ReadAll(newResumingReader(int64(len(s)), open, func(int) error { return sleep(ctx, 0) })); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Credentials go where they were meant to go, and not to other hosts, ports and subdomains of the host: oras-go sees to it, net/http would not.
func TestRedirectsTakeNoCredentials(t *testing.T) {
	var got []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if to := r.URL.Query().Get("to"); to != "" {
			http.Redirect(w, r, to, http.StatusTemporaryRedirect)
			return
		}
		got = append(got, r.Header.Get("Authorization"))
	}))
	defer srv.Close()
	c := startClient(t, &Client{})
	c.transport.plain.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, srv.Listener.Addr().String())
	}
	for to, want := range map[string]string{
		"/elsewhere":                       "secret",
		"http://reg.example:5000/x":        "secret",
		"http://reg.example:5001/x":        "",
		"http://reg.example/x":             "",
		"http://storage.reg.example:5000/": "",
		"http://other.example:5000/":       "",
		"http://storage.reg.example/?to=http://storage.reg.example/y": "",
	} {
		got = nil
		req, err := http.NewRequest("GET", "http://reg.example:5000/v2/?to="+url.QueryEscape(to), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "secret")
		resp, err := c.session("reg.example:5000", "x").do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if len(got) != 1 || got[0] != want {
			t.Errorf("%s got the credentials %q, want %q", to, got, want)
		}
	}
}

func TestRedact(t *testing.T) {
	err := redact(errors.New(`Get "https://user:secret@s3.example/blob?X-Amz-Signature=secret&x=secret": EOF, then http://h/p?token=secret`))
	if want := `Get "https://s3.example/blob": EOF, then http://h/p`; err.Error() != want {
		t.Errorf("got %s", err)
	}
}

// A slowReader gives so many bytes at each moment, until it is cancelled.
type slowReader struct {
	ctx   context.Context
	bytes int
	every time.Duration
	left  int
}

func (r *slowReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	select {
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	case <-time.After(r.every):
	}
	n := min(r.bytes, len(p), r.left)
	r.left -= n
	return n, nil
}

func (r *slowReader) Close() error { return nil }

// What drips ends as what stops does, a reader's own pauses cost nothing, and what comes at a pace that people have at home comes whole.
func TestPace(t *testing.T) {
	const kib = 1 << 10
	for _, tt := range []struct {
		name   string
		stream bool
		bytes  int
		every  time.Duration
		size   int
		pause  time.Duration // of who reads
		want   time.Duration // when it ends; negative: before its end
	}{
		{"a document that drips", false, 1, 5 * time.Second, 1000, 0, -30 * time.Second},
		{"a document that stops", false, 100, time.Hour, 1000, 0, -30 * time.Second},
		{"a document by a modem", false, 7 * kib, time.Second, 200 * kib, 0, 29 * time.Second},
		{"the largest document, too slowly", false, 16 * kib, time.Second, 4 << 20, 0, -59 * time.Second},
		{"the largest document", false, 40 * kib, time.Second, 4 << 20, 0, 103 * time.Second},
		{"a stream that drips", true, 1, 5 * time.Second, 1000, 0, -30 * time.Second},
		{"a stream by a modem", true, 2 * kib, time.Second, 10 << 20, 0, 5120 * time.Second},
		{"a stream with pauses of the line", true, 30 * kib, 29 * time.Second, 300 * kib, 0, 290 * time.Second},
		{"a stream that is read slowly", true, 100, time.Second, 1000, time.Hour, 10*time.Hour + 10*time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				h := aHost(t)
				body := watch(&slowReader{ctx, tt.bytes, tt.every, tt.size}, cancel, Patience{}.orDefaults(), tt.stream, &h.vigil, false)
				defer body.Close()
				began := time.Now()
				n := 0
				var err error
				for buf := make([]byte, 64*kib); err == nil; {
					var k int
					k, err = body.Read(buf)
					if n += k; k > 0 {
						time.Sleep(tt.pause)
					}
				}
				took := time.Since(began).Round(time.Second)
				if slow := errors.Is(err, errStalled); slow != (tt.want < 0) || took != max(tt.want, -tt.want) {
					t.Errorf("%d bytes in %v: %v", n, took, err)
				}
			})
		})
	}
}

// TestRequestIsNotTaken is about a host that takes no more bytes of a request than the kernel does for it: it is sent somewhere with a very long name.
func TestRequestIsNotTaken(t *testing.T) {
	t.Parallel()
	deaf, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	from := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "http://"+deaf.Addr().String()+"/"+strings.Repeat("a", 9<<20))
		w.WriteHeader(http.StatusTemporaryRedirect)
	}))
	defer from.Close()
	tr := newTransport(Patience{Connect: time.Second / 2, Header: 3 * time.Second, Backoff: time.Millisecond}, "") // the other host is loaded, perhaps
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(asStream(ctx), http.MethodGet, from.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err == nil {
		resp.Body.Close()
	}
	if waited := new(waitedError); !errors.As(err, &waited) || waited.what != "the host took no request" {
		t.Errorf("another error, or none: %.300v, context %v", err, ctx.Err())
	}
}

// What a request was to send is closed, whether or not it is sent: it may be a file.
func TestTransportClosesBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := bubbleTransport(t, Patience{Backoff: time.Hour}, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
		var opened, open int
		body := func() (io.ReadCloser, error) {
			opened++
			open++
			return &countedBody{Reader: strings.NewReader("x"), close: func() { open-- }}, nil
		}
		put := func(ctx context.Context) {
			t.Helper()
			req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://registry.example", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Body, _ = body()
			req.ContentLength, req.GetBody = 1, body
			if _, err := tr.RoundTrip(req); err == nil {
				t.Error("it is answered")
			}
			synctest.Wait()
			if open != 0 {
				t.Errorf("%d of %d are open", open, opened)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		put(ctx) // ends before it is sent again
		put(ctx) // has ended before
		h, err := tr.host("registry.example")
		if err != nil {
			t.Fatal(err)
		}
		h.fails(false, "it sleeps")
		put(t.Context()) // to a host that is not asked any more
	})
}

type countedBody struct {
	io.Reader
	once  sync.Once
	close func()
}

func (b *countedBody) Close() error {
	b.once.Do(b.close)
	return nil
}
