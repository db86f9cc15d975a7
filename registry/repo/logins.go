package repo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/ocurrent/obx/cas/userns"
)

// Logins are the files that logins are read from, in Docker's format, first to last. They are those of skopeo, podman and buildah, in their order:
// $REGISTRY_AUTH_FILE alone where it is set; else $XDG_RUNTIME_DIR/containers/auth.json, ~/.config/containers/auth.json, and Docker's config.json.
// The first that has a login for a repository is used. In a file, the most specific name wins: host/namespace/repository, host/namespace, host.
type Logins struct{ files []*loginFile }

// A loginFile is what of a file tells where a login may be. What cannot be read has err, which is told where a login is refused.
type loginFile struct {
	path    string
	store   *credentials.FileStore
	names   []string          // of logins in the file itself, sorted
	helpers map[string]string // programs that keep the login for a host
	helper  string            // the program for all others
	err     error
}

// ReadLogins reads which logins there are. A file that is missing has none, as one that this user may not read.
func ReadLogins() (*Logins, error) {
	l := &Logins{}
	for _, path := range loginPaths() {
		f, err := readLoginFile(path)
		if err != nil {
			return nil, fmt.Errorf("read the logins for registries: %w", err)
		}
		l.files = append(l.files, f)
	}
	return l, nil
}

// loginPaths are the files of logins. A service without a home has fewer.
func loginPaths() []string {
	if path := os.Getenv("REGISTRY_AUTH_FILE"); path != "" {
		return []string{path}
	}
	var paths []string
	const name = "containers/auth.json"
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		paths = append(paths, filepath.Join(dir, name))
	} else if uid := userns.Caller(); uid >= 0 {
		paths = append(paths, filepath.Join("/run/containers", strconv.Itoa(uid), filepath.Base(name)))
	}
	home, err := os.UserHomeDir()
	if dir := os.Getenv("XDG_CONFIG_HOME"); dir != "" {
		paths = append(paths, filepath.Join(dir, name))
	} else if err == nil {
		paths = append(paths, filepath.Join(home, ".config", name))
	}
	if path := dockerConfigFile(); path != "" {
		paths = append(paths, path)
	}
	return paths
}

// dockerConfigFile is the path of Docker's config file; "" where there can be none.
func dockerConfigFile() string {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		dir = filepath.Join(home, ".docker")
	}
	return filepath.Join(dir, "config.json")
}

func readLoginFile(path string) (*loginFile, error) {
	f := &loginFile{path: path}
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return f, nil
	case errors.Is(err, fs.ErrPermission):
		f.err = err // of another user, as after su
		return f, nil
	case err != nil:
		return nil, err
	}
	if len(strings.TrimSpace(string(text))) == 0 {
		return f, nil
	}
	var conf struct {
		Auths       map[string]json.RawMessage `json:"auths"`
		CredHelpers map[string]string          `json:"credHelpers"`
		CredsStore  string                     `json:"credsStore"`
	}
	if err := json.Unmarshal(text, &conf); err != nil {
		return nil, fmt.Errorf("%s is not in Docker's format: %w", path, err)
	}
	f.names, f.helper = slices.Sorted(maps.Keys(conf.Auths)), conf.CredsStore
	f.helpers = make(map[string]string)
	for _, host := range slices.Backward(slices.Sorted(maps.Keys(conf.CredHelpers))) {
		f.helpers[loginHost(host)] = conf.CredHelpers[host]
	}
	f.store, err = credentials.NewFileStore(path)
	return f, err
}

