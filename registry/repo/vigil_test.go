package repo

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Whatever a host does instead of what it is asked, all requests to it together wait for it as long as one, and the user is told.
func TestVainWaiting(t *testing.T) {
	const vain = time.Second
	hang := func(r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-time.After(4 * vain):
		}
	}
	tests := []struct {
		name    string
		handler http.HandlerFunc
		why     string
	}{
		{"does not answer", func(_ http.ResponseWriter, r *http.Request) { hang(r) }, "it does not answer"},
		{"asks for pauses", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) }, "it asks for fewer requests"},
		{"asks slowly for pauses", func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(100 * time.Millisecond)
			w.WriteHeader(429)
		}, ""},
		{"refuses slowly", func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(200 * time.Millisecond)
			w.WriteHeader(503)
		}, ""},
		{"stops", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, "begin")
			_ = http.NewResponseController(w).Flush()
			hang(r)
		}, "the rest of what it sends does not come"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(tt.handler)
			defer srv.Close()
			defer srv.CloseClientConnections()
			var mu sync.Mutex
			var told []string
			tr := newTransport(Patience{Vain: vain, Backoff: 20 * time.Millisecond, Tell: 100 * time.Millisecond}, "")
			tr.tell = func(msg string) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, msg)
			}
			defer tr.plain.CloseIdleConnections()
			get := func(method string) {
				req, err := http.NewRequest(method, srv.URL, http.NoBody)
				if err != nil {
					t.Error(err)
					return
				}
				resp, err := tr.RoundTrip(req)
				if err != nil {
					return
				}
				defer resp.Body.Close()
				_, err = io.ReadAll(resp.Body)
				if err == nil && resp.StatusCode == 200 && method != "HEAD" {
					t.Error("it was answered")
				}
			}
			begin := time.Now()
			var wg sync.WaitGroup
			methods := []string{"HEAD", "GET", "PUT"}
			if tt.name == "stops" { // the answer to a HEAD is whole
				methods = []string{"GET", "GET", "GET"}
			}
			for _, method := range methods {
				wg.Go(func() {
					for range 20 {
						get(method)
					}
				})
			}
			wg.Wait()
			// What answers is asked once more for each request, which takes the time of its answers; no pause is waited for.
			if took := time.Since(begin); took > 6*vain || tt.why != "" && took > 2*vain {
				t.Errorf("it took %v", took)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(told) != 1 || !strings.HasPrefix(told[0], "waiting for "+srv.Listener.Addr().String()+": "+tt.why) || !strings.HasSuffix(told[0], "and for 1s at most") {
				t.Errorf("told %q", told)
			}
		})
	}
}

func TestVigil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := make(chan string, 10)
		v := vigil{host: "r.example", most: 30 * time.Second, after: 2 * time.Second, tell: func(msg string) { told <- msg }}
		// Two at the same time wait once.
		a, b := v.begin("a"), v.begin("it sleeps")
		time.Sleep(3 * time.Second)
		a()
		time.Sleep(7 * time.Second)
		b()
		time.Sleep(time.Hour) // nobody waits
		if left := v.left(); left != 20*time.Second {
			t.Errorf("%v left", left)
		}
		if msg := <-told; len(told) != 0 || msg != "waiting for r.example: it sleeps; for 2s now, and for 30s at most" {
			t.Errorf("told %q, and %d more", msg, len(told))
		}
		// Somebody else has an answer meanwhile.
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		c := v.begin("c")
		stop := v.within(cancel)
		time.Sleep(15 * time.Second)
		v.relents()
		<-ctx.Done()
		if d := time.Since(began); d != 45*time.Second {
			t.Errorf("it ended after %v", d)
		}
		stop()
		c()
		v.relents()
		if v.isOver() {
			t.Error("it is back")
		}
	})
}
