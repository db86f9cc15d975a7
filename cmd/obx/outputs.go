package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cmd/obx/internal/progress"
	"github.com/ocurrent/obx/cmd/obx/internal/safe"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/registry/images"
)

// outputTypes are what --output can write.
var outputTypes = []string{"tar", "oci", "docker", "local", "registry"}

// imageFields are the fields of an output that an image has beside its files.
var imageFields = []string{"entrypoint", "cmd", "env", "label", "expose", "user", "workdir", "stop-signal", "config"}

const outputHint = "for example -o type=oci,dest=image.tar,name=app:dev"

// parseOutputs reads --output, comma-separated as buildx has it.
func parseOutputs(flags []string) ([]build.OutputSpec, error) {
	created, err := sourceDate(os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return nil, err
	}
	var all []build.OutputSpec
	stdout := false
	for _, f := range flags {
		o, err := parseOutput(f)
		if err != nil {
			return nil, err
		}
		if o.Dest == "-" {
			if stdout {
				return nil, usage("", "only one output can go to standard output")
			}
			stdout = true
		}
		o.Image.Created = created
		all = append(all, o)
	}
	return all, nil
}

// sourceDate reads SOURCE_DATE_EPOCH, seconds since 1970. https://reproducible-builds.org/specs/source-date-epoch/
func sourceDate(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > 253402300799 {
		return time.Time{}, usage("for example SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)", "SOURCE_DATE_EPOCH=%s: not a number of seconds since 1970", s)
	}
	return time.Unix(n, 0).UTC(), nil
}

func parseOutput(s string) (build.OutputSpec, error) {
	var o build.OutputSpec
	fail := func(hint, format string, args ...any) (build.OutputSpec, error) {
		return o, usage(hint, "--output %s: %w", s, fmt.Errorf(format, args...))
	}
	fields, err := splitFields(s)
	if err != nil {
		return fail(outputHint, "%w", err)
	}
	image := ""
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return fail(outputHint, "%q is not KEY=VALUE", f)
		}
		switch key = strings.ToLower(strings.TrimSpace(key)); key {
		case "type":
			o.Type = value
		case "dest":
			o.Dest = value
		case "name":
			o.Names = append(o.Names, value)
		case "setuid":
			if value != "keep" {
				return fail("without it they are left out", "setuid can only be keep")
			}
			o.KeepSetuid = true
		default:
			if !slices.Contains(imageFields, key) {
				return fail("fields are: type, dest, name, setuid, "+strings.Join(imageFields, ", "), "unknown field %q", key)
			}
			image = key
			if err := setImageField(&o.Image.Config, key, value); err != nil {
				return fail("see: obx help output", "%s: %w", key, err)
			}
		}
	}
	isImage := o.Type != "tar" && o.Type != "local"
	switch {
	case o.Type == "":
		return fail(outputHint, "type is missing")
	case !slices.Contains(outputTypes, o.Type):
		return fail("types are: "+strings.Join(outputTypes, ", "), "unknown type %q", o.Type)
	case o.Type == "registry" && o.Dest != "":
		return fail("for example -o type=registry,name=registry.example/app:1.0", "type registry has no dest, but names")
	case o.Type == "registry" && o.Names == nil:
		return fail("for example -o type=registry,name=registry.example/app:1.0", "name is missing")
	case o.Type != "registry" && o.Dest == "":
		return fail(outputHint, "dest is missing")
	case o.Type == "local" && o.Dest == "-":
		return fail("type=tar can go to standard output", "a directory is needed")
	case o.KeepSetuid && o.Type != "local":
		return fail("tar and images have all bits", "setuid is for type=local")
	case o.Names != nil && !isImage:
		return fail("images have one: types oci, docker and registry", "type %s has no name", o.Type)
	case image != "" && !isImage:
		return fail("images have one: types oci, docker and registry", "type %s has no %s", o.Type, image)
	}
	for _, name := range o.Names {
		check := images.CheckOutputName
		if o.Type == "registry" {
			check = func(name string) error { _, _, err := images.ParseTarget(name); return err }
		}
		if err := check(name); err != nil {
			return fail("", "%w", err)
		}
	}
	// A layout is a directory where the destination is one, or is said to be.
	o.Dir = o.Type == "oci" && (strings.HasSuffix(o.Dest, "/") || isDir(o.Dest))
	return o, nil
}

