package repo

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// patience says how long to wait for whom. Zero fields mean the values beside them.
type Patience struct {
	Connect  time.Duration // 10 s: for a connection, and for its TLS handshake
	Header   time.Duration // 30 s: for the head of a response, and a second more for each 8 MiB that were sent: registries verify and move them
	Stall    time.Duration // 30 s: for the next bytes of a body, either way; see pace
	Backoff  time.Duration // 250 ms: before the first retry; doubled for each further one
	Throttle time.Duration // 30 s: in all, for a host that asks for pauses for requests with one method, and does nothing else with them
	Vain     time.Duration // 30 s: in all, for a host that does nothing that it is asked; see vigil
	Tell     time.Duration // 2 s: of waiting for a host, the user is told
	short    bool          // header is for the connection, too
}

func (p Patience) orDefaults() Patience {
	return Patience{
		Connect:  cmp.Or(p.Connect, 10*time.Second),
		Header:   cmp.Or(p.Header, 30*time.Second),
		Stall:    cmp.Or(p.Stall, 30*time.Second),
		Backoff:  cmp.Or(p.Backoff, 250*time.Millisecond),
		Throttle: cmp.Or(p.Throttle, 30*time.Second),
		Vain:     cmp.Or(p.Vain, 30*time.Second),
		Tell:     cmp.Or(p.Tell, 2*time.Second),
	}
}

const (
	maxRetries  = 4
	maxInFlight = 32          // requests to a host that wait for an answer
	maxIdleHost = maxInFlight // with fewer, parallel requests over HTTP/1.1 begin with a handshake each
)

// transport sends requests: with the certificates of each host, again when a registry is busy or a connection broke, not too many at a time, and
// not before a host that asked for a pause has had it. It works on what does not change a registry, or comes to the same when done twice; other
// requests are marked by sendOnce. Patience with a host is spent once: one that did not answer, however often it was asked, gets one short try
// a request until it answers, one that refuses requests with some method gets one try for each of these until it does what it is asked, and one
// whose documents come too slowly gets one short try for each until one comes. All waiting for a host together ends with its vigil.
type transport struct {
	patience Patience
	certs    string           // directory with one of certificates for each host
	tell     func(msg string) // what is waited for, after two seconds; may be nil

	mu    sync.Mutex
	plain *http.Transport // for hosts without certificates of their own
	hosts map[string]*host
}

type host struct {
	http  *http.Transport
	slots chan struct{} // filled by requests that wait for an answer
	vigil vigil

	mu       sync.Mutex
	paused   time.Time                // no request before this
	seen     bool                     // it has answered
	silent   int                      // how many requests in turn it has not answered, nor any of their retries
	refusing map[string]bool          // by method: it has failed a request, and all its retries, or has asked for too long a pause
	waited   map[string]time.Duration // by method: the pauses that it has asked for since it last did what it was asked
	dragging bool                     // the last document that it sent came too slowly
}

func newTransport(p Patience, certs string) *transport {
	p = p.orDefaults()
	return &transport{
		patience: p,
		certs:    certs,
		hosts:    make(map[string]*host),
		plain: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: p.Connect, KeepAlive: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout: p.Connect,
			IdleConnTimeout:     90 * time.Second,
			MaxIdleConns:        4 * maxIdleHost,
			MaxIdleConnsPerHost: maxIdleHost,
			ForceAttemptHTTP2:   true,
			DisableCompression:  true, // digests and sizes are of the bytes as they are stored
		},
	}
}

func (t *transport) host(addr string) (*host, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.hosts[addr]; h != nil {
		return h, nil
	}
	h := &host{
		http:     t.plain,
		slots:    make(chan struct{}, maxInFlight),
		vigil:    vigil{host: addr, most: t.patience.Vain, tell: t.tell, after: t.patience.Tell},
		refusing: make(map[string]bool),
		waited:   make(map[string]time.Duration),
	}
	conf, err := hostTLS(t.certs, addr)
	if err != nil {
		return nil, err
	}
	if conf != nil {
		h.http = t.plain.Clone()
		h.http.TLSClientConfig = conf
	}
	t.hosts[addr] = h
	return h, nil
}

