package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/executor/build/publish"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/repo"
)

// hosts are the flags that say how registries are reached. All commands that reach one have them.
type hosts struct {
	config    string
	plainHTTP []string
	trust     []string

	file    *config              // as read by settle
	trusted []registry.PublicKey // as parsed by settle
}

func (h *hosts) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&h.plainHTTP, "plain-http", nil, "speak to `HOST` without TLS; repeatable")
	addConfig(cmd, &h.config)
}

func addConfig(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "config", "", "read caches, trusted keys, mirrors and the policy from `FILE` (see: obx help config)")
	cmd.MarkFlagFilename("config", "json")
}

func (h *hosts) addTrust(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&h.trust, "trust", nil, "believe only results that carry a signature by one of these keys: `NAME:KEY`; repeatable")
}

// settle reads the configuration, and what flags and it say.
func (h *hosts) settle() (err error) {
	if h.file, err = readConfig(h.config); err != nil {
		return err
	}
	source := "--trust"
	if h.trust == nil {
		h.trust, source = h.file.Trust, h.file.file+": trust:"
	}
	for _, t := range h.trust {
		k, err := registry.ParsePublicKey(t)
		if err != nil {
			return usage("obx key public FILE prints a public key", "%s %s: %w", source, t, err)
		}
		h.trusted = append(h.trusted, k)
	}
	if h.plainHTTP == nil {
		h.plainHTTP = h.file.PlainHTTP
	}
	return nil
}

// connections reach registries for a command that has no base images.
func (h *hosts) connections(cmd *cobra.Command) *repo.Client {
	return h.client(&notices{stderr: cmd.ErrOrStderr()})
}

func (h *hosts) client(n *notices) *repo.Client {
	return &repo.Client{PlainHTTP: h.plainHTTP, UserAgent: "obx/" + readVersion().Version, Waiting: n.warn}
}

// openRepo opens the repository that an argument names.
func openRepo(ref string, c *repo.Client) (repo.Repo, error) {
	repo, err := c.Open(ref)
	if err != nil {
		return nil, usage("for example registry.example/cache, oci:DIR or FILE.tar", "%w", err)
	}
	return repo, nil
}

// isLayout reports whether a repository is in files, and not in a registry.
func isLayout(repo repo.Repo) bool { return strings.HasPrefix(repo.Name(), "oci:") }

// closeRepo ends the use of a repository: a layout writes its index then.
func closeRepo(repo repo.Repo) error {
	if c, ok := repo.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// sharing are the flags of builds that say with whom results are shared.
type sharing struct {
	caches   []string
	readOnly bool
	push     string // "" for commands that publish nothing
	failures time.Duration
	signKey  string
	mounts   []string

	compression layers.Compression // of layers that are made for publishing
	source      string             // where the caches are named; set by settle, as what follows
	signer      *registry.Signer
	shared      map[string]publish.Travel // of mounts
}

// noCaches as --cache is none at all, whatever the environment and the configuration say.
const noCaches = "none"

// defaultFailures is for how long failures count where --cache-failures does not say.
const defaultFailures = "24h"

// add adds the flags of commands that use caches.
func (s *sharing) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&s.caches, "cache", nil, "look for results in the shared cache `REPO` too: registry.example/cache, oci:DIR or FILE.tar;\nrepeatable (default: the words of $OBX_CACHE, else the configuration's; none: no cache)")
	cmd.RegisterFlagCompletionFunc("cache", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return []string{"oci:"}, cobra.ShellCompDirectiveNoSpace
	})
}

// addPush adds the flags of commands that publish what they make.
func (s *sharing) addPush(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.push, "push", string(build.PushBackground), "push results to the first --cache in a `MODE`: background (behind the build, waited for at its end),\nwait (each step waits), never, or require (as background, but a push that fails, fails the build)")
	f.BoolVar(&s.readOnly, "cache-readonly", false, "change nothing in any --cache: no push, and no note that a result was used")
	addAge(f, &s.failures, "cache-failures", "publish failures of steps too, and believe those younger than `TIME` (without one: 24h)")
	f.Lookup("cache-failures").NoOptDefVal = defaultFailures
	addSignKey(cmd, &s.signKey)
	f.StringArrayVar(&s.mounts, "share-cache", nil, "let a cache mount travel through the first --cache: `NAME[:union]`; the last build to end wins, or\nwith union files are only added, as is right for those named by content (opam, dune); repeatable")
	fixedValues(cmd, "push", string(build.PushBackground), string(build.PushWait), string(build.PushNever), string(build.PushRequire))
}

func addSignKey(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "sign-key", "", "sign what is published with the secret key in `FILE` (obx key generate makes one);\nwithout --trust, only what that key has signed is used")
	cmd.MarkFlagFilename("sign-key")
}

