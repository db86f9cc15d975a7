package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	orasregistry "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

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

// ErrLoginRefused is the error of Login where the registry does not take the name and the password.
var ErrLoginRefused = errors.New("the name or the password is wrong")

// A LoginReport says what has become of a login.
type LoginReport struct {
	File    string
	Plain   bool // anybody who can read the file can read the password
	Untried bool // the registry has asked for none
}

// Login tries a login with a registry, and saves it where the registry takes it.
func (im *Images) Login(ctx context.Context, host, user, password string) (LoginReport, error) {
	var r LoginReport
	if err := im.init(); err != nil {
		return r, err
	}
	host = loginHost(host)
	asked, err := im.client.tryLogin(ctx, host, auth.Credential{Username: user, Password: password})
	if err != nil {
		return r, fmt.Errorf("log in to %s: %w", host, err)
	}
	r.Untried = !asked
	r.File, r.Plain, err = im.client.logins.Save(ctx, host, user, password)
	return r, err
}

// tryLogin sends the one request that all registries answer. A registry that lets everybody in does not ask for the login.
func (c *client) tryLogin(ctx context.Context, host string, cred auth.Credential) (asked bool, err error) {
	reg, err := remote.NewRegistry(host)
	if err != nil {
		return false, err
	}
	r := c.repository(host, "")
	reg.PlainHTTP = c.isPlain(ctx, r.ref.Host())
	reg.Client = c.authClient(func(_ context.Context, at string) (auth.Credential, error) {
		if loginHost(at) != host {
			return auth.EmptyCredential, nil
		}
		asked = true
		return cred, nil
	})
	err = reg.Ping(ctx)
	var status *errcode.ErrorResponse
	switch {
	case errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden):
		if !asked {
			return asked, errors.New("it offers no way to log in that obx has: a name and a password, or a token")
		}
		return asked, ErrLoginRefused
	case err != nil:
		return asked, r.explain(err)
	}
	return asked, nil
}

// Hosts are those that a file has a login for. What programs keep is not among them.
func (l *Logins) Hosts() []string {
	var hosts []string
	for _, f := range l.files {
		for _, name := range f.names {
			hosts = append(hosts, loginHost(name))
		}
	}
	return hosts
}
