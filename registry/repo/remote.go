package repo

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	orasregistry "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/ocurrent/obx/registry/internal/oci"
)

// A remoteRepo is a repository of a registry. Each method is one request, PutBlob two: oras-go's own client asks first whether a thing is there.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
type remoteRepo struct {
	client  *Client
	session *session
	ref     orasregistry.Reference
	sent    atomic.Int64 // requests
}

// Name implements Repo.
func (r *remoteRepo) Name() string { return r.ref.Registry + "/" + r.ref.Repository }

// Requests tells how many requests were made since the last call.
func (r *remoteRepo) Requests() int { return int(r.sent.Swap(0)) }

// fail says what was being done in which repository.
func (r *remoteRepo) fail(verb, what string, err error) error {
	return fmt.Errorf("%s %s of %s: %w", verb, what, r.Name(), err)
}

// read and write are what a token must allow.
var (
	read  = []string{auth.ActionPull}
	write = []string{auth.ActionPull, auth.ActionPush}
)

// base is where the registry begins.
func (r *remoteRepo) base(ctx context.Context) string {
	scheme := "https"
	if r.client.isPlain(ctx, r.ref.Host()) {
		scheme = "http"
	}
	return scheme + "://" + r.ref.Host() + "/v2/"
}

// url is that of an endpoint of the repository.
func (r *remoteRepo) url(ctx context.Context, endpoint string) string {
	return r.base(ctx) + r.ref.Repository + "/" + endpoint
}

// newRequest makes a request for an endpoint of the repository.
func (r *remoteRepo) newRequest(ctx context.Context, method, endpoint string, body []byte, actions []string) (*http.Request, error) {
	ctx = auth.AppendRepositoryScope(ctx, r.ref, actions...)
	req, err := http.NewRequestWithContext(ctx, method, r.url(ctx, endpoint), bytes.NewReader(body))
	if err == nil {
		req.Header["X-Idempotency-Key"] = nil // is not sent: net/http may send again what a connection closed while idle has lost
	}
	return req, err
}

// do sends a request. Any status but those in want is an error, ErrNotFound for 404.
func (r *remoteRepo) do(req *http.Request, want ...int) (*http.Response, error) {
	r.sent.Add(1)
	resp, err := r.session.do(req)
	if err != nil {
		return nil, err
	}
	if slices.Contains(want, resp.StatusCode) {
		return resp, nil
	}
	defer discard(resp)
	if host := resp.Request.URL.Host; host != req.URL.Host && resp.StatusCode != http.StatusNotFound {
		return nil, &redirectError{host, resp.StatusCode}
	}
	if isThrottled(resp) {
		return nil, &throttledError{answerError(resp)}
	}
	return nil, answerError(resp)
}

// manifestRequest asks for a manifest.
func (r *remoteRepo) manifestRequest(ctx context.Context, method, ref string) (*http.Response, error) {
	if err := oci.CheckRef(ref); err != nil {
		return nil, err
	}
	req, err := r.newRequest(ctx, method, "manifests/"+ref, nil, read)
	if err != nil {
		return nil, err
	}
	req.Header["Accept"] = []string{strings.Join(oci.Accepted(), ", ")}
	return r.do(req, http.StatusOK)
}

func mediaTypeIn(resp *http.Response) string {
	mediaType, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return mediaType
}

// Head implements Repo.
func (r *remoteRepo) Head(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	resp, err := r.manifestRequest(ctx, http.MethodHead, ref)
	if err == nil {
		discard(resp)
		desc := ocispec.Descriptor{MediaType: mediaTypeIn(resp), Digest: digest.Digest(resp.Header.Get("Docker-Content-Digest")), Size: resp.ContentLength}
		if oci.CheckDigest(desc.Digest) == nil && desc.Size >= 0 {
			return desc, nil
		}
	} else if status := statusOf(err); status != http.StatusMethodNotAllowed && status != http.StatusBadRequest && status != http.StatusNotImplemented {
		return ocispec.Descriptor{}, r.fail("look at", "manifest "+ref, cmp.Or(ctx.Err(), r.explainRead(err)))
	}
	// Some registries leave the digest or the size out of the answer to a HEAD, or know no HEAD.
	desc, _, err := r.Manifest(ctx, ref)
	return desc, err
}

// Manifest implements Repo.
func (r *remoteRepo) Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	var desc ocispec.Descriptor
	var b []byte
	err := r.whole(ctx, func() (err error) {
		desc, b, err = r.readManifest(ctx, ref)
		return err
	})
	if err != nil {
		return ocispec.Descriptor{}, nil, r.fail("read", "manifest "+ref, cmp.Or(ctx.Err(), r.explainRead(err)))
	}
	return desc, b, nil
}

