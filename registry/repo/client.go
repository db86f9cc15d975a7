package repo

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	orasregistry "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/ocurrent/obx/cas"
)

// A Client reaches registries: it has the connections, logins and tokens of a run, and knows which hosts are down. The zero Client is ready to use; its
// fields are not to be changed after the first use.
type Client struct {
	PlainHTTP []string         // hosts spoken to without TLS; loopback addresses always may be
	UserAgent string           // "obx" if it is empty
	Waiting   func(msg string) // is told which registry is waited for, why, and how long, after two seconds of that; called concurrently; may be nil
	Patience  Patience         // with hosts
	Certs     string           // directory with one of certificates for each host; where Docker keeps them if it is empty

	Resolver *net.Resolver // nil: the system's

	allow func(netip.Addr) bool // nil: all

	once      sync.Once
	err       error // of once
	http      *http.Client
	transport *transport
	logins    *Logins

	plain cas.Once[string, bool] // loopback hosts: whether they speak HTTP

	mu       sync.Mutex
	sessions map[string]*session
}

// Only is a Client with the same fields, for some addresses alone, whatever name, redirect or token server leads there. A proxy may be anywhere. Names
// that mean something else in each network are refused, too.
func (c *Client) Only(allow func(netip.Addr) bool) *Client {
	return &Client{
		PlainHTTP: c.PlainHTTP, UserAgent: c.UserAgent, Waiting: c.Waiting, Patience: c.Patience, Certs: c.Certs, Resolver: c.Resolver, allow: allow,
	}
}

func (c *Client) init() error {
	c.once.Do(func() {
		if c.logins, c.err = ReadLogins(); c.err != nil {
			return
		}
		c.transport = newTransport(c.Patience, cmp.Or(c.Certs, certsDir()))
		c.transport.tell = c.Waiting
		if c.allow != nil {
			c.transport.guard(c.allow, c.Resolver)
		}
		c.http = &http.Client{Transport: c.transport}
		c.sessions = make(map[string]*session)
	})
	return c.err
}

// Repo is a repository of a registry, by the parts of its name: docker.io, library/busybox. Nothing is asked yet.
func (c *Client) Repo(host, path string) (Repo, error) { return c.remote(host, path) }

func (c *Client) remote(host, path string) (*remoteRepo, error) {
	if err := c.init(); err != nil {
		return nil, err
	}
	return &remoteRepo{client: c, session: c.session(host, path), ref: orasregistry.Reference{Registry: host, Repository: path}}, nil
}

// A session speaks to one registry with one login, if there is one: repositories that share it share its tokens.
type session struct {
	http   *auth.Client
	logins []login // where the login may be

	mu   sync.Mutex
	from string // the file that the login is from
	err  error  // why one could not be had
}

// session returns the one for a repository.
func (c *Client) session(host, repository string) *session {
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

func (c *Client) authClient(get auth.CredentialFunc) *auth.Client {
	return &auth.Client{
		Client:     c.http,
		Header:     http.Header{"User-Agent": {cmp.Or(c.UserAgent, "obx")}},
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

// isPlain decides between HTTP and HTTPS. A loopback host is asked: it may speak either.
func (c *Client) isPlain(ctx context.Context, addr string) bool {
	hostname, _, err := net.SplitHostPort(addr)
	if err != nil {
		hostname = addr
	}
	if slices.Contains(c.PlainHTTP, addr) || slices.Contains(c.PlainHTTP, hostname) {
		return true
	}
	if !isLoopback(hostname) {
		return false
	}
	plain, err := c.plain.Do(ctx, addr, func(ctx context.Context) (bool, error) { return c.speaksHTTP(ctx, addr) })
	return plain || err != nil // then the request itself tells best what is wrong
}

func isLoopback(hostname string) bool {
	if hostname == "localhost" || strings.HasSuffix(hostname, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(hostname, "[]"))
	return err == nil && ip.IsLoopback()
}

// speaksHTTP begins a TLS handshake, and sees whether the answer is one. It is an error if nobody answers.
func (c *Client) speaksHTTP(ctx context.Context, addr string) (bool, error) {
	h, err := c.transport.host(addr)
	if err == nil {
		err = h.isDown()
	}
	if err != nil {
		return false, err
	}
	defer h.vigil.begin("it does not begin to speak")()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), "443")
	}
	conn, err := c.transport.plain.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	// Nothing is sent over this connection: that the certificate is right is seen to by the real one. The protocol's name holds an
	// empty line, so that an HTTP server sees the end of a bad request, and does not wait for more.
	err = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"\r\n\r\n"}}).HandshakeContext(ctx)
	if err != nil && ctx.Err() != nil {
		return false, ctx.Err()
	}
	return errors.As(err, new(tls.RecordHeaderError)) || isBroken(err), nil
}

// CheckHost reports what is wrong with the name of a registry's host, HOST[:PORT].
func CheckHost(host string) error {
	if strings.Contains(host, "/") {
		return fmt.Errorf("%q: a host has no scheme and no path", host)
	}
	if err := (orasregistry.Reference{Registry: host}).ValidateRegistry(); err != nil || strings.HasPrefix(host, "-") {
		return fmt.Errorf("%q is no name of a host", host)
	}
	return nil
}

// errLoginRefused says that the registry does not take the name and the password.
var errLoginRefused = errors.New("the name or the password is wrong")

// A LoginReport says what has become of a login.
type LoginReport struct {
	File    string
	Plain   bool // anybody who can read the file can read the password
	Untried bool // the registry has asked for none
}

// Login tries a login with a registry, and saves it where the registry takes it.
func (c *Client) Login(ctx context.Context, host, user, password string) (LoginReport, error) {
	var r LoginReport
	if err := c.init(); err != nil {
		return r, err
	}
	host = loginHost(host)
	asked, err := c.tryLogin(ctx, host, auth.Credential{Username: user, Password: password})
	if err != nil {
		return r, fmt.Errorf("log in to %s: %w", host, err)
	}
	r.Untried = !asked
	r.File, r.Plain, err = c.logins.Save(ctx, host, user, password)
	return r, err
}

// tryLogin sends the one request that all registries answer. A registry that lets everybody in does not ask for the login.
func (c *Client) tryLogin(ctx context.Context, host string, cred auth.Credential) (asked bool, err error) {
	r, err := c.remote(host, "")
	if err != nil {
		return false, err
	}
	client := c.authClient(func(_ context.Context, at string) (auth.Credential, error) {
		if loginHost(at) != host {
			return auth.EmptyCredential, nil
		}
		asked = true
		return cred, nil
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.base(ctx), nil)
	if err != nil {
		return false, err
	}
	resp, err := client.Do(req)
	if err == nil {
		discard(resp)
		if resp.StatusCode != http.StatusOK {
			err = answerError(resp)
		}
	}
	switch {
	case statusOf(err) == http.StatusUnauthorized, statusOf(err) == http.StatusForbidden:
		if !asked {
			return asked, errors.New("it offers no way to log in that obx has: a name and a password, or a token")
		}
		return asked, errLoginRefused
	case err != nil:
		return asked, r.explain(err)
	}
	return asked, nil
}
