package repo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// A throttledError is the answer of a registry that wants fewer requests.
type throttledError struct{ error }

func (e *throttledError) Unwrap() error { return e.error }

// A redirectError is the refusal of a host that a registry redirects to. Its status says nothing of the registry: no login there would help.
type redirectError struct {
	host   string
	status int
}

func (e *redirectError) Error() string {
	return fmt.Sprintf("it redirects to %s, which answers %d %s", e.host, e.status, http.StatusText(e.status))
}

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

// explain says what the registry's answer means, and what to do.
func (r *remoteRepo) explain(err error) error {
	host := r.ref.Registry
	var (
		status  *errcode.ErrorResponse
		unknown x509.UnknownAuthorityError
		verify  *tls.CertificateVerificationError
		dns     *net.DNSError
	)
	switch {
	case errors.Is(err, context.Canceled), errors.As(err, new(*PrivateError)):
		return err
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