// A brokenBody is an error that came after a response had begun, where the transport sends nothing again.
type brokenBody struct{ err error }

func (e *brokenBody) Error() string { return e.err.Error() }
func (e *brokenBody) Unwrap() error { return e.err }

// whole asks again while the answer breaks.
func (r *remoteRepo) whole(ctx context.Context, ask func() error) error {
	for failures := 0; ; {
		err := ask()
		if ctx.Err() != nil || !errors.As(err, new(*brokenBody)) {
			return err
		}
		if failures++; errors.Is(err, errStalled) {
			failures += 2 // it has cost enough time
		}
		if failures > maxRetries {
			r.client.transport.failed(r.ref.Host(), !errors.Is(err, errStalled), err)
			return err
		}
		if err := sleep(ctx, jitter(r.client.transport.patience.Backoff<<(failures-1))); err != nil {
			return err
		}
	}
}

func (r *remoteRepo) readManifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	resp, err := r.manifestRequest(ctx, http.MethodGet, ref)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, oci.MaxDocument+1))
	if err != nil {
		return ocispec.Descriptor{}, nil, &brokenBody{err}
	}
	if len(b) > oci.MaxDocument {
		return ocispec.Descriptor{}, nil, fmt.Errorf("%w: what is there is too large for a manifest: it has more than %d bytes", ErrNotFound, oci.MaxDocument)
	}
	mediaType := mediaTypeIn(resp)
	if mediaType == "" || mediaType == "application/json" || mediaType == "application/octet-stream" {
		if t, err := oci.MediaTypeOf(b); err == nil {
			mediaType = t
		}
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if !oci.IsTag(ref) && desc.Digest.String() != ref {
		return desc, nil, fmt.Errorf("%w: what is there has the digest %s", ErrNotFound, desc.Digest)
	}
	return desc, b, nil
}

// Blob implements Repo.
func (r *remoteRepo) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := oci.CheckDigest(desc.Digest); err != nil {
		return nil, err
	}
	rc := newResumingReader(desc.Size, func(offset int64) (io.ReadCloser, error) {
		rc, err := r.openBlob(ctx, desc, offset)
		if err != nil {
			return nil, r.explainRead(err)
		}
		return rc, nil
	}, func(tries int) error { return sleep(ctx, r.client.transport.patience.Backoff<<min(tries, 4)) })
	if err := rc.begin(); err != nil {
		return nil, r.fail("read", "blob "+desc.Digest.String(), cmp.Or(ctx.Err(), err))
	}
	return rc, nil
}

// openBlob asks for a blob from a byte on.
func (r *remoteRepo) openBlob(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	req, err := r.newRequest(asStream(ctx), http.MethodGet, "blobs/"+desc.Digest.String(), nil, read)
	if err != nil {
		return nil, err
	}
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, desc.Size-1))
	}
	resp, err := r.do(req, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return nil, err
	}
	switch want := fmt.Sprintf("bytes %d-%d/", offset, desc.Size-1); {
	case resp.StatusCode == http.StatusPartialContent:
		if !strings.HasPrefix(resp.Header.Get("Content-Range"), want) {
			err = fmt.Errorf("%w: asked for %s, got %q", errWrongRange, want, resp.Header.Get("Content-Range"))
		}
	case resp.ContentLength >= 0 && resp.ContentLength != desc.Size:
		err = fmt.Errorf("%w: what is there has %d bytes, but the manifest says %d", ErrNotFound, resp.ContentLength, desc.Size)
	case offset > 0: // the server does not know ranges
		_, err = io.CopyN(io.Discard, resp.Body, offset)
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil
}

// HasBlob implements Repo.
func (r *remoteRepo) HasBlob(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	if err := oci.CheckDigest(desc.Digest); err != nil {
		return false, err
	}
	req, err := r.newRequest(ctx, http.MethodHead, "blobs/"+desc.Digest.String(), nil, read)
	if err != nil {
		return false, err
	}
	resp, err := r.do(req, http.StatusOK)
	switch {
	case statusOf(err) == http.StatusNotFound:
		return false, nil
	case err != nil:
		return false, r.fail("look for", "blob "+desc.Digest.String(), cmp.Or(ctx.Err(), r.explainRead(err)))
	}
	discard(resp)
	return resp.ContentLength < 0 || resp.ContentLength == desc.Size, nil
}