// hostTLS reads Docker's directory of certificates for a host: *.crt are authorities, *.cert and *.key a client's. It is nil without any.
func hostTLS(certs, addr string) (*tls.Config, error) {
	dir := filepath.Join(certs, certsDirName(addr))
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the certificates of %s: %w", addr, err)
	}
	conf := &tls.Config{}
	if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
		conf.RootCAs = x509.NewCertPool()
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch filepath.Ext(path) {
		case ".crt":
			pem, err := os.ReadFile(path)
			if err != nil {
				return nil, fmt.Errorf("read the certificates of %s: %w", addr, err)
			}
			if !conf.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("read the certificates of %s: %s holds none", addr, path)
			}
		case ".cert":
			pair, err := tls.LoadX509KeyPair(path, strings.TrimSuffix(path, ".cert")+".key")
			if err != nil {
				return nil, fmt.Errorf("read the certificates of %s: %w", addr, err)
			}
			conf.Certificates = append(conf.Certificates, pair)
		}
	}
	return conf, nil
}

type onceKey struct{}

// sendOnce marks requests that are not to be sent again by the transport: what they send cannot just be sent again to the same URL.
func sendOnce(ctx context.Context) context.Context { return context.WithValue(ctx, onceKey{}, true) }

type passingKey struct{}

// inPassing marks requests whose answer would only save work: a host that was never there is not waited for.
func InPassing(ctx context.Context) context.Context {
	return context.WithValue(ctx, passingKey{}, true)
}

type streamKey struct{}

// asDocument marks requests for blobs that are read into memory as a whole: somebody waits for each.
func asDocument(ctx context.Context) context.Context {
	return context.WithValue(ctx, streamKey{}, false)
}

// asStream marks requests for a blob: it may be long, and come slowly. A mark as a document stays.
func asStream(ctx context.Context) context.Context {
	if ctx.Value(streamKey{}) != nil {
		return ctx
	}
	return context.WithValue(ctx, streamKey{}, true)
}

// isStream reports how an answer is read. Whatever is no blob is a document: manifests, lists of tags, tokens.
func isStream(ctx context.Context) bool {
	stream, _ := ctx.Value(streamKey{}).(bool)
	return stream
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	defer func() {
		if err != nil && req.Body != nil {
			req.Body.Close() // of a request that was not sent nobody else does; twice does no harm
		}
	}()
	h, err := t.host(req.URL.Host)
	if err != nil {
		return nil, err
	}
	ctx := req.Context()
	once := ctx.Value(onceKey{}) != nil
	p, limit, hasty := h.temper(t.patience, ctx.Value(passingKey{}) != nil, req.Method)
	failures := 0
	for try := 0; ; try++ {
		if err := h.vigil.gate(); err != nil {
			return nil, err
		}
		resp, err = h.roundTrip(req, p)
		if ctx.Err() != nil || !isTransient(resp, err) {
			if err == nil {
				h.obeys(req.Method)
				if !isBodyAwaited(req, resp) {
					h.vigil.relents()
				}
			}
			return resp, err
		}
		h.vigil.fails(isTimeout(err))
		delay := jitter(p.Backoff << min(try, 5))
		throttled := isThrottled(resp)
		if throttled {
			if after := retryAfter(resp.Header.Get("Retry-After"), time.Now()); after > 0 {
				delay = after
			}
			if limit == 0 || !h.pause(req.Method, delay, p.Throttle) {
				return resp, nil
			}
		}
		if once {
			return resp, err
		}
		if !throttled {
			switch {
			case hasty && isTimeout(err):
				failures += maxRetries + 1
			case isTimeout(err), hasty && errors.Is(err, syscall.ECONNREFUSED):
				failures += 3 // it has cost enough time, or there never was anybody
			default:
				failures++
			}
			if failures > limit || h.vigil.isOver() {
				h.disappoints(req.Method, resp)
				return resp, err
			}
		}
		if !isRewindable(req) {
			return resp, err
		}
		if resp != nil {
			discard(resp)
		}
		if !throttled { // else the host's pause is waited for
			end := h.vigil.begin(failureText(resp, err))
			err := sleep(ctx, delay)
			end()
			if err != nil {
				return nil, err
			}
		}
		if req, err = rewind(req); err != nil {
			return nil, err
		}
	}
}

// isBodyAwaited reports whether it takes the body of a response to see that the host does what it was asked.
func isBodyAwaited(req *http.Request, resp *http.Response) bool {
	return req.Method == http.MethodGet && resp.StatusCode < 300 && resp.ContentLength != 0
}

