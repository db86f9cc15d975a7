package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/repo"
)

// inputs are the flags that say what a build is. All commands that make a plan have them.
type inputs struct {
	hosts
	sharing
	policyFlags
	store    string
	bases    []string
	disks    []*diskBase // of bases
	platform string
	mirrors  []string
	lock     string
	offline  bool
	domain   string
	salt     string
}

func (in *inputs) add(cmd *cobra.Command) {
	f := cmd.Flags()
	in.addTrust(cmd)
	addStore(cmd, &in.store)
	f.StringArrayVar(&in.bases, "base", nil, "take another image where a spec says (from NAME): `NAME=REF`, or NAME=qcow2:FILE, the disk of a virtual machine; repeatable")
	addPlatform(cmd, &in.platform)
	f.StringVar(&in.lock, "lock", "", "take the digests of base images from `FILE`, and keep new ones there")
	f.BoolVar(&in.offline, "offline", false, "take the digests of base images from what the store remembers; reach no registry, --cache included")
	f.StringArrayVar(&in.mirrors, "mirror", nil, "try a mirror before a registry: `HOST=MIRROR`, as docker.io=mirror:5000; repeatable")
	in.hosts.add(cmd)
	in.policyFlags.add(cmd)
	addDomain(cmd, &in.domain)
	f.StringVar(&in.salt, "salt", "", "make a separate key space named `TEXT`")
	cmd.MarkFlagFilename("lock")
}

func addPlatform(cmd *cobra.Command, p *string) {
	cmd.Flags().StringVar(p, "platform", "", "build for a platform: `OS/ARCH[/VARIANT]` (default: "+defaultPlatformText+")")
	fixedValues(cmd, "platform", "linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/ppc64le", "linux/riscv64", "linux/s390x", "windows/amd64")
}

func addDomain(cmd *cobra.Command, d *string) {
	cmd.Flags().StringVar(d, "domain", build.DefaultDomain, "use the results of a domain and its parents: `A[:PARENT...]`; new ones belong to A")
}

// What --platform says as a rule. Another name is let pass, unless it is like one of these: then it is a slip, which would only make other keys.
var (
	knownSystems       = []string{"linux", "windows", "openbsd", "freebsd", "netbsd", "darwin", "macos", "solaris", "illumos"}
	knownArchitectures = []string{
		"amd64", "x86_64", "x86-64", "386", "i386", "arm64", "aarch64", "arm", "armhf", "armel", "ppc64le", "ppc64", "s390x", "riscv64",
		"loong64", "mips", "mipsle", "mips64", "mips64le",
	}
)

// parsePlatform reads OS/ARCH[/VARIANT].
func parsePlatform(s string) (ocispec.Platform, error) {
	if s == "" {
		return defaultPlatform(), nil
	}
	p := strings.Split(s, "/")
	if strings.Contains(s, ",") {
		return ocispec.Platform{}, usage("run obx once for each of them", "--platform %s: a list, and a build is for one platform", s)
	}
	if len(p) < 2 || len(p) > 3 || slices.Contains(p, "") {
		return ocispec.Platform{}, usage("for example --platform linux/arm64", "--platform %s: not OS/ARCH[/VARIANT]", s)
	}
	for _, part := range []struct {
		name  string
		known []string
	}{{p[0], knownSystems}, {p[1], knownArchitectures}} {
		if like := spec.Suggest(part.name, part.known); like != "" && !slices.Contains(part.known, strings.ToLower(part.name)) {
			return ocispec.Platform{}, usage("for example --platform linux/arm64", "--platform %s: unknown %s%s", s, part.name, like)
		}
	}
	out := ocispec.Platform{OS: p[0], Architecture: p[1]}
	if len(p) == 3 {
		out.Variant = p[2]
	}
	return out, nil
}

// parseDomains reads A[:PARENT...].
func parseDomains(s string) ([]string, error) {
	d := strings.Split(s, ":")
	if slices.Contains(d, "") {
		return nil, usage("for example --domain pr-7:default", "--domain %s: an empty name", s)
	}
	for _, name := range d {
		if err := cas.CheckDomain(name); err != nil {
			return nil, usage("for example --domain pr-7:default", "--domain %s: %w", s, err)
		}
	}
	return d, nil
}

