package registry

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	orasregistry "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// A client speaks to registries: connections, logins, tokens. One serves a whole process, so that all of it shares these.
type client struct {
	http      *http.Client
	userAgent string
	transport *transport
	plainHTTP []string
	logins    *Logins

	probing sync.Mutex
	plain   map[string]bool // loopback hosts: whether they speak HTTP

	mu       sync.Mutex
	sessions map[string]*session
}

// A session speaks to one registry with one login, if there is one: repositories that share it share its tokens.
type session struct {
	http   *auth.Client
	logins []login // where the login may be

	mu   sync.Mutex
	from string // the file that the login is from
	err  error  // why one could not be had
}

func newClient(plainHTTP []string, userAgent string, p patience, certs string, tell func(string)) (*client, error) {
	logins, err := ReadLogins()
	if err != nil {
		return nil, err
	}
	t := newTransport(p, certs)
	t.tell = tell
	return &client{
		http:      &http.Client{Transport: t},
		userAgent: cmp.Or(userAgent, "obx"),
		transport: t,
		plainHTTP: plainHTTP,
		logins:    logins,
		plain:     make(map[string]bool),
		sessions:  make(map[string]*session),
	}, nil
}

// session returns the one for a repository.
func (c *client) session(host, repository string) *session {
	host = loginHost(host)
	logins := c.logins.find(host, repository)
	key := host
	for _, l := range logins {
		key += "\n" + l.file + "\n" + l.name
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sessions[key]
	if s == nil {
		s = &session{logins: logins}
		s.http = c.authClient(func(ctx context.Context, at string) (auth.Credential, error) {
			if at = loginHost(at); at != host { // an upload goes on where the registry says
				return c.session(at, "").credential(ctx)
			}
			return s.credential(ctx)
		})
		c.sessions[key] = s
	}
	return s
}

func (c *client) authClient(get auth.CredentialFunc) *auth.Client {
	return &auth.Client{
		Client:     c.http,
		Header:     http.Header{"User-Agent": {c.userAgent}},
		ClientID:   "obx",
		Cache:      auth.NewCache(),
		Credential: get,
	}
}

// credential gets the first login that there is. Where one cannot be had it goes on without, as Docker's own tools do: most images are public. The
// reason is told if access is refused.
func (s *session) credential(ctx context.Context) (auth.Credential, error) {
	for _, l := range s.logins {
		cred, err := l.get(ctx)
		if err != nil && ctx.Err() != nil {
			return auth.EmptyCredential, err
		}
		s.mu.Lock()
		if err != nil {
			s.err = fmt.Errorf("get the login that %s says: %w", l.file, err)
		} else if cred != auth.EmptyCredential {
			s.from = l.file
		}
		s.mu.Unlock()
		if err == nil && cred != auth.EmptyCredential {
			return cred, nil
		}
	}
	return auth.EmptyCredential, nil
}

// refusal says of an access that is refused whose login it had, or why none.
func (s *session) refusal(host, repository string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	again := "obx login " + host
	switch {
	case s.from != "":
		return fmt.Errorf("%s: access to %s is refused with the login that %s has: check the name, or log in again with `%s`", host, repository, s.from, again)
	case s.err != nil:
		return fmt.Errorf("%s: access is refused: %w", host, redact(s.err))
	}
	return fmt.Errorf("%s: access to %s is refused, or there is no such repository: check the name, and log in with `%s`", host, repository, again)
}

// do sends a request, with a login. Of an error before that, only what concerns access is one of the request itself.
func (s *session) do(req *http.Request) (*http.Response, error) {
	resp, err := s.http.Do(req)
	switch statusOf(err) {
	case 0, http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests:
		return resp, err
	}
	return nil, &loginError{redact(err)}
}

// A loginError is a failure of who gives out tokens. Its status says nothing of what was to be requested, and is not to be found.
type loginError struct{ err error }

func (e *loginError) Error() string { return "get a token: " + e.err.Error() }

// A repository is one repository of a registry, with the oras-go client for it.
type repository struct {
	client  *client
	session *session
	ref     orasregistry.Reference
}

func (c *client) repository(host, path string) *repository {
	return &repository{client: c, session: c.session(host, path), ref: orasregistry.Reference{Registry: host, Repository: path}}
}

func (r *repository) oras(ctx context.Context) *remote.Repository {
	return &remote.Repository{
		Client:             r.session.http,
		Reference:          r.ref,
		PlainHTTP:          r.client.isPlain(ctx, r.ref.Host()),
		ManifestMediaTypes: acceptedDocuments(),
		MaxMetadataBytes:   maxDocument,
	}
}

// find implements source.
func (r *repository) find(ctx context.Context, n imageName) ([]ocispec.Descriptor, error) {
	desc, err := r.resolve(ctx, cmp.Or(n.digest.String(), n.tag))
	if err != nil {
		return nil, err
	}
	return []ocispec.Descriptor{desc}, nil
}

// resolve asks what a tag or digest names, by HEAD: registries that count pulls do not count it.
func (r *repository) resolve(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	oras := r.oras(ctx)
	desc, err := oras.Resolve(ctx, reference)
	var status *errcode.ErrorResponse
	if err != nil && ctx.Err() == nil && !errors.Is(err, errdef.ErrNotFound) && (!errors.As(err, &status) || knowsNoHead(status.StatusCode)) && !isNetwork(err) {
		// Some registries leave the digest or the size out of the answer to a HEAD, or know no HEAD.
		var rc io.ReadCloser
		if desc, rc, err = oras.FetchReference(ctx, reference); err == nil {
			rc.Close()
		}
	}
	if err == nil && isVague(desc.MediaType) {
		var b []byte
		if b, err = r.manifest(ctx, desc.Digest); err == nil {
			if t, terr := mediaTypeOf(b); terr == nil {
				desc.MediaType = t
			}
		}
		return desc, err
	}
	if errors.Is(err, errdef.ErrNotFound) {
		return desc, fmt.Errorf("%w: check the name and the tag, or say what it means with --base NAME=REF", r.explain(err))
	}
	if err != nil {
		return desc, r.explain(err)
	}
	return desc, nil
}

// knowsNoHead reports the answers of registries that do not know the method HEAD.
func knowsNoHead(status int) bool {
	return status == http.StatusMethodNotAllowed || status == http.StatusBadRequest || status == http.StatusNotImplemented
}

// isVague reports a media type that says nothing of a document, as some registries and proxies give for all: the document itself has to.
func isVague(mediaType string) bool {
	switch mediaType {
	case "", "application/json", "application/octet-stream", "text/plain":
		return true
	}
	return false
}

// manifest reads an index or a manifest.
func (r *repository) manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	desc, rc, err := r.oras(ctx).FetchReference(ctx, d.String())
	if err != nil {
		return nil, fmt.Errorf("fetch manifest %s: %w", d, r.explain(err))
	}
	defer rc.Close()
	if desc.Size > maxDocument {
		return nil, fmt.Errorf("manifest %s has %d bytes, which is too large: at most %d", d, desc.Size, maxDocument)
	}
	b, err := content.ReadAll(rc, desc)
	if err != nil {
		return nil, fmt.Errorf("fetch manifest %s: %w", d, r.explain(err))
	}
	return b, nil
}