// PutBlob implements Repo.
func (r *remoteRepo) PutBlob(ctx context.Context, desc ocispec.Descriptor, from string, open func() (io.ReadCloser, error)) error {
	if err := oci.CheckDigest(desc.Digest); err != nil {
		return err
	}
	if err := r.putBlob(ctx, desc, from, open); err != nil {
		return fmt.Errorf("upload to %s: %w", r.Name(), cmp.Or(ctx.Err(), r.explainWrite(err))) // which blob, the caller says
	}
	return nil
}

// putBlob begins an upload anew when one fails: what the registry has of the first cannot be known.
func (r *remoteRepo) putBlob(ctx context.Context, desc ocispec.Descriptor, from string, open func() (io.ReadCloser, error)) error {
	t := r.client.transport
	for failures, try := 0, 0; ; try++ {
		session, err := r.beginUpload(ctx, desc, from)
		if err != nil || session == nil {
			return err
		}
		err = r.upload(ctx, session, desc, open)
		if err == nil || ctx.Err() != nil {
			return err
		}
		status := statusOf(err)
		if elsewhere := new(redirectError); errors.As(err, &elsewhere) {
			status = elsewhere.status
		}
		switch {
		case errors.As(err, new(*sourceError)), errors.As(err, new(*downError)), errors.As(err, new(*loginError)), errors.As(err, new(*PrivateError)):
			return err // another try would end the same
		case errors.As(err, new(*throttledError)):
			// The transport holds back what comes next, unless it has lost patience.
			if t.isDown(session.Host) {
				return err
			}
			failures = 0
		case status == 0, isPassing(status), hasCode(err, errcode.ErrorCodeBlobUploadUnknown, errcode.ErrorCodeBlobUploadInvalid):
			if failures++; isTimeout(err) {
				failures += 2
			}
			if failures > maxRetries {
				t.failed(session.Host, status != 0, err)
				return err
			}
		default:
			return err
		}
		if err := t.rest(ctx, session.Host, jitter(t.patience.Backoff<<min(try, 5)), err); err != nil {
			return err
		}
	}
}

// pathIn is the path of a repository of this registry that a full name is of, with a tag or digest or without; "" for all others.
func pathIn(name, host string) string {
	path, ok := strings.CutPrefix(name, host+"/")
	if !ok {
		return ""
	}
	path, _, _ = strings.Cut(path, "@")
	path, _, _ = strings.Cut(path, ":")
	return path
}

// beginUpload gives where a blob is to be sent; nil if it was mounted.
func (r *remoteRepo) beginUpload(ctx context.Context, desc ocispec.Descriptor, from string) (*url.URL, error) {
	if path := pathIn(from, r.ref.Registry); path != "" && path != r.ref.Repository {
		source := r.ref
		source.Repository = path
		session, err := r.postUpload(auth.AppendRepositoryScope(ctx, source, read...), "?mount="+desc.Digest.String()+"&from="+url.QueryEscape(path))
		if status := statusOf(err); status < 400 || status >= 500 {
			return session, err
		}
		// It cannot be mounted from there, and the registry should have begun an upload instead.
	}
	return r.postUpload(ctx, "")
}

func (r *remoteRepo) postUpload(ctx context.Context, query string) (*url.URL, error) {
	req, err := r.newRequest(ctx, http.MethodPost, "blobs/uploads/"+query, nil, write)
	if err != nil {
		return nil, err
	}
	resp, err := r.do(req, http.StatusAccepted, http.StatusCreated)
	if err != nil {
		return nil, err
	}
	discard(resp)
	if resp.StatusCode == http.StatusCreated {
		if query == "" {
			return nil, errors.New("the registry says that an upload has ended that has just begun")
		}
		return nil, nil
	}
	session, err := resp.Location()
	if err != nil {
		return nil, fmt.Errorf("begin an upload: %w", err)
	}
	if session.Hostname() == req.URL.Hostname() {
		if session.Port() == "" && (req.URL.Port() == "443" || session.Scheme != req.URL.Scheme) {
			session.Host = req.URL.Host // tokens are kept by host and port
		}
		if session.Host == req.URL.Host {
			session.Scheme = req.URL.Scheme // behind a proxy, a registry may not know that it speaks HTTPS
		}
	}
	if req.URL.Scheme == "https" && session.Scheme != "https" {
		return nil, fmt.Errorf("the registry wants the blob sent to %s without TLS", session.Host)
	}
	return session, nil
}

