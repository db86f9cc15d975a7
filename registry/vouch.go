package registry

import (
	"fmt"
	"slices"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/layers"
)

// VerifyEnvelope says whether an envelope, as Find gave it with a result, makes these layers the trusted result of a key in one of the
// domains: for results that were pulled before, perhaps by somebody who trusts more.
func VerifyEnvelope(envelope []byte, trust []PublicKey, id keys.ID, domains []string, chain []layers.Layer) error {
	payload, err := unseal(envelope, trust)
	if err != nil {
		return err
	}
	p, err := decodePredicate(payload)
	if err != nil {
		return err
	}
	same := func(l layerRef, have layers.Layer) bool { return l.DiffID.digest() == have.DiffID }
	switch {
	case p.Key != id:
		return fmt.Errorf("it is signed as the result of %s", p.Key)
	case !slices.Contains(domains, p.Domain):
		return fmt.Errorf("it is signed for the domain %q", p.Domain)
	case p.Status != statusOK || !slices.EqualFunc(p.Layers, chain, same):
		return fmt.Errorf("other layers are signed")
	}
	return nil
}