// splitFields splits at commas, but for those in a field in double quotes, as CSV has them, and those in a value that is a JSON list.
func splitFields(s string) (fields []string, err error) {
	for more := true; more; {
		var field string
		switch key, value, _ := strings.Cut(s, "="); {
		case strings.HasPrefix(s, `"`):
			if field, s, err = quotedField(s); err != nil {
				return nil, err
			}
		case strings.HasPrefix(value, "[") && !strings.Contains(key, ","):
			d := json.NewDecoder(strings.NewReader(value))
			var list json.RawMessage
			if err := d.Decode(&list); err != nil {
				return nil, fmt.Errorf("%s: not a JSON list: %s", key, value)
			}
			field, s = key+"="+string(list), value[d.InputOffset():]
		default:
			if field, _, _ = strings.Cut(s, ","); strings.Contains(field, `"`) {
				return nil, fmt.Errorf("%s: a quote inside of a field: quote the whole field, and double those in it", field)
			}
			s = s[len(field):]
		}
		fields = append(fields, field)
		if more = s != ""; more {
			if s[0] != ',' {
				return nil, fmt.Errorf("a comma is missing before %q", s)
			}
			s = s[1:]
		}
	}
	return fields, nil
}

// quotedField reads a field in double quotes; two stand for one.
func quotedField(s string) (field, rest string, err error) {
	for s = s[1:]; ; {
		before, after, ok := strings.Cut(s, `"`)
		if !ok {
			return "", "", errors.New("a closing quote is missing")
		}
		field += before
		if !strings.HasPrefix(after, `"`) {
			return field, after, nil
		}
		field, s = field+`"`, after[1:]
	}
}

// setImageField sets what a field of an output says of its image.
func setImageField(c *ocispec.ImageConfig, key, value string) error {
	switch key {
	case "entrypoint":
		return addWords(&c.Entrypoint, value)
	case "cmd":
		return addWords(&c.Cmd, value)
	case "env":
		c.Env = append(c.Env, value)
	case "label":
		name, text, _ := strings.Cut(value, "=")
		if name == "" {
			return fmt.Errorf("%q is not NAME=VALUE", value)
		}
		if c.Labels == nil {
			c.Labels = make(map[string]string)
		}
		c.Labels[name] = text
	case "expose":
		if c.ExposedPorts == nil {
			c.ExposedPorts = make(map[string]struct{})
		}
		c.ExposedPorts[strings.ToLower(value)] = struct{}{}
	case "user":
		c.User = value
	case "workdir":
		c.WorkingDir = value
	case "stop-signal":
		c.StopSignal = value
	case "config":
		return readImageConfig(c, value)
	}
	return checkImageConfig(c)
}

// addWords reads a JSON list of words, or adds one word.
func addWords(words *[]string, value string) error {
	if !strings.HasPrefix(value, "[") {
		*words = append(*words, value)
		return nil
	}
	*words = []string{}
	if err := json.Unmarshal([]byte(value), words); err != nil {
		return fmt.Errorf("not a JSON list of words: %s", value)
	}
	return nil
}

// readImageConfig reads a file with the "config" object of an OCI image. Fields after it on the command line count more.
// https://github.com/opencontainers/image-spec/blob/v1.1.1/config.md
func readImageConfig(c *ocispec.ImageConfig, name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return fmt.Errorf("%s is not the config of an image: %w", name, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%s is not the config of an image: something follows it", name)
	}
	return checkImageConfig(c)
}

