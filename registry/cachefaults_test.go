package registry_test

import (
	"testing"
	"time"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/registry"
)

func TestCacheFaults(t *testing.T) {
	conformance.CacheFaults(t, conformance.NewDebian(t), func(t *testing.T, name string) registry.Repo {
		o := registry.RepoOptions{}
		registry.HurryRepo(&o, 300*time.Millisecond, 300*time.Millisecond, time.Second)
		return openRepo(t, name, o)
	})
}