// failureText says shortly why something is tried again.
func failureText(resp *http.Response, err error) string {
	if resp != nil {
		return fmt.Sprintf("it answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	return redact(err).Error()
}

// refuses reports whether requests with a method are no longer worth another try. They are not, neither, after failed.
func (t *transport) refuses(addr, method string) bool {
	h, err := t.host(addr)
	if err != nil {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.refusing[method] || h.silent > 0
}

// drags reports whether the last document of a host came too slowly.
func (t *transport) drags(addr string) bool {
	h, err := t.host(addr)
	if err != nil {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dragging
}

// failed notes that a request was in vain, however often somebody else than the transport has sent it.
func (t *transport) failed(addr, method string) {
	if h, err := t.host(addr); err == nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.refusing[method] = true
	}
}

// jitter spreads a delay, lest those who failed together try again together.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.75 + rand.Float64()/2))
}

// discard reads what is left of a small response, so that the connection can be used again.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
}

// roundTrip sends a request once the host may have it, and puts a watch over it and over the body of its response.
func (h *host) roundTrip(req *http.Request, p Patience) (*http.Response, error) {
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	if err := h.wait(req.Context()); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	w := newUploadWatch(p, req.ContentLength, cancel, &h.vigil)
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { w.sent() }}))
	w.wrap(req)
	if !hasBody(req) {
		w.wait() // from the first: connections take long to fail, too
	}
	if p.short {
		w.expect(w.answer)
	} else {
		w.expect(w.begin)
	}
	resp, err := h.http.RoundTrip(req)
	w.stop()
	if err != nil {
		if cause := context.Cause(ctx); errors.As(cause, new(*waitedError)) {
			err = cause
			if cause == error(w.stall) {
				h.vigil.adds(w.stall.d)
			}
		}
		cancel(nil)
		return nil, err
	}
	h.answers()
	simplifyChallenges(resp)
	pace := h.pace(p, isStream(req.Context()))
	resp.Body = &watchedBody{body: resp.Body, cancel: func() { cancel(nil) }, pace: pace, left: pace.wait, ended: h.ended(req.Context()), vigil: &h.vigil, refusal: isTransient(resp, nil)}
	return resp, nil
}

// A waitedError says for what a host was waited for in vain. It is a net.Error.
type waitedError struct {
	what string
	d    time.Duration
}

func (e *waitedError) Error() string   { return fmt.Sprintf("%s for %v", e.what, e.d) }
func (e *waitedError) Timeout() bool   { return true }
func (e *waitedError) Temporary() bool { return true }

// An uploadWatch ends a request whose body is not taken, or that is not answered. That the source of the body is slow does not count.
type uploadWatch struct {
	begin, stall, answer *waitedError
	cancel               context.CancelCauseFunc
	vigil                *vigil
	extra                time.Duration // in which a registry works on what was sent

	mu       sync.Mutex
	timer    *time.Timer
	done     bool
	stopWait func()
}

func newUploadWatch(p Patience, size int64, cancel context.CancelCauseFunc, v *vigil) *uploadWatch {
	extra := time.Duration(max(size, 0)>>23) * time.Second
	return &uploadWatch{
		vigil:  v,
		extra:  extra,
		begin:  &waitedError{"the host took no request", 2*p.Connect + p.Header}, // a long one, say, or none before another one ends
		stall:  &waitedError{"the host took no more bytes", p.Stall},
		answer: &waitedError{"the host did not answer", p.Header + extra},
		cancel: cancel,
	}
}

// expect starts to wait; for nothing if e is nil.
func (w *uploadWatch) expect(e *waitedError) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	if e != nil && !w.done {
		w.timer = time.AfterFunc(e.d, func() { w.cancel(e) })
	}
}

func (w *uploadWatch) sent() {
	w.expect(w.answer)
	if w.extra == 0 {
		w.wait()
	} else {
		time.AfterFunc(w.extra, w.wait)
	}
}

// wait has the time from now on count as waiting for the host.
func (w *uploadWatch) wait() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done || w.stopWait != nil {
		return
	}
	end := w.vigil.begin("it does not answer")
	began := time.Now()
	stop := func() {}
	if !w.vigil.isOver() { // else this is the try that sees whether it is back
		stop = w.vigil.within(func() { w.cancel(&waitedError{w.answer.what, time.Since(began).Round(100 * time.Millisecond)}) })
	}
	w.stopWait = func() { stop(); end() }
}