// pairs reads flags of the form A=B.
func pairs(flag string, values []string, what string) ([][2]string, error) {
	var all [][2]string
	for _, v := range values {
		a, b, ok := strings.Cut(v, "=")
		if !ok || a == "" || b == "" {
			return nil, usage("", "--%s %s: not %s", flag, v, what)
		}
		all = append(all, [2]string{a, b})
	}
	return all, nil
}

// images makes what resolves base images, but for its store.
func (in *inputs) images(n *notices) (*images.Resolver, error) {
	im := &images.Resolver{Client: in.client(n), Bases: map[string]string{}, Mirrors: in.file.Mirrors, Offline: in.offline}
	if !in.policy.Allows(build.RegistryPrivate) {
		im.Guarded = im.Client.Only(repo.IsPublic)
	}
	if in.policyFlags.limits != nil {
		im.Limits = imageLimits
	}
	platform, err := parsePlatform(in.platform)
	if err != nil {
		return nil, err
	}
	bases, err := pairs("base", in.bases, "NAME=REF")
	if err != nil {
		return nil, err
	}
	for _, p := range bases {
		fail := func(err error) error { return usage("", "--base %s=%s: %w", p[0], p[1], err) }
		name, err := images.Normalize(p[0])
		if err != nil {
			return nil, fail(err)
		}
		if file, ok := strings.CutPrefix(p[1], diskPrefix); ok {
			d, err := newDiskBase(name, file, platform)
			if err != nil {
				return nil, fail(err)
			}
			in.disks = append(in.disks, d)
			continue
		}
		if im.Bases[name], err = images.Normalize(p[1]); err != nil {
			return nil, fail(err)
		}
	}
	mirrors, err := pairs("mirror", in.mirrors, "HOST=MIRROR")
	if err != nil {
		return nil, err
	}
	if mirrors != nil {
		im.Mirrors = map[string][]string{}
	}
	for _, p := range mirrors {
		im.Mirrors[p[0]] = append(im.Mirrors[p[0]], p[1])
	}
	if in.lock != "" {
		if im.Lock, err = images.OpenLockfile(in.lock); err != nil {
			return nil, usage("--lock FILE is written by obx: remove a broken one, and images are looked up again", "--lock: %w", err)
		}
		if dir := filepath.Dir(in.lock); !isDir(dir) { // it is only written if there is something new
			return nil, usage("mkdir -p "+shellQuote(dir)+" makes it", "--lock %s: there is no directory %s", in.lock, dir)
		}
	}
	return im, nil
}

// A project is a spec with its plan, and what a build of it needs, but for an executor.
type project struct {
	spec     *spec.Spec
	plan     *keys.Plan
	platform ocispec.Platform // of the result that is looked at, if there is no plan
	builder  *build.Builder
	notices  *notices
	close    []func() error

	sourceName string // for messages: the source directory
}

// Close ends the use of all that is open, last opened first.
func (p *project) Close() error {
	var err error
	for _, c := range slices.Backward(p.close) {
		err = errors.Join(err, c())
	}
	p.close = nil
	return err
}

// open plans the build of args: SPEC [DIR]. What is wrong with the call or the spec is found before anything is
// opened. readOnly is for commands that only look: they make no store.
func (in *inputs) open(cmd *cobra.Command, args []string, readOnly bool) (_ *project, err error) {
	platform, err := parsePlatform(in.platform)
	if err != nil {
		return nil, err
	}
	p, err := in.start(cmd)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	name, text, err := readFile(cmd, args[0])
	if err != nil {
		return nil, err
	}
	dir, err := p.openSource(args)
	if err != nil {
		return nil, err
	}
	s, errs := spec.ParsePartial(name, text)
	errs = checkSpec(s, errs, platform.OS, in.policy, in.given(p.builder.Images))
	if len(errs) > 0 { // without any, the plan finds these
		return nil, errs.Merge(keys.CheckSources(s, keys.Options{Platform: platform, Context: p.builder.Source, ContextName: p.sourceName}))
	}
	p.spec = s
	for _, w := range s.Warnings() {
		p.notices.warn(w.Error())
	}
	in.warnUnused(p)
	if err := p.openStore(cmd.Context(), in, platform, readOnly); err != nil {
		return nil, err
	}
	if err := p.makePlan(cmd.Context(), dir, platform, in.salt); err != nil {
		return nil, err
	}
	return p, nil
}