// blob opens a blob, by the first request. The reader takes up broken connections where they ended; it does not verify.
func (r *repository) blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	open := func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		rc, err := r.openBlob(ctx, desc, offset)
		if err != nil {
			return nil, r.explain(err)
		}
		return rc, nil
	}
	rc := newResumingReader(ctx, desc.Size, r.client.transport.patience.backoff, open)
	if err := rc.begin(); err != nil {
		return nil, err
	}
	return rc, nil
}

// openBlob is remote.Repository's Fetch with an offset: that one has to begin a transfer before it can seek.
func (r *repository) openBlob(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	scheme := "https"
	if r.client.isPlain(ctx, r.ref.Host()) {
		scheme = "http"
	}
	url := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", scheme, r.ref.Host(), r.ref.Repository, desc.Digest)
	ctx = asStream(auth.AppendRepositoryScope(ctx, r.ref, auth.ActionPull))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, desc.Size-1))
	}
	resp, err := r.session.do(req)
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusPartialContent:
		if want := fmt.Sprintf("bytes %d-%d/", offset, desc.Size-1); !strings.HasPrefix(resp.Header.Get("Content-Range"), want) {
			err = fmt.Errorf("%w: asked for %s, got %q", errWrongRange, want, resp.Header.Get("Content-Range"))
		}
	case http.StatusOK:
		if resp.ContentLength >= 0 && resp.ContentLength != desc.Size {
			err = fmt.Errorf("%w: what is there has %d bytes, but the manifest says %d", ErrNotFound, resp.ContentLength, desc.Size)
		} else if offset > 0 { // the server does not know ranges
			_, err = io.CopyN(io.Discard, resp.Body, offset)
		}
	case http.StatusNotFound:
		err = errdef.ErrNotFound
	default:
		err = &errcode.ErrorResponse{Method: req.Method, URL: resp.Request.URL, StatusCode: resp.StatusCode}
		if host := resp.Request.URL.Host; host != req.URL.Host {
			err = fmt.Errorf("it redirects to %s, which answers %s", host, resp.Status) // no login would help
		}
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil
}

