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

	"oras.land/oras-go/v2/registry/remote/retry"
)

// Patience says how long to wait for hosts. Zero fields mean the values beside them.
type Patience struct {
	Connect time.Duration // 10 s: for a connection, and for its TLS handshake
	Header  time.Duration // 30 s: for the head of a response, and a second more for each 8 MiB that were sent: registries verify and move them
	Stall   time.Duration // 30 s: for the next bytes of a body, either way; see pace
	Backoff time.Duration // 250 ms: before the first retry; doubled for each further one
	Vain    time.Duration // 30 s: in all, pauses that it asks for included, since the host last did what it was asked; see vigil
	Tell    time.Duration // 2 s: of waiting for a host, the user is told
}

func (p Patience) orDefaults() Patience {
	return Patience{
		Connect: cmp.Or(p.Connect, 10*time.Second),
		Header:  cmp.Or(p.Header, 30*time.Second),
		Stall:   cmp.Or(p.Stall, 30*time.Second),
		Backoff: cmp.Or(p.Backoff, 250*time.Millisecond),
		Vain:    cmp.Or(p.Vain, 30*time.Second),
		Tell:    cmp.Or(p.Tell, 2*time.Second),
	}
}

const (
	maxRetries  = 4
	maxInFlight = 32          // requests to a host that wait for an answer
	maxIdleHost = maxInFlight // with fewer, parallel requests over HTTP/1.1 begin with a handshake each
)

// A transport sends requests: with the certificates of each host, again when a registry is busy or a connection broke, not too many at a time, and
// not before a host that asked for a pause has had it. It works on what does not change a registry, or comes to the same when done twice; other
// requests are marked by sendOnce.
//
// A host that has failed a request and all its retries is down, and is not asked again in this run: at the first that it did not answer, or wanted longer
// pauses for than anybody waits, and at the second in a row that it answered with an error, for the fault may be with what one of them asked for.
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

	mu     sync.Mutex
	paused time.Time // no request before this
	seen   bool      // it has answered
	failed bool      // it has answered a request, and all its retries, with an error, and has given and taken nothing since
	down   error     // not nil: it is down, and why
}

// A downError says that a host is not asked any more, and why.
type downError struct{ why string }

func (e *downError) Error() string { return "it is not asked again in this run: " + e.why }

// isDown gives the error of requests that are not sent.
func (h *host) isDown() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down == nil && h.vigil.isOver() {
		h.down = &downError{fmt.Sprintf("it was waited for for %v in vain (%s)", h.vigil.most, h.vigil.reason())}
	}
	return h.down
}

// fails notes that a request and all its retries have failed; answered: with an error that the host answered.
func (h *host) fails(answered bool, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down == nil && (h.failed || !answered) {
		h.down = &downError{why}
	}
	h.failed = true
}

// obliges notes that the host has answered as it should.
func (h *host) obliges(req *http.Request, resp *http.Response) {
	if isPromise(req, resp) {
		return
	}
	if resp.StatusCode < 300 && req.Method != http.MethodHead {
		h.mu.Lock()
		h.failed = false
		h.mu.Unlock()
	}
	if !isBodyAwaited(req, resp) {
		h.vigil.relents()
	}
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
		http:  t.plain,
		slots: make(chan struct{}, maxInFlight),
		vigil: vigil{host: addr, most: t.patience.Vain, tell: t.tell, after: t.patience.Tell},
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

// InPassing marks requests whose answer would only save work: a host that was never there is not waited for.
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
	ctx := req.Context()
	req = req.WithContext(ctx) // a copy, which gets the bodies of further tries
	if req.Body == http.NoBody {
		req.Body = nil // which oras-go would not send again
	}
	defer func() {
		if err != nil && req.Body != nil {
			req.Body.Close() // of a request that was not sent nobody else does; twice does no harm
		}
	}()
	h, err := t.host(req.URL.Host)
	if err != nil {
		return nil, err
	}
	a := &attempt{host: h, req: req, patience: t.patience, once: ctx.Value(onceKey{}) != nil, hasty: ctx.Value(passingKey{}) != nil && !h.wasSeen()}
	if a.hasty {
		a.patience.Header = max(t.patience.Header/4, min(t.patience.Header, time.Second))
	}
	defer a.endWait()
	return (&retry.Transport{Base: a, Policy: func() retry.Policy { return a }}).RoundTrip(req)
}

// An attempt is one request with its retries: what oras-go's transport sends it by, and its policy.
type attempt struct {
	*host
	req      *http.Request
	patience Patience
	once     bool // it is not sent again
	hasty    bool // of a host that was never there, one failure counts for several
	failures int
	wait     func() // ends the wait for a retry; nil: nobody waits
}

