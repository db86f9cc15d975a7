package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor/qemu/qcow2"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/repo"
)

func baseQcow2Command() *cobra.Command {
	var in inputs
	var compression string
	cmd := &cobra.Command{
		Use:   "qcow2 [flags] FILE REF",
		Short: "Publish the disk of a virtual machine as a base image",
		Long: `Publish the disk of a virtual machine, a qcow2 file, as a base image: REF is HOST/NAME:TAG, or oci:DIR:TAG. Specs build
on it with --executor qemu.

The disk must stand alone, boot by itself, and let obx in: by ssh, or by obx's agent (` + "`obx base agent`" + `). The image is one as KubeVirt's containerDisk.`,
		Example: `  obx base qcow2 debian.qcow2 registry.example/disks/debian:12
  obx run --executor qemu --qemu-ssh-key id_ed25519 --base debian=registry.example/disks/debian:12 build.sexp`,
		Args: args(2, 2, "FILE REF"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			c, err := layers.ParseCompression(compression)
			if err != nil {
				return usage("for example --compression gzip:6", "--compression: %w", err)
			}
			platform, err := parsePlatform(in.platform)
			if err != nil {
				return err
			}
			name, tag, err := images.SplitTag(args[1])
			if err != nil {
				return usage("", "%w", err)
			}
			if err := qcow2.Check(args[0]); err != nil {
				return err
			}
			in.caches = []string{noCaches}
			p, err := in.openResults(cmd)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, p.Close()) }()
			repo, err := openRepo(name, p.builder.Images.Client)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeRepo(repo)) }()
			d, err := images.PushDisk(cmd.Context(), p.builder.Store, repo, tag, platform, args[0], c)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s@%s\n", repo.Name(), d)
			return nil
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&compression, "compression", "zstd", "pack the layer by a `METHOD`: zstd, gzip or none, or one with its level as gzip:9")
	fixedValues(cmd, "compression", "zstd", "gzip", "none")
	in.add(cmd)
	return cmd
}

// A diskBase is a base image that --base NAME=qcow2:FILE makes of a file. It is kept in the store as a layout: the file's
// name, size and time say which, with the platform.
type diskBase struct {
	name     string // of the image in the spec
	file     string
	layout   string // below the store
	platform ocispec.Platform
}

const diskPrefix = "qcow2:"

func newDiskBase(name, file string, p ocispec.Platform) (*diskBase, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(abs)
	if err != nil {
		return nil, err
	}
	if err := qcow2.Check(abs); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "2\n%s\n%d\n%v\n%q\n", abs, info.Size(), info.ModTime().UTC(), []string{p.OS, p.Architecture, p.Variant, p.OSVersion}))
	return &diskBase{name, abs, filepath.Join(disksDir, fmt.Sprintf("%x", sum[:16])), p}, nil
}

// make makes the image, if it is not there, and tells how it is called. Its layer is not compressed: so its digest is the file's business alone.
func (d *diskBase) make(ctx context.Context, st *cas.Store) (ref string, err error) {
	dir, err := filepath.Abs(filepath.Join(st.Dir(), d.layout))
	if err != nil {
		return "", err
	}
	layout := "oci:" + dir
	if _, err := os.Stat(filepath.Join(dir, "index.json")); err == nil {
		now := time.Now()
		_ = os.Chtimes(dir, now, now) // a prune goes by it; it may be another user's
		return layout + ":latest", nil
	}
	repo, err := new(repo.Client).Open(layout)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, closeRepo(repo)) }()
	_, err = images.PushDisk(ctx, st, repo, "latest", d.platform, d.file, layers.Compression{Algorithm: "none"})
	return layout + ":latest", err
}