func (w *uploadWatch) stop() {
	w.mu.Lock()
	w.done = true
	if w.stopWait != nil {
		w.stopWait()
	}
	w.mu.Unlock()
	w.expect(nil)
}

// wrap puts the watch over the body of a request.
func (w *uploadWatch) wrap(req *http.Request) {
	if !hasBody(req) {
		return
	}
	req.Body = &watchedUpload{req.Body, w}
	if get := req.GetBody; get != nil {
		req.GetBody = func() (io.ReadCloser, error) {
			body, err := get()
			if err != nil {
				return nil, err
			}
			return &watchedUpload{body, w}, nil
		}
	}
}

type watchedUpload struct {
	io.ReadCloser
	watch *uploadWatch
}

func (u *watchedUpload) Read(p []byte) (int, error) {
	u.watch.expect(nil)
	n, err := u.ReadCloser.Read(p)
	u.watch.expect(u.watch.stall)
	return n, err
}

var errStalled = errors.New("the bytes came too slowly")

// A pace is how slowly a body may come: wait is how long bytes are waited for, in all, and each byte makes up for a part of a second, until wait is left
// again. So what stops ends after wait, and what drips a little later. All of n bytes takes at most wait and n/rate seconds.
type pace struct {
	wait time.Duration
	rate int64 // bytes a second
}

const (
	streamRate   = 1 << 10  // of layers: whoever downloads them sees how far they are, and can give up
	documentRate = 32 << 10 // of all else: somebody waits for it, and most of it is some kilobytes
)

// pace says how slowly the body of a response may come. A host that was too slow with a document gets little time for the next.
func (h *host) pace(p Patience, stream bool) pace {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dragging && !stream || h.vigil.isOver() {
		p.Stall = max(p.Stall/16, min(p.Stall, time.Second))
	}
	if stream {
		return pace{p.Stall, streamRate}
	}
	return pace{p.Stall, documentRate}
}

// ended notes how the body of a document came.
func (h *host) ended(ctx context.Context) func(tooSlow bool) {
	if isStream(ctx) {
		return func(bool) {}
	}
	return func(tooSlow bool) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.dragging = tooSlow
	}
}

// A watchedBody ends a response that comes too slowly. That the reader is slow does not count.
type watchedBody struct {
	body     io.ReadCloser
	cancel   context.CancelFunc
	pace     pace
	ended    func(tooSlow bool)
	watchdog *time.Timer
	left     time.Duration // for which bytes are waited for yet
	waited   time.Duration
	n        int64
	tooSlow  bool
	vigil    *vigil
	refusal  bool  // the body is not what was asked for
	relented int64 // n, when patience last began anew
}

// streamProgress is how much of a stream has to come for patience to begin anew.
const streamProgress = 16 << 10

func (b *watchedBody) Read(p []byte) (int, error) {
	left := b.left
	if rest := b.vigil.left(); rest > 0 {
		left = min(left, rest)
	}
	if b.watchdog == nil {
		b.watchdog = time.AfterFunc(left, b.cancel)
	} else {
		b.watchdog.Reset(left)
	}
	end := b.vigil.begin("the rest of what it sends does not come")
	began := time.Now()
	n, err := b.body.Read(p)
	end()
	b.tooSlow = !b.watchdog.Stop() || b.tooSlow // with the last bytes, maybe: the error comes with the next Read
	waited := time.Since(began)
	b.n, b.waited = b.n+int64(n), b.waited+waited
	b.left = min(max(b.left-waited, 0)+time.Duration(int64(n)*int64(time.Second)/b.pace.rate), b.pace.wait)
	if !b.refusal && (err == io.EOF || b.n-b.relented >= streamProgress) {
		b.relented = b.n
		b.vigil.relents()
	}
	switch {
	case err == io.EOF && b.n > 0:
		b.ended(false)
	case b.tooSlow && err != nil && err != io.EOF:
		b.ended(true)
		b.vigil.fails(true)
		err = fmt.Errorf("%w: %d in %v", errStalled, b.n, b.waited.Round(100*time.Millisecond))
	}
	return n, err
}

