package registry_test

import (
	"testing"
	"time"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/registry/internal/repotest"
	"github.com/ocurrent/obx/registry/repo"
)

func TestCacheFaultsDebian(t *testing.T) { cacheFaults(t, conformance.NewDebian(t)) }

func TestCacheFaultsDistribution(t *testing.T) { cacheFaults(t, conformance.NewDistribution(t)) }

func cacheFaults(t *testing.T, reg *conformance.Registry) {
	t.Parallel() // it waits most of the time
	conformance.CacheFaults(t, reg, func(t *testing.T, name string) repo.Repo {
		return repotest.Open(t, name, repotest.Hurried(300*time.Millisecond, 300*time.Millisecond, time.Second))
	})
}
