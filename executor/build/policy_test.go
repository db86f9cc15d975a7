package build

import (
	"slices"
	"strings"
	"testing"

	"github.com/ocurrent/obx/keys/spec"
)

func TestPolicy(t *testing.T) {
	const denied = " is not allowed here: ask for --allow "
	tests := []struct {
		name, spec string
		given      string // an image that the user names
		want       []string
	}{
		{name: "nothing", spec: `((from busybox) (run (shell true)))`},
		{name: "scratch", spec: `((from scratch))`},
		{name: "a public registry", spec: `((from ghcr.io/a/b:1))`},
		{name: "the host's network", spec: `((from busybox) (run (shell true) (network host)))`,
			want: []string{"f:1:35: (network host)" + denied + "network.host"}},
		{name: "a network on Windows is its own", spec: `((from busybox) (run (shell true) (network nat)))`},
		{name: "a layout", spec: `((from oci:/etc:x))`,
			want: []string{"f:1:2: (from oci:/etc:x)" + denied + "base.local"}},
		{name: "a layout in the directory", spec: `((from oci:a))`,
			want: []string{"f:1:2: (from oci:a)" + denied + "base.local"}},
		{name: "a registry on this machine", spec: `((from 127.0.0.1:5000/a))`,
			want: []string{"f:1:2: (from 127.0.0.1:5000/a)" + denied + "registry.private"}},
		{name: "a host without a domain", spec: `((from registry:5000/a))`,
			want: []string{"f:1:2: (from registry:5000/a)" + denied + "registry.private"}},
		{name: "what the user names", given: "127.0.0.1:5000/a", spec: `((from 127.0.0.1:5000/a))`},
		{name: "what the user names is no more than that", given: "127.0.0.1:5000/a", spec: `((from 127.0.0.1:5000/b))`,
			want: []string{"f:1:2: (from 127.0.0.1:5000/b)" + denied + "registry.private"}},
		{name: "a private cache", spec: `((from a) (run (cache (c (target /c)) (d (target /d) (buildkit_options ((sharing private))))) (shell x)))`},
		{name: "shared caches", spec: `((from a) (run (cache (c (target /c) (buildkit_options ((sharing shared)))) (d (target /d) (buildkit_options ((sharing locked))))) (shell x)))`,
			want: []string{"f:1:23: cache c with (sharing shared)" + denied + "cache.shared", "f:1:77: cache d with (sharing locked)" + denied + "cache.shared"}},
		{name: "a name that is none", spec: `((from UPPER))`},
		{name: "nested, in the order of the text", spec: "((build a ((build b ((from oci:b))) (from localhost/a)))\n (from c) (run (network host) (shell x)))",
			want: []string{"f:1:22: (from oci:b)" + denied + "base.local", "f:1:37: (from localhost/a)" + denied + "registry.private", "f:2:16: (network host)" + denied + "network.host"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := spec.Parse("f", []byte(tt.spec))
			if err != nil {
				t.Fatal(err)
			}
			given := func(image string) bool { return image == tt.given }
			messages := func(p *Policy) []string {
				var got []string
				for _, e := range p.Check(s, given) {
					got = append(got, e.Error())
				}
				return got
			}
			if got := messages(&Policy{}); !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
			if got := append(messages(nil), messages(&Policy{Allow: Entitlements})...); got != nil {
				t.Errorf("with everything allowed: %q", got)
			}
			// Each entitlement allows what names it, and nothing else.
			for _, e := range Entitlements {
				want := slices.DeleteFunc(slices.Clone(tt.want), func(m string) bool { return strings.HasSuffix(m, string(e)) })
				if got := messages(&Policy{Allow: []Entitlement{e}}); !slices.Equal(got, want) {
					t.Errorf("with %s allowed: got\n%s\nwant\n%s", e, strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			}
		})
	}
	if got := (&Policy{}).Check(&spec.Spec{Stage: spec.Stage{From: spec.From{Image: "oci:x"}, Ops: []spec.Op{&spec.Run{Network: []string{"host"}}}}}, nil); len(got) != 2 {
		t.Errorf("a spec that a program made: %v", got)
	}
}