func (b *watchedBody) Close() error {
	err := b.body.Close()
	b.cancel()
	return err
}

func hasBody(req *http.Request) bool { return req.Body != nil && req.Body != http.NoBody }

func isRewindable(req *http.Request) bool { return !hasBody(req) || req.GetBody != nil }

// rewind makes of a rewindable request one that can be sent again.
func rewind(req *http.Request) (*http.Request, error) {
	if !hasBody(req) {
		return req, nil
	}
	body, err := req.GetBody()
	if err != nil {
		return req, err
	}
	again := req.Clone(req.Context())
	again.Body = body
	return again, nil
}

// isThrottled reports that a registry asks for fewer requests. 503 alone does not: gateways say it of a registry that is gone.
func isThrottled(resp *http.Response) bool {
	return resp != nil && (resp.StatusCode == http.StatusTooManyRequests ||
		resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "")
}

// isTransient reports a failure that may be gone in a moment.
func isTransient(resp *http.Response, err error) bool {
	if resp == nil {
		return isTimeout(err) || errors.Is(err, syscall.ECONNREFUSED) || isBroken(err)
	}
	return isPassing(resp.StatusCode) || isThrottled(resp)
}

// isPassing reports a status that may be another one in a moment.
func isPassing(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// isBroken reports a connection that ended early. The errors of net/http's HTTP/2 are told by their text alone.
func isBroken(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errStalled) ||
		err != nil && (strings.HasPrefix(err.Error(), "http2: ") || strings.HasPrefix(err.Error(), "stream error: "))
}

// retryAfter reads the header: seconds or a date.
func retryAfter(v string, now time.Time) time.Duration {
	if s, err := strconv.Atoi(v); err == nil {
		return time.Duration(min(max(s, 0), 1<<20)) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// temper says how patient a request is: with which limits of time, and how many retries. hasty ones take one failure for several.
func (h *host) temper(p Patience, passing bool, method string) (_ Patience, limit int, hasty bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	limit, hasty = maxRetries, passing && !h.seen
	switch {
	case h.silent > 1: // the end of a build may have many more
		p.Header = max(p.Header/16, min(p.Header, time.Second))
	case h.silent > 0, hasty:
		p.Header = max(p.Header/4, min(p.Header, time.Second))
	}
	p.short = h.silent > 0 || hasty
	if h.vigil.isOver() {
		p.Header, p.short, limit = min(p.Header, time.Second), true, 0
	}
	if h.silent > 0 || h.refusing[method] {
		limit = 0
	}
	return p, limit, hasty
}

// pause holds back all requests to a host: one that is refused tells of the others, too. It is false, and does nothing, if the host has asked for
// more in all than anybody waits for.
func (h *host) pause(method string, d, most time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d > h.vigil.left() {
		h.refusing[method] = true
		return false
	}
	until, from := time.Now().Add(d), time.Now()
	if h.paused.After(from) {
		from = h.paused
	}
	more := max(until.Sub(from), 0) // many are refused at the same time
	if h.waited[method]+more > most {
		h.refusing[method] = true
		return false
	}
	h.waited[method] += more
	h.paused = from.Add(more)
	return true
}

// obeys notes that a host has done what a method asked for, or had a good reason not to.
func (h *host) obeys(method string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.refusing, method)
	delete(h.waited, method)
}

// answers notes that a host is there.
func (h *host) answers() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen, h.silent = true, 0
}

// disappoints notes that a request and all its retries have failed.
func (h *host) disappoints(method string, resp *http.Response) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if resp == nil {
		h.silent++
	} else {
		h.refusing[method] = true
	}
}

// wait waits for the end of a pause, as often as that is put off meanwhile. Those who wait do not go on all at the same moment.
func (h *host) wait(ctx context.Context) error {
	end := func() {}
	defer func() { end() }()
	for waits := false; ; waits = true {
		h.mu.Lock()
		d := time.Until(h.paused)
		h.mu.Unlock()
		if d <= 0 {
			return ctx.Err()
		}
		if !waits {
			end = h.vigil.begin("it asks for fewer requests")
		}
		if err := sleep(ctx, d+time.Duration(rand.Float64()*float64(min(d, 4*time.Second))/4)); err != nil {
			return err
		}
	}
}

// sleep waits for d, or less if ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
