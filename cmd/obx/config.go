package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// systemConfig is the configuration file of users that have none of their own.
const systemConfig = "/etc/obx/config.json"

// A config is what the configuration file says. Each list holds unless the flag for it is given.
type config struct {
	Caches    []string            `json:"caches"`
	Trust     []string            `json:"trust"`
	Mirrors   map[string][]string `json:"mirrors"`
	PlainHTTP []string            `json:"plainHTTP"`
	Policy    string              `json:"policy"`

	file string // "" without one
}

const configHint = "fields are: caches, trust, mirrors, plainHTTP, policy; see: obx help config"

// readConfig reads the file that --config names, else the user's, else the system's; none is like an empty one.
func readConfig(flag string) (*config, error) {
	names := []string{flag}
	if flag == "" {
		names = []string{systemConfig}
		if dir, err := os.UserConfigDir(); err == nil {
			names = []string{filepath.Join(dir, "obx", "config.json"), systemConfig}
		}
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if flag == "" && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, usage("", "read the configuration: %w", err)
		}
		return parseConfig(name, text)
	}
	return &config{}, nil
}

// parseConfig reads a configuration. A field that it does not know may be a mistake in one that matters, as trust.
func parseConfig(file string, text []byte) (*config, error) {
	c := &config{file: file}
	return c, parseJSON(file, text, "the configuration", c, configHint)
}

// parseJSON reads a file of one JSON object, called what, whose fields are all known. hint is for people who have made a mistake.
func parseJSON(file string, text []byte, what string, into any, hint string) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		if _, err = dec.Token(); err == io.EOF {
			return nil
		}
		err = errors.New("something follows the object")
	}
	var (
		syntax *json.SyntaxError
		kind   *json.UnmarshalTypeError
	)
	at := file
	switch {
	case errors.As(err, &syntax):
		at = fmt.Sprintf("%s:%d", file, lineOf(text, syntax.Offset))
	case errors.As(err, &kind):
		at = fmt.Sprintf("%s:%d", file, lineOf(text, kind.Offset))
		field := kind.Field
		if field == "" {
			field = what
		}
		err = fmt.Errorf("%s has the wrong type: %s", field, kind.Value)
	}
	return usage(hint, "%s: %s", at, strings.TrimPrefix(err.Error(), "json: "))
}

func lineOf(text []byte, offset int64) int {
	return 1 + bytes.Count(text[:min(int(offset), len(text))], []byte("\n"))
}

// configTopic is `obx help config`.
func configTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "What the configuration file says",
		Long: `Commands that reach caches and registries read one JSON file: that of --config, else obx/config.json in the user's
configuration directory (on Linux $XDG_CONFIG_HOME, or ~/.config), else ` + systemConfig + `. All fields may be left out;
one that obx does not know is an error. A flag replaces the field for it, and does not add to it.

  "caches"     names of shared caches, first to last: as --cache, and as $OBX_CACHE, which replaces them too
  "trust"      whose results are used: NAME:KEY as of obx key public: as --trust
  "mirrors"    for each registry, what to try before it: as --mirror
  "plainHTTP"  hosts spoken to without TLS: as --plain-http
  "policy"     the file that says what specs may reach, beside this one if it is no whole path: as --policy, and as
               $OBX_POLICY, which replaces it too (obx help policy)

Example:

  {
    "caches": ["registry.example/cache"],
    "trust": ["ci:AuDVsgrHQUmoxjhr2qfYkjLFB7xxhFBQa0oHPEOWwB8="],
    "mirrors": {"docker.io": ["mirror.example:5000/hub"]},
    "plainHTTP": ["registry.lan:5000"]
  }`,
	}
}