// openResults opens what a build has, but without a spec: no plan, no source directory, results for any platform.
func (in *inputs) openResults(cmd *cobra.Command) (*project, error) {
	p, err := in.start(cmd)
	if err != nil {
		return nil, err
	}
	if err := p.openStore(cmd.Context(), in, ocispec.Platform{}, false); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// settle reads the configuration, and what flags say of it.
func (in *inputs) settle() error {
	if err := in.hosts.settle(); err != nil {
		return err
	}
	if err := in.policyFlags.settle(in.file); err != nil {
		return err
	}
	if err := in.sharing.settle(in.file); err != nil {
		return err
	}
	if in.signer != nil && in.trusted == nil {
		// A signature covers all that led to a result: whoever signs takes nothing that nobody vouches for.
		in.trusted = []registry.PublicKey{in.signer.Public()}
	}
	return nil
}

// start reads flags and configuration. Nothing is made yet, and no registry is asked.
func (in *inputs) start(cmd *cobra.Command) (*project, error) {
	domains, err := parseDomains(in.domain)
	if err != nil {
		return nil, err
	}
	if err := in.settle(); err != nil {
		return nil, err
	}
	n := &notices{stderr: cmd.ErrOrStderr()}
	images, err := in.images(n)
	if err != nil {
		return nil, err
	}
	p := &project{builder: &build.Builder{Images: images, Domains: domains}, notices: n, close: []func() error{images.Close}}
	if err := p.openCaches(in); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// openDir opens a source directory, so that no link leads out of it.
func openDir(dir string) (*layers.Dir, error) {
	root, err := layers.DirTree(dir)
	if err != nil {
		return nil, usage("obx run SPEC [DIR]: copies take files from DIR", "source directory: %w", err)
	}
	return root, nil
}

// openSource opens the source directory of args, SPEC [DIR], so that no link leads out of it, and gives its whole path.
func (p *project) openSource(args []string) (string, error) {
	dir := "."
	if len(args) > 1 {
		dir = args[1]
	}
	if dir == "" {
		return "", usage("obx run SPEC [DIR]: copies take files from DIR", "source directory: its name is empty")
	}
	root, err := openDir(dir)
	if err != nil {
		return "", err
	}
	p.close = append(p.close, root.Close)
	p.builder.Source = root
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	p.sourceName = "the source directory " + abs
	if len(args) == 1 {
		// Who forgets DIR most often means where the spec is.
		p.sourceName += " (the current directory, since no DIR is given"
		if beside := filepath.Dir(args[0]); args[0] != "-" && beside != "." {
			p.sourceName += "; where the spec is, is " + beside
		}
		p.sourceName += ")"
	}
	return abs, nil
}

// openStore opens the store, and the caches with it.
func (p *project) openStore(ctx context.Context, in *inputs, platform ocispec.Platform, readOnly bool) error {
	var st *cas.Store
	var err error
	var closer func() error
	if readOnly {
		st, closer, err = openReadable(p.notices.stderr, in.store)
	} else if st, err = openStore(p.notices.stderr, in.store); err == nil {
		closer = st.Close
	}
	if err != nil {
		return err
	}
	// The store goes last: a cache may read it when it is closed.
	p.close = slices.Insert(p.close, 0, closer)
	p.builder.Store, p.builder.Images.Store = st, st
	for _, d := range in.disks {
		ref, err := d.make(ctx, st)
		if err == nil {
			p.builder.Images.Bases[d.name], err = images.Normalize(ref)
		}
		if err != nil {
			return err
		}
	}
	for _, c := range p.builder.Caches {
		c.Store, c.Platform = st, platform
	}
	return nil
}

// makePlan resolves names and hashes sources, and keeps what is worth remembering of both.
func (p *project) makePlan(ctx context.Context, dir string, platform ocispec.Platform, salt string) error {
	memo, err := p.builder.Store.HashMemo(dir)
	if err != nil {
		return err
	}
	p.plan, err = keys.New(ctx, p.spec, keys.Options{
		Platform: platform, Context: p.builder.Source, ContextName: p.sourceName, Resolver: p.builder.Images, Hasher: memo, Salt: salt,
	})
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	if err := memo.Save(); err != nil {
		return err
	}
	if lock := p.builder.Images.Lock; lock != nil {
		return lock.Save()
	}
	return nil
}

// readSpec reads and parses a spec; "-" is standard input.
func readSpec(cmd *cobra.Command, name string) (*spec.Spec, error) {
	name, text, err := readFile(cmd, name)
	if err != nil {
		return nil, err
	}
	return spec.Parse(name, text)
}

// readFile reads a spec's text and says how errors name it.
func readFile(cmd *cobra.Command, name string) (string, []byte, error) {
	if name == "-" {
		text, err := readStdin(cmd)
		return "<stdin>", text, err
	}
	if name == "" {
		return "", nil, usage("obx run SPEC [DIR]", "read the spec: its name is empty")
	}
	if isDir(name) {
		hint := "SPEC is a file, and comes before the directory that copies take files from: obx run SPEC " + name
		if found, _ := filepath.Glob(filepath.Join(name, "*.sexp")); len(found) > 0 {
			hint = "in it there is " + strings.Join(found, ", ")
		}
		return "", nil, usage(hint, "read the spec: %s is a directory", name)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return "", nil, usage("", "read the spec: %w", err)
	}
	return name, text, nil
}

// readStdin reads all of standard input, which may be a terminal: an interrupt ends the wait.
func readStdin(cmd *cobra.Command) ([]byte, error) {
	type result struct {
		text []byte
		err  error
	}
	read := make(chan result, 1)
	go func() {
		text, err := io.ReadAll(cmd.InOrStdin())
		read <- result{text, err}
	}()
	select {
	case r := <-read:
		if r.err != nil {
			return nil, fmt.Errorf("read standard input: %w", r.err)
		}
		return r.text, nil
	case <-cmd.Context().Done():
		return nil, context.Cause(cmd.Context())
	}
}

// checkSpec adds to the mistakes of a spec's grammar those of its meaning, images' names included, and what a policy does not allow.
// given is as of build.Policy.Check.
func checkSpec(s *spec.Spec, errs spec.ErrorList, os string, policy *build.Policy, given func(image string) bool) spec.ErrorList {
	var list spec.ErrorList
	if err := s.Check(os); err != nil {
		list = err.(spec.ErrorList)
	}
	errs = errs.Merge(list)
	list = nil
	for st := range s.Stages() {
		if _, err := images.Normalize(st.From.Image); err != nil && st.From.Image != "" {
			list = append(list, &spec.Error{File: s.File, Pos: st.From.Pos, Msg: err.Error()})
		}
	}
	return errs.Merge(append(list, policy.Check(s, given)...))
}

// step finds the step that NUMBER means, or the first one of the build that NAME means.
func (p *project) step(flag, value string) (*keys.Step, error) {
	if n, err := strconv.Atoi(value); err == nil {
		if n < 1 || n > len(p.plan.Steps) {
			return nil, usage("obx plan "+p.spec.File+" lists the steps", "--%s %s: there are %d steps", flag, value, len(p.plan.Steps))
		}
		return p.plan.Steps[n-1], nil
	}
	var names []string
	for _, s := range p.plan.Stages {
		if s.Name == value {
			if len(s.Steps) == 0 {
				return nil, usage("", "--%s %s: the build has no steps", flag, value)
			}
			return s.Steps[0], nil
		}
		if s.Name != "" {
			names = append(names, s.Name)
		}
	}
	hint := "obx plan " + p.spec.File + " lists the steps"
	if len(names) > 0 {
		hint = "builds are: " + strings.Join(names, ", ")
	}
	return nil, usage(hint, "--%s %s: no step and no build has that name%s", flag, value, spec.Suggest(value, names))
}

// rebuild reads --rebuild.
func (p *project) rebuild(values []string) error {
	for _, v := range values {
		s, err := p.step("rebuild", v)
		if err != nil {
			return err
		}
		if p.builder.Rebuild == nil {
			p.builder.Rebuild = map[*keys.Step]bool{}
		}
		p.builder.Rebuild[s] = true
	}
	return nil
}

// addRebuild adds the flags that make cached steps run again.
func addRebuild(cmd *cobra.Command, noCache *bool, rebuild *[]string) {
	cmd.Flags().BoolVar(noCache, "no-cache", false, "run every step again")
	cmd.Flags().StringArrayVar(rebuild, "rebuild", nil, "run a `STEP` again and all that follow it: a number, or a build's name; repeatable")
}

// location is FILE:LINE of a step.
func location(file string, s *keys.Step) string {
	return file + ":" + strconv.Itoa(s.Op.Position().Line)
}
