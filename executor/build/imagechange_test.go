package build

import (
	"reflect"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An output adds to what an image says, and puts an entrypoint of its own in the place of another, whose arguments go.
func TestImageChange(t *testing.T) {
	t.Parallel()
	at := time.Unix(1700000000, 0).UTC()
	before := time.Unix(1, 0).UTC()
	base := func() ocispec.Image {
		return ocispec.Image{
			Config: ocispec.ImageConfig{
				Env: []string{"PATH=/bin", "A=1"}, Entrypoint: []string{"old"}, Cmd: []string{"-x"}, Labels: map[string]string{"a": "1", "b": "1"}, User: "1:2", WorkingDir: "/w",
			},
			History: []ocispec.History{{CreatedBy: "base", Created: &before}, {CreatedBy: "step"}},
		}
	}
	given := base()
	img := given
	ImageChange{}.apply(&img)
	if !reflect.DeepEqual(img, base()) {
		t.Errorf("nothing was asked for: %+v", img)
	}
	ImageChange{Created: at, Config: ocispec.ImageConfig{
		Env: []string{"A=2", "B=3"}, Entrypoint: []string{"new"}, Labels: map[string]string{"b": "2", "c": "3"},
		ExposedPorts: map[string]struct{}{"80/tcp": {}}, StopSignal: "SIGINT", User: "app",
	}}.apply(&img)
	want := ocispec.Image{
		Created: &at,
		Config: ocispec.ImageConfig{
			Env: []string{"PATH=/bin", "A=2", "B=3"}, Entrypoint: []string{"new"}, Labels: map[string]string{"a": "1", "b": "2", "c": "3"}, User: "app", WorkingDir: "/w",
			ExposedPorts: map[string]struct{}{"80/tcp": {}}, StopSignal: "SIGINT",
		},
		History: []ocispec.History{{CreatedBy: "base", Created: &before}, {CreatedBy: "step", Created: &at}},
	}
	if !reflect.DeepEqual(img, want) {
		t.Errorf("got %+v, want %+v", img, want)
	}
	if !reflect.DeepEqual(given, base()) {
		t.Errorf("what was given is now %+v", given)
	}
	ImageChange{Config: ocispec.ImageConfig{Cmd: []string{}}}.apply(&given)
	if given.Config.Cmd == nil || len(given.Config.Cmd) != 0 || given.Config.Entrypoint[0] != "old" {
		t.Errorf("an empty command: %+v", given.Config)
	}
}
