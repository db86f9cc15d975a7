package registry

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
	"unicode"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// A remoteRepo is a repository of a registry. Each method is one request, PutBlob two: oras-go's own client asks first whether a thing is there.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
type remoteRepo struct{ *repository }

// Name implements Repo.
func (r *remoteRepo) Name() string { return r.ref.Registry + "/" + r.ref.Repository }

// fail says what was being done in which repository.
func (r *remoteRepo) fail(verb, what string, err error) error {
	return fmt.Errorf("%s %s of %s: %w", verb, what, r.Name(), err)
}

// read and write are what a token must allow.
var (
	read  = []string{auth.ActionPull}
	write = []string{auth.ActionPull, auth.ActionPush}
)

// url is that of an endpoint of the repository.
func (r *remoteRepo) url(ctx context.Context, endpoint string) string {
	scheme := "https"
	if r.client.isPlain(ctx, r.ref.Host()) {
		scheme = "http"
	}
	return scheme + "://" + r.ref.Host() + "/v2/" + r.ref.Repository + "/" + endpoint
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
	resp, err := r.session.do(req)
	if err != nil {
		return nil, err
	}
	if slices.Contains(want, resp.StatusCode) {
		return resp, nil
	}
	defer discard(resp)
	if host := resp.Request.URL.Host; host != req.URL.Host && resp.StatusCode != http.StatusNotFound {
		return nil, fmt.Errorf("it redirects to %s, which answers %s", host, resp.Status) // no login would help
	}
	if isThrottled(resp) {
		return nil, &throttledError{answerError(resp)}
	}
	return nil, answerError(resp)
}

// A throttledError is the answer of a registry that wants fewer requests.
type throttledError struct{ error }

func (e *throttledError) Unwrap() error { return e.error }

// answerError reads a registry's refusal. Its text goes to people: it is cut, and cleaned of what a terminal would obey.
func answerError(resp *http.Response) *errcode.ErrorResponse {
	e := &errcode.ErrorResponse{Method: resp.Request.Method, URL: resp.Request.URL, StatusCode: resp.StatusCode}
	var body struct{ Errors errcode.Errors }
	if json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&body) != nil {
		return e
	}
	for _, one := range body.Errors[:min(len(body.Errors), 3)] {
		e.Errors = append(e.Errors, errcode.Error{Code: printable(one.Code), Message: printable(one.Message)})
	}
	return e
}

func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "..."
	}
	return s
}

// hasCode reports whether a registry gave one of these codes as the reason.
func hasCode(err error, codes ...string) bool {
	var answer *errcode.ErrorResponse
	return errors.As(err, &answer) && slices.ContainsFunc(answer.Errors, func(e errcode.Error) bool { return slices.Contains(codes, e.Code) })
}

// statusOf is the status of a registry's refusal; 0 if it gave none.
func statusOf(err error) int {
	var answer *errcode.ErrorResponse
	if errors.As(err, &answer) {
		return answer.StatusCode
	}
	return 0
}

// explainRead says what an error of a read means.
func (r *remoteRepo) explainRead(err error) error {
	if statusOf(err) == http.StatusNotFound {
		return ErrNotFound // also where the repository is not there yet
	}
	return r.explain(err)
}

// explainWrite says what an error of a write means.
func (r *remoteRepo) explainWrite(err error) error {
	switch status := statusOf(err); {
	case errors.As(err, new(*sourceError)):
		return err
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusMethodNotAllowed,
		errors.Is(err, auth.ErrBasicCredentialNotFound):
		return fmt.Errorf("%w: %w", ErrReadOnly, r.explain(err))
	case status == http.StatusNotFound:
		return fmt.Errorf("%w: %w: the repository may have to be made first", ErrNotFound, r.explain(err))
	}
	return r.explain(err)
}

// checkRef refuses what would make a request for something else.
func checkRef(ref string) error {
	if !isTag(ref) && checkDigest(digest.Digest(ref)) != nil {
		return fmt.Errorf("%q is neither a tag nor a digest", ref)
	}
	return nil
}