// loginHost is the host of a name that a login has. Docker writes URLs for some, and has three names for its own registry.
func loginHost(name string) string {
	if _, rest, ok := strings.Cut(name, "://"); ok {
		name, _, _ = strings.Cut(rest, "/")
	}
	switch name {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return name
}

// A login is one place where there may be a login, which only asking tells.
type login struct {
	file string
	name string // "" for what a program keeps
	get  func(context.Context) (auth.Credential, error)
}

// find lists where the login for a repository may be. host and repository are those of a name, as docker.io and library/busybox; an empty repository
// is any.
func (l *Logins) find(host, repository string) []login {
	var found []login
	for _, f := range l.files {
		found = append(found, f.find(loginHost(host), repository)...)
	}
	return found
}

func (f *loginFile) find(host, repository string) []login {
	native := func(helper string) login {
		return login{file: f.path, get: func(ctx context.Context) (auth.Credential, error) {
			return credentials.NewNativeStore(helper).Get(ctx, serverAddress(host))
		}}
	}
	if f.err != nil {
		return []login{{file: f.path, get: func(context.Context) (auth.Credential, error) { return auth.EmptyCredential, f.err }}}
	}
	if helper := f.helpers[host]; helper != "" {
		return []login{native(helper)}
	}
	var found []login
	add := func(name string) {
		found = append(found, login{file: f.path, name: name, get: func(ctx context.Context) (auth.Credential, error) { return f.store.Get(ctx, name) }})
	}
	for path := repository; path != ""; path = parentName(path) {
		if name := host + "/" + path; slices.Contains(f.names, name) {
			add(name)
		}
	}
	if f.helper != "" {
		return append(found, native(f.helper))
	}
	if name := f.nameOf(host); name != "" {
		add(name)
	}
	return found
}

// nameOf is the name under which a file has a login for a host: the host itself, or another that means it.
func (f *loginFile) nameOf(host string) string {
	if slices.Contains(f.names, host) {
		return host
	}
	for _, name := range f.names {
		if loginHost(name) == host {
			return name
		}
	}
	return ""
}

func parentName(path string) string {
	return path[:max(strings.LastIndexByte(path, '/'), 0)]
}

// serverAddress is what Docker calls a host in its config file, and where a program is asked for its login.
func serverAddress(host string) string { return credentials.ServerAddressFromRegistry(host) }

// Paths are the files, first to last.
func (l *Logins) Paths() []string {
	paths := make([]string, len(l.files))
	for i, f := range l.files {
		paths[i] = f.path
	}
	return paths
}

// Save keeps a login for a host, in the file that has one already, else in the last, which is $REGISTRY_AUTH_FILE or Docker's. It returns the file,
// and whether the password can be read in it.
func (l *Logins) Save(ctx context.Context, host, user, password string) (path string, plain bool, err error) {
	if len(l.files) == 0 {
		return "", false, errors.New("there is no place for a login: set $REGISTRY_AUTH_FILE or $HOME")
	}
	host = loginHost(host)
	f := l.files[len(l.files)-1]
	for _, one := range slices.Backward(l.files) {
		if one.err == nil && (one.nameOf(host) != "" || one.helpers[host] != "") {
			f = one
		}
	}
	name := cmp.Or(f.nameOf(host), serverAddress(host))
	err = f.change(host, func(store credentials.Store) error {
		return store.Put(ctx, name, auth.Credential{Username: user, Password: password})
	})
	if err != nil {
		return "", false, fmt.Errorf("save the login for %s in %s: %w", host, f.path, err)
	}
	return f.path, f.helpers[host] == "" && f.helper == "", nil
}

// Remove removes all logins for a host, and returns the files that had one.
func (l *Logins) Remove(ctx context.Context, host string) (from []string, err error) {
	host = loginHost(host)
	for _, f := range l.files {
		had := false
		err := f.change(host, func(store credentials.Store) error {
			names := slices.DeleteFunc(slices.Clone(f.names), func(name string) bool { return loginHost(name) != host })
			if f.helpers[host] != "" || f.helper != "" {
				address := serverAddress(host)
				if cred, err := store.Get(ctx, address); err != nil || cred == auth.EmptyCredential {
					return err
				}
				names = []string{address}
			}
			for _, name := range names {
				had = true
				if err := store.Delete(ctx, name); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return from, fmt.Errorf("remove the login for %s from %s: %w", host, f.path, err)
		}
		if had {
			from = append(from, f.path)
		}
	}
	return from, nil
}

// change has a file changed. A link stays, and what it leads to changes.
func (f *loginFile) change(host string, do func(credentials.Store) error) error {
	if f.err != nil {
		return f.err
	}
	path := f.path
	if to, err := filepath.EvalSymlinks(path); err == nil {
		path = to
	}
	if helper := cmp.Or(f.helpers[host], f.helper); helper != "" {
		return do(credentials.NewNativeStore(helper))
	}
	store, err := credentials.NewFileStore(path)
	if err != nil {
		return err
	}
	return do(store)
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