// checkImageConfig refuses what no engine would start.
func checkImageConfig(c *ocispec.ImageConfig) error {
	for _, v := range c.Env {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" || strings.Contains(v, "\x00") {
			return fmt.Errorf("%q is not NAME=VALUE", v)
		}
	}
	ports := make(map[string]struct{})
	for p := range c.ExposedPorts {
		number, proto, ok := strings.Cut(p, "/")
		if !ok {
			proto = "tcp"
		}
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 || n > 65535 || !slices.Contains([]string{"tcp", "udp", "sctp"}, proto) {
			return fmt.Errorf("%q is not PORT, PORT/tcp, PORT/udp or PORT/sctp", p)
		}
		ports[fmt.Sprintf("%d/%s", n, proto)] = struct{}{}
	}
	if c.ExposedPorts != nil {
		c.ExposedPorts = ports
	}
	if dir := c.WorkingDir; dir != "" && !path.IsAbs(dir) && !strings.Contains(dir, `:\`) {
		return fmt.Errorf("%q is not absolute", dir)
	}
	if s := c.StopSignal; s != "" && !strings.HasPrefix(s, "SIG") {
		if n, err := strconv.Atoi(s); err != nil || n < 1 || n > 64 {
			return fmt.Errorf("%q is no signal, as SIGTERM or 15", s)
		}
	}
	return nil
}

// printWritten says in one line what an output has become.
func printWritten(w io.Writer, o build.Written) {
	line := "wrote " + o.What
	if len(o.Names) > 0 {
		line += " " + strings.Join(o.Names, ", ")
	}
	switch o.Where {
	case "":
	case "-":
		line += " to standard output"
	default:
		line += " to " + o.Where
	}
	line += ": " + progress.Bytes(o.Size)
	if o.Where == "" {
		line += fmt.Sprintf(" (%s sent)", progress.Bytes(o.Sent))
	}
	fmt.Fprintln(w, safe.Line("obx: "+line+", "+o.Digest.String()))
}

// completeOutput completes the type of an output.
func completeOutput(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	all := make([]string, len(outputTypes))
	for i, t := range outputTypes {
		all[i] = "type=" + t + ",dest="
		if t == "registry" {
			all[i] = "type=" + t + ",name="
		}
	}
	return all, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// outputTopic is `obx help output`.
func outputTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "output",
		Short: "What --output can write",
		Long: `--output TYPE and fields, with commas between them, says what a build's result is written as. It is repeatable.

  type=tar,dest=FILE             its files
  type=local,dest=DIR            its files, into a directory
  type=oci,dest=FILE             an image: a tar of an OCI layout
  type=oci,dest=DIR/             the same as a directory, which is added to
  type=docker,dest=FILE          an image for docker load
  type=registry,name=HOST/NAME   an image, pushed to a registry; with several --platform, an index of images

dest=- is standard output. Each output ends with a line that says what was written, where, its size, and its digest: an image's is
that of its manifest, files' that of their tar.

More fields:

  name=NAME[:TAG]    names an image; repeatable
  setuid=keep        type=local: set-user-ID and set-group-ID bits and file capabilities are kept

Of images, beside what the spec says and the base image has:

  entrypoint=WORD    what a container runs; a word each, or a JSON list: entrypoint=["/bin/app","-v"]. The base image's cmd goes
  cmd=WORD           its arguments, or what it runs without an entrypoint; in the same form
  env=NAME=VALUE     a variable; repeatable, as label and expose are
  label=NAME=VALUE   a label
  expose=PORT[/PROTO]
  user=USER          the user of containers
  workdir=DIR        their working directory
  stop-signal=SIGNAL
  config=FILE        all of these from a JSON file, as "config" in an OCI image: {"Entrypoint": ["/bin/app"], "Labels": {"a": "b"}}

A field that has a comma stands in double quotes: "label=who=me, myself".

The environment variable SOURCE_DATE_EPOCH, in seconds since 1970, is an image's date (created). Without it, an image has none, which
docker shows as 292 years ago: the same build gives the same bytes.

` + compressionHelp,
	}
}

const compressionHelp = `--compression is what all layers of an image have, whatever they were packed as before. Without it, layers of steps are zstd, and
those of the base image stay as they came; type=docker has gzip instead of zstd, which Docker reads since version 23.
`