// upload sends a blob in one request.
func (r *remoteRepo) upload(ctx context.Context, session *url.URL, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	src := &uploadSource{open: open, size: desc.Size}
	to := *session
	to.RawQuery = strings.TrimPrefix(to.RawQuery+"&", "&") + "digest=" + url.QueryEscape(desc.Digest.String()) // it may be signed: nothing is reordered
	ctx = sendOnce(auth.AppendRepositoryScope(ctx, r.ref, write...))
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, to.String(), http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	if desc.Size > 0 {
		req.ContentLength, req.GetBody = desc.Size, src.body
		if req.Body, err = src.body(); err != nil {
			return err
		}
	}
	resp, err := r.do(req, http.StatusCreated, http.StatusNoContent, http.StatusOK)
	if fault := src.err(); err != nil && fault != nil {
		return fault
	}
	if err != nil {
		return err
	}
	discard(resp)
	return nil
}

// An uploadSource opens a blob for each time that it is sent, and remembers what went wrong with it here.
type uploadSource struct {
	open func() (io.ReadCloser, error)
	size int64

	mu    sync.Mutex
	fault error
}

// A sourceError is one of reading what is to be uploaded: no other try would help.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return "read the bytes to send: " + e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

func (s *uploadSource) failed(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = &sourceError{err}
	return s.fault
}

func (s *uploadSource) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

func (s *uploadSource) body() (io.ReadCloser, error) {
	rc, err := s.open()
	if err != nil {
		return nil, s.failed(err)
	}
	return &uploadBody{rc: rc, left: s.size, source: s}, nil
}

type uploadBody struct {
	rc     io.ReadCloser
	left   int64
	source *uploadSource
	closed atomic.Bool // by the transport, maybe while it reads: then an error is not the source's
}

func (b *uploadBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.rc.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err == io.EOF && b.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF && !b.closed.Load() {
		err = b.source.failed(err)
	}
	return n, err
}

func (b *uploadBody) Close() error {
	b.closed.Store(true)
	return b.rc.Close()
}

// PutManifest implements Repo.
func (r *remoteRepo) PutManifest(ctx context.Context, tag, mediaType string, data []byte) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	err := oci.CheckPut(tag, data)
	if err == nil {
		err = r.putManifest(ctx, tag, desc, data)
	}
	// While one client uploads a blob again, distribution sees the file that names it empty for a moment, and does not know the blob for others.
	for i := 0; i < maxRetries && errors.Is(err, ErrBlobUnknown) && hasCode(err, errcode.ErrorCodeDigestInvalid); i++ {
		if err = sleep(ctx, jitter(r.client.transport.patience.Backoff<<i)); err == nil {
			err = r.putManifest(ctx, tag, desc, data)
		}
	}
	if err != nil {
		return desc, fmt.Errorf("put manifest %s into %s: %w", cmp.Or(tag, desc.Digest.String()), r.Name(), cmp.Or(ctx.Err(), err))
	}
	return desc, nil
}

func (r *remoteRepo) putManifest(ctx context.Context, tag string, desc ocispec.Descriptor, data []byte) error {
	req, err := r.newRequest(ctx, http.MethodPut, "manifests/"+cmp.Or(tag, desc.Digest.String()), data, write)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", desc.MediaType)
	resp, err := r.do(req, http.StatusCreated, http.StatusOK, http.StatusNoContent)
	switch status := statusOf(err); {
	case hasCode(err, errcode.ErrorCodeBlobUnknown, errcode.ErrorCodeManifestBlobUnknown, errcode.ErrorCodeManifestUnknown):
		return fmt.Errorf("%w: %w", ErrBlobUnknown, r.explain(err))
	case status == http.StatusBadRequest, status == http.StatusUnsupportedMediaType, status == http.StatusUnprocessableEntity:
		return fmt.Errorf("%w: %w", ErrRefused, r.explain(err))
	case err != nil:
		return r.explainWrite(err)
	}
	discard(resp)
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != desc.Digest.String() {
		return fmt.Errorf("the registry stored it as %s: it has changed the bytes", printable(got))
	}
	return nil
}

// Tags implements Repo.
func (r *remoteRepo) Tags(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		bounded, cancel := context.WithTimeoutCause(ctx, maxTagTime, fmt.Errorf("it does not end in %v", maxTagTime))
		defer cancel()
		err := r.eachPage(bounded, func(tag string) bool { return yield(tag, nil) })
		if err != nil {
			yield("", r.fail("list", "tags", cmp.Or(ctx.Err(), context.Cause(bounded), err)))
		}
	}
}

// What all tags of a repository may take to list: a million, by hundreds.
const (
	maxTagPages = 10_000
	maxTagBytes = 256 << 20
	maxTagTime  = 30 * time.Minute
)

