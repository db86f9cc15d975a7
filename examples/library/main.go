// Command library builds a spec with obx as a library. The page docs/library.md explains it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"runtime"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/cas"
	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/executor/overlay"
	"github.com/ocurrent/obx/executor/rootless"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
	"github.com/ocurrent/obx/layers"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/images"
	"github.com/ocurrent/obx/registry/repo"
)

// storeMount is the variable by which the program, as an ordinary user, tells itself where its store is mounted.
const storeMount = "LIBRARY_STORE_MOUNT"

func main() {
	// The overlay executor starts this same program again, as the supervisor of its sandboxes. So this comes first.
	if overlay.IsSupervisor() {
		overlay.Supervise(nil)
		return
	}
	storeDir := flag.String("store", "store", "keep results in `DIR`")
	cache := flag.String("cache", "", "share results through `REPO`: registry.example/cache, oci:DIR or FILE.tar")
	output := flag.String("output", "result.tar", "write the files of the result to `FILE`")
	flag.Parse()
	if flag.NArg() != 2 {
		log.Fatal("usage: library [-store DIR] [-cache REPO] [-output FILE] SPEC DIR")
	}
	// For an ordinary user, this executes the program once more, as root of a user namespace. For root it does nothing.
	if err := rootless.Enter(storeMount + "=" + cas.MountOf(*storeDir)); err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *storeDir, *cache, *output, flag.Arg(0), flag.Arg(1)); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, storeDir, cache, output, specFile, dir string) error {
	// The spec: read, and checked for what runs on Linux. Mistakes are a spec.ErrorList, with their places.
	text, err := os.ReadFile(specFile)
	if err != nil {
		return err
	}
	s, err := spec.Parse(specFile, text)
	if err != nil {
		return err
	}
	if err := s.Check("linux"); err != nil {
		return err
	}

	// The store of this machine, and what finds base images.
	store, err := cas.OpenOn(storeDir, os.Getenv(storeMount))
	if err != nil {
		return err
	}
	defer store.Close()
	client := &repo.Client{UserAgent: "library-example"}
	resolver := &images.Resolver{Store: store, Client: client}

	// The plan: all keys of the build. Base images are resolved to digests, and the sources of copies are hashed.
	source, err := layers.DirTree(dir)
	if err != nil {
		return err
	}
	defer source.Close()
	platform := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	plan, err := keys.New(ctx, s, keys.Options{Platform: platform, Context: source, Resolver: resolver})
	if err != nil {
		return err
	}

	// The builder looks results up, has missing steps run, and keeps what they give.
	sandboxes, err := overlay.New(overlay.Options{Store: store, Warn: func(msg string) { log.Print(msg) }})
	if err != nil {
		return err
	}
	defer sandboxes.Close()
	b := &build.Builder{
		Store:    store,
		Executor: sandboxes,
		Images:   resolver,
		Source:   source,
		Limits:   executor.Limits{Timeout: time.Hour},
		Secrets:  map[string]build.Secret{"token": func() ([]byte, error) { return []byte("only a step that asks for it sees this"), nil }},
		Events:   show,

		NeedFiles: true, // for Write, below
	}
	if cache != "" {
		shared, err := client.Open(cache)
		if err != nil {
			return err
		}
		if c, ok := shared.(io.Closer); ok { // of files, not of a registry: Close writes their index
			defer c.Close()
		}
		b.Caches = []*registry.Cache{{Repo: shared, Store: store, Platform: platform, Warn: func(msg string) { log.Print(msg) }}}
	}
	report, err := b.Run(ctx, plan)
	if failed := new(build.StepError); errors.As(err, &failed) {
		return fmt.Errorf("%s:%d: the step failed: %w", specFile, failed.Step.Op.Position().Line, failed.Err)
	}
	if err != nil {
		return err
	}
	fmt.Printf("%.12s: %d steps known, %d run\n", report.Key, report.Hits, report.Runs)

	// The result's files, as a tar.
	written, err := b.Write(ctx, plan, report, build.OutputSpec{Type: "tar", Dest: output}, os.Stdout)
	if err != nil {
		return err
	}
	fmt.Printf("wrote %s, %d bytes\n", written.Where, written.Size)
	return nil
}

// show prints what happens. Events come one at a time.
func show(e build.Event) {
	switch e.Kind {
	case build.OpOpen:
		fmt.Println(spec.HeadingIn(e.Workdir, e.Op))
	case build.Output:
		os.Stdout.Write(e.Data)
	case build.Warned:
		log.Print("warning: ", e.Message)
	}
}