// settle reads what flags, environment and configuration say.
func (s *sharing) settle(file *config) (err error) {
	s.caches, s.source = cacheNames(s.caches, file)
	publishes := s.push != ""
	switch mode := build.PushMode(s.push); {
	case s.push == "" || s.readOnly && mode != build.PushRequire:
		s.push = string(build.PushNever)
	case s.readOnly:
		return usage("", "--cache-readonly and --push require exclude each other")
	case !slices.Contains([]build.PushMode{build.PushBackground, build.PushWait, build.PushNever, build.PushRequire}, mode):
		return usage("modes are: background, wait, never, require", "--push %s: unknown mode", s.push)
	}
	if s.failures < 0 {
		return usage("", "--cache-failures cannot be negative")
	}
	if s.shared, err = parseShares(s.mounts); err != nil {
		return err
	}
	if s.signer, err = readSigner(s.signKey); err != nil {
		return err
	}
	if publishes && len(s.caches) == 0 {
		switch {
		case s.signer != nil:
			return usage("--cache REPO says where", "--sign-key: there is no cache to publish in")
		case len(s.shared) > 0:
			return usage("--cache REPO says where", "--share-cache: there is no cache to share it through")
		}
	}
	return nil
}

// parseShares reads --share-cache.
func parseShares(flags []string) (map[string]publish.Travel, error) {
	shared := map[string]publish.Travel{}
	for _, f := range flags {
		name, how, given := strings.Cut(f, ":")
		switch {
		case name == "" || given && how != "union":
			return nil, usage("for example --share-cache opam:union", "--share-cache %s: not NAME or NAME:union", f)
		case shared[name] != "":
			return nil, usage("", "--share-cache %s: given twice", name)
		case given:
			shared[name] = publish.Union
		default:
			shared[name] = publish.LastWins
		}
	}
	return shared, nil
}

// cacheNames are those of the flags, else of the environment, else of the configuration. It tells whose they are.
func cacheNames(flags []string, file *config) (names []string, source string) {
	names, source = flags, "--cache"
	if names == nil {
		names, source = strings.Fields(os.Getenv("OBX_CACHE")), "$OBX_CACHE"
	}
	if len(names) == 0 {
		names, source = file.Caches, file.file+": caches"
	}
	if slices.Equal(names, []string{noCaches}) {
		return nil, source
	}
	return names, source
}

// readSigner reads --sign-key.
func readSigner(file string) (*registry.Signer, error) {
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, usage("obx key generate NAME makes one", "--sign-key: %w", err)
	}
	signer, err := registry.ParseSigner(data)
	if err != nil {
		return nil, usage("obx key generate NAME makes one", "--sign-key %s: %w", file, err)
	}
	return signer, nil
}

// openCaches opens the caches of a build, which know base images too; openStore gives them the store. With --offline, there are none in registries.
func (p *project) openCaches(in *inputs) error {
	b := p.builder
	b.Push, b.CacheFailures, b.Trust, b.Travels = build.PushMode(in.push), in.failures > 0, in.trusted, in.shared
	for _, name := range in.caches {
		repo, err := openRepo(name, b.Images.Client)
		if err != nil {
			return fmt.Errorf("%s: %w", in.source, err)
		}
		if in.offline && !isLayout(repo) {
			continue
		}
		b.Images.Caches = append(b.Images.Caches, repo)
		b.Caches = append(b.Caches, &registry.Cache{
			Repo: repo, Domains: b.Domains, Trust: in.trusted, Signer: in.signer, Failures: in.failures,
			Compression: in.compression, Warn: p.notices.cacheWarning,
		})
		p.close = append(p.close, func() error { return p.closeCache(repo) })
	}
	if b.Push == build.PushRequire && len(b.Caches) == 0 {
		return usage("--cache REPO says where", "--push require: there is no cache to push to")
	}
	return nil
}

// closeCache ends the use of a cache. That this can fail a build is for --push require to say.
func (p *project) closeCache(repo repo.Repo) error {
	err := closeRepo(repo)
	if err == nil || p.builder.Push == build.PushRequire {
		return err
	}
	p.notices.warn(fmt.Sprintf("cache %s: %v", repo.Name(), err))
	return nil
}

// notices tell the user what the build's events do not: in the display of the build while it runs, else on standard
// error. Its methods may be called concurrently.
type notices struct {
	stderr io.Writer

	mu   sync.Mutex
	show func(build.Event) // nil: nothing is displayed
}

// display has events shown from now on, until the last one of a build.
func (n *notices) display(show func(build.Event)) func(build.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.show = show
	return func(e build.Event) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if e.Kind == build.Done {
			n.show = nil
		}
		show(e)
	}
}

func (n *notices) warn(msg string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.show != nil {
		n.show(build.Event{Kind: build.Warned, Time: time.Now(), Message: msg})
		return
	}
	warn(n.stderr, msg)
}

// event shows the warnings among a builder's events.
func (n *notices) event(e build.Event) {
	if e.Kind == build.Warned {
		n.warn(e.Message)
	}
}

func (n *notices) cacheWarning(msg string) { n.warn("cache " + msg) }