// eachPage yields the tags of each page. That no more are wanted is no error. A list that goes round in a circle, or has no end, is one: who collects
// garbage by it must not take it for the whole.
func (r *remoteRepo) eachPage(ctx context.Context, yield func(string) bool) error {
	// Without a number, some registries send all at once; distribution 3 takes none above 1000.
	began, pages, bytes := time.Now(), 0, 0
	seen := make(map[digest.Digest]bool) // pages: their links may differ each time
	for next := r.url(ctx, "tags/list?n=1000"); next != ""; {
		if pages >= maxTagPages || bytes >= maxTagBytes || time.Since(began) >= maxTagTime {
			return fmt.Errorf("it has no end: %d pages with %d bytes were read in %v", pages, bytes, time.Since(began).Round(time.Second))
		}
		var page tagPage
		err := r.whole(ctx, func() (err error) {
			page, err = r.tagPage(ctx, next)
			pages, bytes = pages+1, bytes+page.bytes
			return err
		})
		if statusOf(err) == http.StatusNotFound {
			return nil
		}
		if err != nil {
			return r.explainRead(err)
		}
		if len(page.tags) == 0 {
			return nil
		}
		sum := digest.FromString(strings.Join(page.tags, "\n"))
		if seen[sum] {
			return errors.New("the list goes round in a circle: a page has the tags of one before")
		}
		seen[sum] = true
		for _, tag := range page.tags {
			if !yield(tag) {
				return nil
			}
		}
		next = page.next
	}
	return nil
}

// maxTagPage bounds one answer, for registries that send all tags at once: some 400,000.
const maxTagPage = 64 << 20

// A tagPage is one page of tags, and where the next is.
type tagPage struct {
	tags  []string
	next  string
	bytes int
}

func (r *remoteRepo) tagPage(ctx context.Context, at string) (p tagPage, err error) {
	ctx = auth.AppendRepositoryScope(ctx, r.ref, read...)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return p, err
	}
	resp, err := r.do(req, http.StatusOK)
	if err != nil {
		return p, err
	}
	defer discard(resp)
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxTagPage))
	p.bytes = len(b) + len(resp.Header.Get("Link"))
	if err != nil {
		return p, &brokenBody{err}
	}
	var list struct{ Tags []string }
	if err := json.Unmarshal(b, &list); err != nil {
		return p, err
	}
	// Link: </v2/x/tags/list?n=1000&last=t>; rel="next"
	target, rel, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
	if !ok || !strings.Contains(rel, "next") {
		p.tags = list.Tags
		return p, nil
	}
	after, err := req.URL.Parse(target)
	if err != nil {
		return p, fmt.Errorf("follow the list of tags: %w", err)
	}
	// Some registries behind a proxy name themselves wrongly; the path is what counts.
	next := url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Path: after.Path, RawPath: after.RawPath, RawQuery: after.RawQuery}
	p.tags, p.next = list.Tags, next.String()
	return p, nil
}

// Delete implements Repo.
func (r *remoteRepo) Delete(ctx context.Context, ref string) error {
	err := oci.CheckRef(ref)
	if err == nil {
		err = r.delete(ctx, ref)
	}
	if err == nil {
		return nil
	}
	return r.fail("delete", ref, cmp.Or(ctx.Err(), r.explainWrite(err)))
}

func (r *remoteRepo) delete(ctx context.Context, ref string) error {
	req, err := r.newRequest(ctx, http.MethodDelete, "manifests/"+ref, nil, []string{auth.ActionDelete, auth.ActionPull, auth.ActionPush})
	if err != nil {
		return err
	}
	resp, err := r.do(req, http.StatusAccepted, http.StatusOK, http.StatusNoContent)
	if err == nil {
		discard(resp)
		return nil
	}
	if oci.IsTag(ref) && refusesTags(err) {
		desc, err := r.Head(ctx, ref)
		if errors.Is(err, ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		return r.delete(ctx, desc.Digest.String())
	}
	switch statusOf(err) {
	case http.StatusNotFound:
		return nil
	case http.StatusMethodNotAllowed:
		return fmt.Errorf("%w (deleting may be off there: REGISTRY_STORAGE_DELETE_ENABLED=true switches it on in distribution's registry)", err)
	}
	return err
}

// refusesTags reports whether a registry only deletes by digest.
func refusesTags(err error) bool {
	return statusOf(err) == http.StatusBadRequest || statusOf(err) == http.StatusMethodNotAllowed || hasCode(err, errcode.ErrorCodeDigestInvalid)
}