// isPlain decides between HTTP and HTTPS. A loopback host is asked: it may speak either.
func (c *client) isPlain(ctx context.Context, addr string) bool {
	hostname, _, err := net.SplitHostPort(addr)
	if err != nil {
		hostname = addr
	}
	if slices.Contains(c.plainHTTP, addr) || slices.Contains(c.plainHTTP, hostname) {
		return true
	}
	if !isLoopback(hostname) {
		return false
	}
	c.probing.Lock()
	defer c.probing.Unlock()
	plain, known := c.plain[addr]
	if !known {
		if plain, known = c.speaksHTTP(ctx, addr); known {
			c.plain[addr] = plain
		}
	}
	return plain
}

func isLoopback(hostname string) bool {
	if hostname == "localhost" || strings.HasSuffix(hostname, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(hostname, "[]"))
	return err == nil && ip.IsLoopback()
}

// speaksHTTP begins a TLS handshake, and sees whether the answer is one. known is false if nobody answers.
func (c *client) speaksHTTP(ctx context.Context, addr string) (plain, known bool) {
	dial, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), "443")
	}
	conn, err := c.transport.plain.DialContext(dial, "tcp", addr)
	if err != nil {
		return true, false
	}
	defer conn.Close()
	// Nothing is sent over this connection: that the certificate is right is seen to by the real one. The protocol's name holds an
	// empty line, so that an HTTP server sees the end of a bad request, and does not wait for more.
	err = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"\r\n\r\n"}}).HandshakeContext(dial)
	var header tls.RecordHeaderError
	return errors.As(err, &header) || err != nil && isTransient(nil, err), ctx.Err() == nil
}

func isNetwork(err error) bool {
	var op *net.OpError
	var verify *tls.CertificateVerificationError
	return isTransient(nil, err) || errors.As(err, &op) || errors.As(err, &verify) || errors.Is(err, http.ErrSchemeMismatch)
}

// explain says what the registry's answer means, and what to do.
func (r *repository) explain(err error) error {
	host := r.ref.Registry
	var (
		status  *errcode.ErrorResponse
		unknown x509.UnknownAuthorityError
		verify  *tls.CertificateVerificationError
		dns     *net.DNSError
	)
	switch {
	case errors.Is(err, context.Canceled), errors.As(err, new(*privateError)):
		return err
	case errors.Is(err, errdef.ErrNotFound):
		return fmt.Errorf("%s: %w", host, ErrNotFound)
	case errors.Is(err, auth.ErrBasicCredentialNotFound),
		errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden):
		return r.session.refusal(host, r.ref.Repository)
	case errors.As(err, &status) && status.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("%s: too many requests: wait, log in with `obx login %[1]s`, or use a mirror (--mirror %[1]s=HOST)", host)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%s: it speaks HTTP, not HTTPS: allow that with --plain-http %s", host, host)
	case errors.As(err, &unknown):
		return fmt.Errorf("%s: its certificate is of an unknown authority: put the authority's into %s, or name it in SSL_CERT_FILE",
			host, filepath.Join(r.client.transport.certs, certsDirName(r.ref.Host()), "ca.crt"))
	case errors.As(err, &verify):
		return fmt.Errorf("%s: its certificate is not valid: %w", host, verify.Err)
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Errorf("%s: there is no host %s: check the name and the network", host, dns.Name)
	}
	if status != nil && err.Error() == status.Error() {
		return fmt.Errorf("%s: %w", host, &answered{status})
	}
	return fmt.Errorf("%s: %w", host, redact(err))
}

// answered is a registry's refusal, without the URL, which whoever made the request has told in better words.
type answered struct{ *errcode.ErrorResponse }

func (e *answered) Unwrap() error { return e.ErrorResponse }

func (e *answered) Error() string {
	text := fmt.Sprintf("it answers %d %s to %s", e.StatusCode, http.StatusText(e.StatusCode), e.Method)
	if len(e.Errors) > 0 {
		text += ": " + e.Errors.Error()
	}
	if e.StatusCode == http.StatusRequestEntityTooLarge {
		text += " (a proxy before the registry may limit the size of requests)"
	}
	return text
}

// redacted is an error whose text may hold URLs with credentials: those of storage that registries redirect to are signed, and
// requests for tokens name the account.
type redacted struct{ err error }

var urlSecrets = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(https?://)(?:[^/\s"@]*@)?([^\s"?]*)(?:\?[^\s"]*)?`)
})

func redact(err error) error     { return redacted{err} }
func (e redacted) Error() string { return urlSecrets().ReplaceAllString(e.err.Error(), "$1$2") }
func (e redacted) Unwrap() error { return e.err }