// manifestRequest asks for a manifest.
func (r *remoteRepo) manifestRequest(ctx context.Context, method, ref string) (*http.Response, error) {
	if err := checkRef(ref); err != nil {
		return nil, err
	}
	req, err := r.newRequest(ctx, method, "manifests/"+ref, nil, read)
	if err != nil {
		return nil, err
	}
	req.Header["Accept"] = []string{strings.Join(acceptedDocuments(), ", ")}
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
		if checkDigest(desc.Digest) == nil && desc.Size >= 0 {
			return desc, nil
		}
	} else if statusOf(err) != http.StatusMethodNotAllowed {
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
	for failures := 0; ; failures++ {
		hopeless := r.client.transport.drags(r.ref.Host())
		err := ask()
		if ctx.Err() != nil || !errors.As(err, new(*brokenBody)) {
			return err
		}
		if errors.Is(err, errStalled) {
			failures += 2 // it has cost enough time
		}
		if hopeless || failures >= maxRetries {
			return err
		}
		if err := sleep(ctx, jitter(r.client.transport.patience.backoff<<failures)); err != nil {
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
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return ocispec.Descriptor{}, nil, &brokenBody{err}
	}
	if len(b) > maxDocument {
		return ocispec.Descriptor{}, nil, fmt.Errorf("%w: what is there is no manifest: it has more than %d bytes", ErrNotFound, maxDocument)
	}
	mediaType := mediaTypeIn(resp)
	if mediaType == "" || mediaType == "application/json" || mediaType == "application/octet-stream" {
		if t, err := mediaTypeOf(b); err == nil {
			mediaType = t
		}
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if !isTag(ref) && desc.Digest.String() != ref {
		return desc, nil, fmt.Errorf("%w: what is there has the digest %s", ErrNotFound, desc.Digest)
	}
	return desc, b, nil
}

// Blob implements Repo.
func (r *remoteRepo) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := checkDigest(desc.Digest); err != nil {
		return nil, err
	}
	rc, err := r.blob(ctx, desc)
	if err != nil {
		return nil, r.fail("read", "blob "+desc.Digest.String(), cmp.Or(ctx.Err(), err))
	}
	return rc, nil
}

// HasBlob implements Repo.
func (r *remoteRepo) HasBlob(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	if err := checkDigest(desc.Digest); err != nil {
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
	if err := checkDigest(desc.Digest); err != nil {
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
		hopeless := t.refuses(session.Host, http.MethodPut)
		err = r.upload(ctx, session, desc, open)
		if err == nil || ctx.Err() != nil {
			return err
		}
		switch status := statusOf(err); {
		case errors.As(err, new(*sourceError)):
			return err
		case errors.As(err, new(*throttledError)):
			// The transport holds back what comes next, unless it has lost patience.
			if hopeless || t.refuses(session.Host, http.MethodPut) {
				return err
			}
			failures = 0
		case status == 0, isPassing(status), hasCode(err, errcode.ErrorCodeBlobUploadUnknown, errcode.ErrorCodeBlobUploadInvalid):
			if failures++; isTimeout(err) {
				failures += 2
			}
			if hopeless || failures > maxRetries {
				t.failed(session.Host, http.MethodPut)
				return err
			}
		default:
			return err
		}
		if err := sleep(ctx, jitter(t.patience.backoff<<min(try, 5))); err != nil {
			return err
		}
	}
}

// beginUpload gives where a blob is to be sent; nil if it was mounted.
func (r *remoteRepo) beginUpload(ctx context.Context, desc ocispec.Descriptor, from string) (*url.URL, error) {
	if n, err := parseName(from); err == nil && n.host == r.ref.Registry && n.path != r.ref.Repository {
		source := r.ref
		source.Repository = n.path
		session, err := r.postUpload(auth.AppendRepositoryScope(ctx, source, read...), "?mount="+desc.Digest.String()+"&from="+url.QueryEscape(n.path))
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
	err := checkManifestToPut(tag, data)
	if err == nil {
		err = r.putManifest(ctx, tag, desc, data)
	}
	// While one client uploads a blob again, distribution sees the file that names it empty for a moment, and does not know the blob for others.
	for i := 0; i < maxRetries && errors.Is(err, ErrBlobUnknown) && hasCode(err, errcode.ErrorCodeDigestInvalid); i++ {
		if err = sleep(ctx, jitter(r.client.transport.patience.backoff<<i)); err == nil {
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

// checkManifestToPut refuses what no Repo takes.
func checkManifestToPut(tag string, data []byte) error {
	if tag != "" && !isTag(tag) {
		return fmt.Errorf("%q is no tag", tag)
	}
	if len(data) > maxDocument {
		return fmt.Errorf("%d bytes are too many for a manifest: at most %d", len(data), maxDocument)
	}
	return nil
}

// Tags implements Repo.
func (r *remoteRepo) Tags(ctx context.Context) iter.Seq2[string, error] {
	return r.pages(ctx, func() {})
}

// pages is Tags, and tells of each page that is asked for. A list that goes round in a circle, or has no end, is an error: who collects garbage by it
// must not take it for the whole.
func (r *remoteRepo) pages(ctx context.Context, asking func()) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		_, err := within(ctx, tagsBudget, "the end of the list", func(ctx context.Context) (struct{}, error) {
			return struct{}{}, r.eachPage(ctx, asking, func(tag string) bool { return yield(tag, nil) })
		})
		if err != nil {
			yield("", r.fail("list", "tags", cmp.Or(ctx.Err(), err)))
		}
	}
}

// eachPage yields the tags of each page. That no more are wanted is no error.
func (r *remoteRepo) eachPage(ctx context.Context, asking func(), yield func(string) bool) error {
	// Without a number, some registries send all at once; distribution 3 takes none above 1000.
	seen := make(map[digest.Digest]bool) // pages: their links may differ each time
	for next := r.url(ctx, "tags/list?n=1000"); next != ""; {
		if err := spendingOf(ctx).next(); err != nil {
			return err
		}
		var tags []string
		var after string
		err := r.whole(ctx, func() (err error) {
			asking()
			tags, after, err = r.tagPage(ctx, next)
			return err
		})
		if statusOf(err) == http.StatusNotFound {
			return nil
		}
		if err != nil {
			return r.explainRead(err)
		}
		if len(tags) == 0 {
			return nil
		}
		page := digest.FromString(strings.Join(tags, "\n"))
		if seen[page] {
			return errors.New("the list goes round in a circle: a page has the tags of one before")
		}
		seen[page] = true
		for _, tag := range tags {
			if !yield(tag) {
				return nil
			}
		}
		next = after
	}
	return nil
}

// maxTagPage bounds one answer, for registries that send all tags at once: some 400,000.
const maxTagPage = 64 << 20

// tagPage reads one page of tags, and where the next is.
func (r *remoteRepo) tagPage(ctx context.Context, page string) (tags []string, next string, err error) {
	ctx = auth.AppendRepositoryScope(ctx, r.ref, read...)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return nil, "", err
	}
	resp, err := r.do(req, http.StatusOK)
	if err != nil {
		return nil, "", err
	}
	defer discard(resp)
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxTagPage))
	spendingOf(ctx).read(len(b) + len(resp.Header.Get("Link")))
	if err != nil {
		return nil, "", &brokenBody{err}
	}
	var list struct{ Tags []string }
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, "", err
	}
	// Link: </v2/x/tags/list?n=1000&last=t>; rel="next"
	target, rel, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
	if !ok || !strings.Contains(rel, "next") {
		return list.Tags, "", nil
	}
	after, err := req.URL.Parse(target)
	if err != nil {
		return nil, "", fmt.Errorf("follow the list of tags: %w", err)
	}
	// Some registries behind a proxy name themselves wrongly; the path is what counts.
	at := url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Path: after.Path, RawPath: after.RawPath, RawQuery: after.RawQuery}
	return list.Tags, at.String(), nil
}

// Delete implements Repo.
func (r *remoteRepo) Delete(ctx context.Context, ref string) error {
	err := checkRef(ref)
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
	if isTag(ref) && refusesTags(err) {
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
