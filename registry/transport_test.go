package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
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
			tr := newTransport(patience{backoff: time.Millisecond}, "")
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
	tr := newTransport(patience{backoff: time.Millisecond}, "")
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
	tr := newTransport(patience{}, "")
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

func TestTransportIsCancelled(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "60")
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer srv.Close()
	tr := newTransport(patience{}, "")
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
func brokenSource(s string, errs ...error) (open func(context.Context, int64) (io.ReadCloser, error), opened *int) {
	opened = new(int)
	return func(_ context.Context, offset int64) (io.ReadCloser, error) {
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
	const quick = time.Microsecond
	reset := errors.New("connection reset")
	open, opened := brokenSource(s, reset, io.EOF, reset)
	b, err := io.ReadAll(newResumingReader(context.Background(), int64(len(s)), quick, open))
	if err != nil || string(b) != s || *opened != 4 {
		t.Errorf("got %q, %v with %d connections", b, err, *opened)
	}

	open, opened = brokenSource(s, reset, reset, reset, reset, reset, reset, reset, reset, reset, reset)
	b, err = io.ReadAll(newResumingReader(context.Background(), int64(len(s)), quick, open))
	if !errors.Is(err, reset) || *opened != maxFailures+1 || !strings.HasPrefix(s, string(b)) {
		t.Errorf("got %q, %v with %d connections", b, err, *opened)
	}

	open, _ = brokenSource(s + " and more")
	b, err = io.ReadAll(newResumingReader(context.Background(), int64(len(s)), quick, open))
	if err != nil || string(b) != s {
		t.Errorf("got %q, %v", b, err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	open, _ = brokenSource(s, reset)
	if _, err = io.ReadAll(newResumingReader(ctx, int64(len(s)), quick, open)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRedact(t *testing.T) {
	err := redact(errors.New(`Get "https://user:secret@s3.example/blob?X-Amz-Signature=secret&x=secret": EOF, then http://h/p?token=secret`))
	if want := `Get "https://s3.example/blob": EOF, then http://h/p`; err.Error() != want {
		t.Errorf("got %s", err)
	}
}
