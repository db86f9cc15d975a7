package main

import (
	"fmt"
	"strings"

	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/registry/images"
)

// warnUnused warns of a --base for a name that the spec does not have: a slip, most likely.
func (in *inputs) warnUnused(p *project) {
	var imgs []string
	used := map[string]bool{}
	for st := range p.spec.Stages() {
		if name, err := images.Normalize(st.From.Image); err == nil {
			used[name] = true
			imgs = append(imgs, st.From.Image)
		}
	}
	for _, b := range in.bases {
		image, _, _ := strings.Cut(b, "=")
		if name, err := images.Normalize(image); err == nil && !used[name] {
			p.notices.warn(fmt.Sprintf("--base %s: %s has no (from %s)%s", b, p.spec.File, image, spec.Suggest(image, imgs)))
		}
	}
}
