package repo

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// A challenge is one way to log in that a host offers.
type challenge struct {
	scheme string
	params map[string]string // with names in lower case
}

// simplifyChallenges leaves of what a host says on 401 the one challenge that can be answered, written plainly: oras-go reads the first only, and of
// that not all that RFC 9110 allows. What has no such challenge stays as it is.
func simplifyChallenges(resp *http.Response) {
	const name = "Www-Authenticate"
	if resp.StatusCode != http.StatusUnauthorized {
		return
	}
	if c, ok := answerable(parseChallenges(resp.Header.Values(name)), resp.Request.URL); ok {
		resp.Header.Set(name, c.String())
	}
}

// answerable picks a challenge: one for a token before one for the login itself, as that can be met without a login, too, and shows the registry no
// password.
func answerable(all []challenge, registry *url.URL) (challenge, bool) {
	for _, c := range all {
		if strings.EqualFold(c.scheme, "bearer") && isRealm(c.params["realm"], registry) {
			return c, true
		}
	}
	for _, c := range all {
		if strings.EqualFold(c.scheme, "basic") {
			return c, true
		}
	}
	return challenge{}, false
}

// isRealm reports whether a token may be asked for at a URL: not without TLS where the registry has it.
func isRealm(realm string, registry *url.URL) bool {
	u, err := url.Parse(realm)
	return err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http" && registry.Scheme == "http")
}

// String writes a challenge with the parameters that matter here.
func (c challenge) String() string {
	var params []string
	for _, name := range []string{"realm", "service", "scope"} {
		if v, ok := c.params[name]; ok {
			params = append(params, name+"="+strconv.Quote(v))
		}
	}
	return strings.TrimSpace(c.scheme + " " + strings.Join(params, ","))
}

// parseChallenges reads WWW-Authenticate (RFC 9110, section 11.6.1), of which each field is a list of challenges, and each challenge has a list of
// parameters or one token68. What cannot be read ends its field.
func parseChallenges(fields []string) []challenge {
	var all []challenge
	for _, rest := range fields {
		for {
			var scheme string
			if scheme, rest = cutToken(strings.TrimLeft(rest, " \t,")); scheme == "" {
				break
			}
			c := challenge{scheme: scheme, params: map[string]string{}}
			rest = c.parseParams(rest)
			all = append(all, c)
		}
	}
	return all
}

// parseParams reads the parameters of a challenge, and returns what begins with the next.
func (c challenge) parseParams(rest string) string {
	for first := true; ; first = false {
		next := strings.TrimLeft(rest, " \t,")
		name, after := cutToken(next)
		after = strings.TrimLeft(after, " \t")
		value, isParam := strings.CutPrefix(after, "=")
		switch {
		case name != "" && isParam && !isToken68End(value):
			var v string
			v, rest = cutValue(strings.TrimLeft(value, " \t"))
			if _, twice := c.params[strings.ToLower(name)]; !twice {
				c.params[strings.ToLower(name)] = v
			}
		case first && !strings.HasPrefix(strings.TrimLeft(rest, " \t"), ",") && next != "":
			end := strings.IndexAny(next, " \t,") // a token68
			if end < 0 {
				return ""
			}
			rest = next[end:]
		default:
			return next
		}
	}
}

// isToken68End reports that the "=" before s was the padding of a token68.
func isToken68End(s string) bool {
	s = strings.TrimLeft(s, "=")
	s = strings.TrimLeft(s, " \t")
	return s == "" || s[0] == ','
}

// cutValue reads a token or a quoted string, which may lack its end.
func cutValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, " \t,")
		if end < 0 {
			end = len(s)
		}
		return s[:end], s[end:]
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:]
		case '\\':
			if i++; i == len(s) {
				return b.String(), ""
			}
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}

// cutToken reads a token (RFC 9110, section 5.6.2).
func cutToken(s string) (token, rest string) {
	end := strings.IndexFunc(s, func(r rune) bool {
		isAlnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		return !isAlnum && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
	if end < 0 {
		end = len(s)
	}
	return s[:end], s[end:]
}
