package repo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// A PrivateError is a host that would have to be reached and is in a private network, by its name or by the address that it leads to.
type PrivateError struct {
	host    string
	address string // "" if the name says it
}

func (e *PrivateError) Error() string {
	if e.address != "" && e.address != e.host {
		return fmt.Sprintf("%s is at the private address %s, which is not allowed here: ask for --allow registry.private", e.host, e.address)
	}
	return fmt.Sprintf("the private registry %s is not allowed here: ask for --allow registry.private", e.host)
}

// guard has a transport connect to allowed addresses only: for requests, for what they are redirected to, and for tokens. It looks at each
// name, and at each address, whatever has led there. A proxy may be anywhere: it is the user's. What a proxy connects to nobody can see from here, so
// then the names alone are judged.
func (t *transport) guard(allow func(netip.Addr) bool, resolver *net.Resolver) {
	proxies, proxy, free := proxyAddresses(), t.plain.Proxy, t.plain.DialContext
	t.plain.Proxy = func(req *http.Request) (*url.URL, error) {
		if IsPrivateName(req.URL.Hostname()) || proxies[addressOf(req.URL)] {
			return nil, &PrivateError{host: req.URL.Hostname()}
		}
		return proxy(req)
	}
	t.plain.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if proxies[addr] {
			return free(ctx, network, addr)
		}
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		dialer := net.Dialer{Timeout: t.patience.Connect, KeepAlive: 30 * time.Second, Resolver: resolver}
		dialer.Control = func(_, address string, _ syscall.RawConn) error { // just before it connects
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("connect to %s: %w", address, err)
			}
			if !allow(to.Addr()) {
				return &PrivateError{host: host, address: to.Addr().Unmap().String()}
			}
			return nil
		}
		conn, err := dialer.DialContext(ctx, network, addr)
		if private := new(PrivateError); errors.As(err, &private) {
			return nil, private
		}
		return conn, err
	}
}

// proxyAddresses are where the environment's proxies are: what http.ProxyFromEnvironment reads.
func proxyAddresses() map[string]bool {
	all := map[string]bool{}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		v := os.Getenv(name)
		if v == "" {
			continue
		}
		u, err := url.Parse(v)
		if err != nil || u.Host == "" || !strings.Contains(v, "://") {
			u, err = url.Parse("http://" + v)
		}
		if err == nil {
			all[addressOf(u)] = true
		}
	}
	return all
}

// addressOf is HOST:PORT of what a URL names.
func addressOf(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}
