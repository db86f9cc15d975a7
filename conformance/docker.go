package conformance

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CheckDockerArchive checks what `docker load` of Docker 20.10 would: it is what Debian 12 ships, and reads no zstd. It gives the config and the names
// of the one image. See https://github.com/moby/docker-image-spec, "Combined Image JSON + Filesystem Changeset Format".
func CheckDockerArchive(r io.Reader) (config ocispec.Image, names []string, err error) {
	files, err := readArchive(r)
	if err != nil {
		return config, nil, err
	}
	open := func(what, name string) ([]byte, error) {
		b, ok := files[name]
		if !ok || !isClean(name) {
			return nil, fmt.Errorf("%s: there is no file %q", what, name)
		}
		return b, nil
	}
	b, err := open("manifest", "manifest.json")
	if err != nil {
		return config, nil, err
	}
	var items []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(b, &items); err != nil || len(items) != 1 {
		return config, nil, fmt.Errorf("manifest.json has %d images: %v", len(items), err)
	}
	item := items[0]
	if b, err = open("config", item.Config); err != nil {
		return config, nil, err
	}
	if err := json.Unmarshal(b, &config); err != nil {
		return config, nil, fmt.Errorf("config: %w", err)
	}
	if !bytes.Contains(b, []byte(`"rootfs"`)) {
		return config, nil, fmt.Errorf("config: no rootfs key")
	}
	if config.OS != "linux" && config.OS != "windows" || config.Architecture == "" {
		return config, nil, fmt.Errorf("config: it is for %q/%q", config.OS, config.Architecture)
	}
	if len(item.Layers) != len(config.RootFS.DiffIDs) {
		return config, nil, fmt.Errorf("%d layers, %d diff ids", len(item.Layers), len(config.RootFS.DiffIDs))
	}
	for i, name := range item.Layers {
		b, err := open(fmt.Sprint("layer ", i+1), name)
		if err != nil {
			return config, nil, err
		}
		if err := checkDockerLayer(b, config.RootFS.DiffIDs[i]); err != nil {
			return config, nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	if n := slices.IndexFunc(config.History, func(h ocispec.History) bool { return !h.EmptyLayer }); n >= 0 {
		full := 0
		for _, h := range config.History {
			if !h.EmptyLayer {
				full++
			}
		}
		if full != len(item.Layers) {
			return config, nil, fmt.Errorf("the history has %d entries for %d layers", full, len(item.Layers))
		}
	}
	for _, tag := range item.RepoTags {
		named, err := reference.ParseNormalizedNamed(tag)
		if _, ok := named.(reference.NamedTagged); err != nil || !ok {
			return config, nil, fmt.Errorf("%q is no name with a tag: %v", tag, err)
		}
	}
	return config, item.RepoTags, checkRepositories(files["repositories"], item.RepoTags)
}

// checkRepositories holds the names of the older file, which need not be there, against those of manifest.json.
func checkRepositories(b []byte, names []string) error {
	if b == nil {
		return nil
	}
	var repositories map[string]map[string]string
	if err := json.Unmarshal(b, &repositories); err != nil {
		return fmt.Errorf("repositories: %w", err)
	}
	for name, tags := range repositories {
		for tag := range tags {
			if !slices.Contains(names, name+":"+tag) {
				return fmt.Errorf("repositories has %s:%s, manifest.json has not", name, tag)
			}
		}
	}
	return nil
}

// checkDockerLayer unpacks a layer as far as its diff id.
func checkDockerLayer(b []byte, want digest.Digest) error {
	var r io.Reader = bytes.NewReader(b)
	if bytes.HasPrefix(b, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		r = z
	}
	h := digest.SHA256.Digester()
	tr := tar.NewReader(io.TeeReader(r, h.Hash()))
	for {
		if _, err := tr.Next(); err == io.EOF {
			break
		} else if err != nil {
			return fmt.Errorf("it is neither tar nor gzip: %w", err)
		}
	}
	if _, err := io.Copy(h.Hash(), r); err != nil {
		return err
	}
	if h.Digest() != want {
		return fmt.Errorf("its diff id is %s instead of %s", h.Digest(), want)
	}
	return nil
}

// readArchive reads the regular files of a tar.
func readArchive(r io.Reader) (map[string][]byte, error) {
	files := make(map[string][]byte)
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		switch {
		case err == io.EOF:
			return files, nil
		case err != nil:
			return nil, err
		case h.Typeflag == tar.TypeDir:
			continue
		case h.Typeflag != tar.TypeReg || !isClean(h.Name):
			return nil, fmt.Errorf("the archive has %q, of type %q", h.Name, h.Typeflag)
		}
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			return nil, err
		}
	}
}

func isClean(name string) bool {
	return name == path.Clean(name) && !path.IsAbs(name) && !strings.HasPrefix(name, "..")
}
