package build

import (
	"maps"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An ImageChange is what an image says of how it is used, which no spec says: an output's own. What is zero stays as the base image and the spec
// have it.
type ImageChange struct {
	Config  ocispec.ImageConfig // Env, Labels, ExposedPorts and Volumes are added to; an Entrypoint or Cmd that is not nil is put in the place of another
	Created time.Time           // of the image, and of what a history does not date
}

func (c ImageChange) apply(img *ocispec.Image) {
	to, from := &img.Config, c.Config
	to.Env = slices.Clone(to.Env)
	for _, v := range from.Env {
		name, _, _ := strings.Cut(v, "=")
		to.Env = append(slices.DeleteFunc(to.Env, func(old string) bool { return strings.HasPrefix(old, name+"=") }), v)
	}
	if from.Entrypoint != nil {
		// A command is an entrypoint's arguments: that of another is not passed to this one, as in Dockerfiles.
		to.Entrypoint, to.Cmd = from.Entrypoint, nil
	}
	if from.Cmd != nil {
		to.Cmd = from.Cmd
	}
	to.Labels = added(to.Labels, from.Labels)
	to.ExposedPorts = added(to.ExposedPorts, from.ExposedPorts)
	to.Volumes = added(to.Volumes, from.Volumes)
	set := func(to *string, from string) {
		if from != "" {
			*to = from
		}
	}
	set(&to.User, from.User)
	set(&to.WorkingDir, from.WorkingDir)
	set(&to.StopSignal, from.StopSignal)
	if c.Created.IsZero() {
		return
	}
	at := c.Created.UTC()
	img.Created = &at
	img.History = slices.Clone(img.History)
	for i := range img.History {
		if img.History[i].Created == nil {
			img.History[i].Created = &at
		}
	}
}

// added is a map with what another has; neither is changed.
func added[V any](to, from map[string]V) map[string]V {
	if len(from) == 0 {
		return to
	}
	all := maps.Clone(to)
	if all == nil {
		all = make(map[string]V)
	}
	maps.Copy(all, from)
	return all
}
