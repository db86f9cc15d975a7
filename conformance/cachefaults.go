package conformance

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ocurrent/obx/registry/repo"
)

// CacheFaults checks that a cache in a registry that has bad days never breaks a build: it answers wrongly, or not at all, always or now and
// then, or dies and comes back. open opens a repository, HOST/NAME, as a new process does, with less patience than users have; where nothing is
// broken, that of users counts, for a busy machine is no bad day of a registry.
func CacheFaults(t *testing.T, reg *Registry, open func(t *testing.T, name string) repo.Repo) {
	RequireRoot(t)
	proxy := StartProxy(t, reg.Addr)
	elsewhere := StartProxy(t, reg.Addr)
	elsewhere.Break(func(*http.Request) Fault { return Fault{Status: http.StatusForbidden} })
	patient := func(addr string) repo.Repo {
		repo, err := new(repo.Client).Open(addr + "/faults")
		if err != nil {
			t.Fatal(err)
		}
		return repo
	}
	direct := &cacheTest{T: t, repo: patient(reg.Addr)}
	direct.fill(direct.repo, nil)

	// mended checks that the next build is right, and the one after that has nothing to do.
	mended := func(c *cacheTest, word string) {
		c.Helper()
		proxy.Break(nil)
		c.right("after that", c.site(patient(proxy.Addr), nil).build(cacheSpec(word)), word)
		c.hit("mended", direct.repo, nil, word)
	}
	for name, f := range map[string]struct {
		fault Fault
		every int64 // 1: all requests
	}{
		"500":            {Fault{Status: 500}, 1},
		"503":            {Fault{Status: 503}, 1},
		"429":            {Fault{Status: 429}, 1},
		"paused":         {Fault{Status: 503, Header: http.Header{"Retry-After": {"5"}}}, 1},
		"some paused":    {Fault{Status: 429, Header: http.Header{"Retry-After": {"0"}}}, 3},
		"forbidden":      {Fault{Status: 403}, 1},
		"not a registry": {Fault{Status: 200, Body: "<html>log in</html>"}, 1},
		"redirected":     {Fault{Redirect: "http://" + elsewhere.Addr + "/v2/"}, 1},
		"hangs":          {Fault{Hang: true}, 1},
		"deaf":           {Fault{Deaf: true}, 1},
		"some stall":     {Fault{After: 20, Stall: true}, 5},
		"truncates":      {Fault{After: 20, Truncate: true}, 1},
		"corrupts":       {Fault{After: 20, Corrupt: true}, 1},
		"exceeds":        {Fault{Append: 1000}, 1},
		"some 500":       {Fault{Status: 500}, 3},
		"some resets":    {Fault{Drop: true}, 3},
		"some broken":    {Fault{After: 20, Reset: true}, 3},
		"some cut":       {Fault{Cut: 20}, 5},
		"some lost":      {Fault{Lose: true}, 7},
		"some hang":      {Fault{Hang: true}, 9},
	} {
		t.Run(name, func(t *testing.T) {
			c := &cacheTest{T: t, repo: direct.repo}
			var n atomic.Int64
			proxy.Break(func(*http.Request) Fault {
				if n.Add(1)%f.every != 0 {
					return Fault{}
				}
				return f.fault
			})
			word := "w" + strings.ReplaceAll(strings.ToLower(name), " ", "")
			start := time.Now()
			c.right("the first", c.site(open(t, proxy.Addr+"/faults"), nil).build(cacheSpec(word)), word)
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("the build took %v", took)
			}
			// Patience with it is spent once, not with each request: two kinds of them, two stages, and one try for each result.
			if asked := n.Load(); f.every == 1 && f.fault.Status >= 429 && asked > 30 {
				t.Errorf("it was asked %d times", asked)
			}
			mended(c, word)
		})
	}
	// It dies at a request, in the pull or in the push, and is back for the next build.
	for n := int64(1); n <= 31; n += 6 {
		t.Run(fmt.Sprint("dies at request ", n), func(t *testing.T) {
			c := &cacheTest{T: t, repo: direct.repo}
			var seen atomic.Int64
			dead := make(chan struct{})
			proxy.Break(func(*http.Request) Fault {
				if seen.Add(1) == n {
					go func() {
						proxy.Kill()
						close(dead)
					}()
					return Fault{Drop: true}
				}
				return Fault{}
			})
			word := fmt.Sprint("w", n)
			c.right("the first", c.site(open(t, proxy.Addr+"/faults"), nil).build(cacheSpec(word)), word)
			if seen.Load() >= n {
				<-dead
				proxy.Revive(t)
			}
			mended(c, word)
		})
	}
}
