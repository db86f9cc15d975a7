package registry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/registry/repo"
)

// A changed is a spy some of whose blobs have other bytes, or none.
type changed struct {
	*spy
	bytes map[digest.Digest]string
}

func (c *changed) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	switch text, ok := c.bytes[desc.Digest]; {
	case !ok:
		return c.spy.Blob(ctx, desc)
	case text == "":
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, repo.ErrNotFound)
	case text == "error":
		return nil, errors.New("the disk is broken")
	default:
		return io.NopCloser(strings.NewReader(text)), nil
	}
}
