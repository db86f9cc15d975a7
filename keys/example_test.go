package keys_test

import (
	"context"
	"fmt"
	"testing/fstest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

// pinned is a Resolver that knows one image.
type pinned digest.Digest

func (p pinned) Resolve(_ context.Context, ref string, platform ocispec.Platform) (keys.Base, error) {
	return keys.Base{Ref: ref, Digest: digest.Digest(p), Platform: platform}, nil
}

// All keys of a build are known before anything runs, and a preimage says what is in a key.
func Example() {
	plan := func(text, source string) *keys.Plan {
		s, err := spec.Parse("hello.spec", []byte(text))
		if err != nil {
			panic(err)
		}
		p, err := keys.New(context.Background(), s, keys.Options{
			Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
			Context:  fstest.MapFS{"src/hello.c": {Data: []byte(source)}},
			Resolver: pinned(digest.FromString("busybox")),
		})
		if err != nil {
			panic(err)
		}
		return p
	}
	text := `((from busybox) (run (shell "apt install gcc")) (copy (src src) (dst /src/)) (run (shell "make")))`
	was := plan(text, "int main() { return 0; }")
	now := plan(text, "int main() { return 1; }")

	fmt.Printf("%s\n", now.Stages[0].Preimage)
	for i, step := range now.Steps {
		fmt.Printf("step %d as before: %v\n", step.Number, step.Key == was.Steps[i].Key)
	}
	differences, err := keys.Diff(now.Steps[1].Preimage, was.Steps[1].Preimage)
	if err != nil {
		panic(err)
	}
	fmt.Println(differences)
	// Output:
	// (obx/1 base/1 (digest sha256:9d75f0d7c398df565d7ac04c6819b62d6d8f9560f5eb4672596ecd8f7e96ae91) (os linux) (arch amd64))
	// step 1 as before: true
	// step 2 as before: false
	// step 3 as before: false
	// [source src/hello.c: content differs]
}