func (a *attempt) endWait() {
	if a.wait != nil {
		a.wait()
		a.wait = nil
	}
}

// RoundTrip implements http.RoundTripper: it is one try.
func (a *attempt) RoundTrip(req *http.Request) (*http.Response, error) {
	a.endWait()
	if err := a.isDown(); err != nil {
		return nil, err
	}
	return a.roundTrip(req, a.patience, a.hasty)
}

// Retry implements retry.Policy.
func (a *attempt) Retry(try int, resp *http.Response, err error) (time.Duration, error) {
	const stop = -1
	if a.req.Context().Err() != nil || !isTransient(resp, err) {
		if err == nil {
			a.obliges(a.req, resp)
		}
		return stop, nil
	}
	delay := jitter(a.patience.Backoff << min(try, 5))
	if isThrottled(resp) {
		if after := retryAfter(resp.Header.Get("Retry-After"), time.Now()); after > 0 {
			delay = after
		}
		if !a.pause(delay) {
			a.fails(false, failureText(resp, err))
			return stop, nil
		}
		if a.once {
			return stop, nil
		}
		discard(resp)
		return 0, nil // the next try waits for the host's pause
	}
	if a.once {
		return stop, nil
	}
	switch {
	case a.hasty && isTimeout(err):
		a.failures += maxRetries + 1
	case isTimeout(err), a.hasty && errors.Is(err, syscall.ECONNREFUSED):
		a.failures += 3 // it has cost enough time, or there never was anybody
	default:
		a.failures++
	}
	if a.failures > maxRetries || a.vigil.isOver() {
		a.fails(resp != nil, failureText(resp, err))
		return stop, nil
	}
	if resp != nil {
		discard(resp)
	}
	a.wait = a.vigil.begin(failureText(resp, err))
	return delay, nil
}

// isPromise reports that an upload may begin. That is nothing yet: its blob may never be taken.
func isPromise(req *http.Request, resp *http.Response) bool {
	return req.Method == http.MethodPost && resp.StatusCode == http.StatusAccepted
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

// failed notes that a request was in vain, however often somebody else than the transport has sent it.
func (t *transport) failed(addr string, answered bool, err error) {
	if h, e := t.host(addr); e == nil {
		h.fails(answered, redact(err).Error())
	}
}

// rest waits before a host is asked again for what failed by err, however often somebody else than the transport has asked.
func (t *transport) rest(ctx context.Context, addr string, d time.Duration, err error) error {
	if h, e := t.host(addr); e == nil {
		defer h.vigil.begin(redact(err).Error())()
	}
	return sleep(ctx, d)
}

// isDown reports that a host is not asked any more.
func (t *transport) isDown(addr string) bool {
	h, err := t.host(addr)
	return err != nil || h.isDown() != nil
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
func (h *host) roundTrip(req *http.Request, p Patience, hasty bool) (*http.Response, error) {
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
	if hasty {
		w.expect(w.answer) // connecting included
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
	resp.Body = watch(resp.Body, func() { cancel(nil) }, p, isStream(req.Context()), &h.vigil, isTransient(resp, nil) || isPromise(req, resp))
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
	stop := w.vigil.within(func() { w.cancel(&waitedError{w.answer.what, time.Since(began).Round(100 * time.Millisecond)}) })
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

// A watchedBody ends a response that comes too slowly. That the reader is slow does not count.
type watchedBody struct {
	body     io.ReadCloser
	cancel   context.CancelFunc
	pace     pace
	watchdog *time.Timer
	left     time.Duration // for which bytes are waited for yet
	waited   time.Duration
	n        int64
	tooSlow  bool
	vigil    *vigil
	refusal  bool  // the body is not what was asked for
	relented int64 // n, when patience last began anew
}

// watch puts a watch over the body of a response; refusal: it is not what was asked for.
func watch(body io.ReadCloser, cancel func(), p Patience, stream bool, v *vigil, refusal bool) *watchedBody {
	pace := pace{p.Stall, documentRate}
	if stream {
		pace.rate = streamRate
	}
	return &watchedBody{body: body, cancel: cancel, pace: pace, left: pace.wait, vigil: v, refusal: refusal}
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
	if b.tooSlow && err != nil && err != io.EOF {
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

// pause holds back all requests to a host: one that is refused tells of the others, too. It is false, and does nothing, if the host asks for
// more than anybody waits for.
func (h *host) pause(d time.Duration) bool {
	if d > h.vigil.left() {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if until := time.Now().Add(d); until.After(h.paused) {
		h.paused = until
	}
	return true
}

// answers notes that a host is there.
func (h *host) answers() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = true
}

func (h *host) wasSeen() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.seen
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
