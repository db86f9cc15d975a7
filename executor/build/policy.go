package build

import (
	"fmt"
	"slices"

	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/registry/images"
)

// An Entitlement is something beyond its sandbox that a spec can reach by its own choice.
type Entitlement string

const (
	NetworkHost     Entitlement = "network.host"     // (network host): steps in the network of this machine
	BaseLocal       Entitlement = "base.local"       // (from oci:DIR): files of this machine as a base image
	RegistryPrivate Entitlement = "registry.private" // (from HOST/...): registries on this machine, and in the network around it
	CacheShared     Entitlement = "cache.shared"     // (sharing shared) and (sharing locked): one directory for the steps of all builds
)

// Entitlements lists all of them.
var Entitlements = []Entitlement{NetworkHost, BaseLocal, RegistryPrivate, CacheShared}

// A Policy says what specs may reach. The nil Policy allows everything.
type Policy struct {
	Allow []Entitlement
}

// Allows reports whether specs may reach something.
func (p *Policy) Allows(e Entitlement) bool { return p == nil || slices.Contains(p.Allow, e) }

// Check finds everything in a spec that the policy does not allow. given reports images that are the user's choice and not the spec's; it may be
// nil. What only the network knows, to which address a name leads, is for images.Resolver.Guarded to see.
func (p *Policy) Check(s *spec.Spec, given func(image string) bool) spec.ErrorList {
	c := policyCheck{policy: p, spec: s, given: given}
	c.stage(&s.Stage)
	return c.errs
}

type policyCheck struct {
	policy *Policy
	spec   *spec.Spec
	given  func(string) bool
	errs   spec.ErrorList
}

// needs notes that the spec reaches for something at a place.
func (c *policyCheck) needs(e Entitlement, pos spec.Pos, what string) {
	if !c.policy.Allows(e) {
		c.errs = append(c.errs, &spec.Error{File: c.spec.File, Pos: pos, Msg: fmt.Sprintf("%s is not allowed here: ask for --allow %s", what, e)})
	}
}

func (c *policyCheck) stage(st *spec.Stage) {
	for _, b := range st.Builds {
		if b.Stage != nil {
			c.stage(b.Stage)
		}
	}
	c.base(st.From)
	for _, op := range st.Ops {
		if run, ok := op.(*spec.Run); ok {
			c.run(run)
		}
	}
}

func (c *policyCheck) base(from spec.From) {
	if c.given != nil && c.given(from.Image) {
		return
	}
	what := "(from " + spec.Quote(from.Image) + ")"
	switch reach, _ := images.ReachOf(from.Image); reach { // a name that is none reaches nothing
	case images.ReachLocal:
		c.needs(BaseLocal, from.Pos, what)
	case images.ReachPrivate:
		c.needs(RegistryPrivate, from.Pos, what)
	}
}

func (c *policyCheck) run(op *spec.Run) {
	if slices.Contains(op.Network, "host") {
		c.needs(NetworkHost, c.spec.FieldPos(op, "network"), "(network host)")
	}
	for _, m := range op.Caches {
		if how := sharing(m); how != "" {
			c.needs(CacheShared, m.Pos, fmt.Sprintf("cache %s with (sharing %s)", spec.Quote(m.ID), how))
		}
	}
}
