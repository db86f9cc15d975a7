package registry_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ocurrent/obx/conformance"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry"
	"github.com/ocurrent/obx/registry/internal/repotest"
	"github.com/ocurrent/obx/registry/repo"
)

func TestCopy(t *testing.T) {
	needRoot(t)
	near, far := newSpy(), newSpy()
	a, _ := machine(t, near)
	a.Signer = signer(t, "ci")
	build := newChain(t, a.Store, "one")
	build.step("1\n")
	build.step("2\n")
	push(t, a, build.results...)
	last := build.last()
	input := build.result(fmt.Sprintf("(obx/1 run/1 (parent %s) (command input))", last.Key))
	push(t, a, &registry.Result{Key: input.Key, Alias: last.Key, Preimage: input.Preimage, Platform: last.Platform})

	from, _ := machine(t, near)
	to, _ := machine(t, far)
	to.Trust = trust(a.Signer)
	missing := keys.ID{1}
	ids := append(build.ids(), input.Key, missing)
	report, err := registry.Copy(t.Context(), from, to, ids)
	if err != nil {
		t.Fatal(err)
	}
	// The last step comes twice, by itself and by its alias.
	if report.Copied != 4 || report.Present != 1 || !slices.Equal(report.Missing, []keys.ID{missing}) || report.Sent == 0 {
		t.Errorf("copied %+v", report)
	}
	for tag, err := range near.Tags(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		_, was, _ := near.Memory.Manifest(t.Context(), tag)
		_, is, _ := far.Memory.Manifest(t.Context(), tag)
		if string(was) != string(is) {
			t.Errorf("%s is %s, was %s", tag, is, was)
		}
	}
	if found := problems(t, to); len(found) > 0 {
		t.Errorf("found %q", found)
	}
	b, warned := machine(t, far)
	b.Trust = to.Trust
	r := find(t, b, input.Key)
	if r == nil || readLog(t, b, r.Steps[0].Log) != "1\n" {
		t.Fatalf("found %+v, warned %q", r, warned.take())
	}
	fetch(t, b, r)

	// A second copy sends nothing.
	far.seen()
	again, _ := machine(t, far)
	report, err = registry.Copy(t.Context(), from, again, ids)
	if err != nil || report.Copied != 0 || report.Present != 5 || report.Sent != 0 {
		t.Errorf("copied %+v, %v", report, err)
	}
	for _, line := range far.seen() {
		if !strings.HasPrefix(line, "HEAD") {
			t.Errorf("a second copy makes the request %s", line)
		}
	}

	// What cannot be copied whole is missing, and leaves no record.
	third := newSpy()
	into, _ := machine(t, third)
	src, warned := machine(t, near)
	near.setFault(func(line string) error {
		if line == "GET "+last.Layers[2].Blob.Digest.String() {
			return fmt.Errorf("%s: %w", line, repo.ErrNotFound)
		}
		return nil
	})
	report, err = registry.Copy(t.Context(), src, into, []keys.ID{last.Key, build.results[1].Key})
	if err != nil || report.Copied != 1 || !slices.Equal(report.Missing, []keys.ID{last.Key}) || len(warned.take()) != 1 {
		t.Errorf("copied %+v, %v", report, err)
	}
	if _, err := third.Head(t.Context(), last.Key.String()+".rec"); err == nil {
		t.Error("a record without its image was copied")
	}
}

// Bytes of the right size that are wrong make a result one that cannot be copied, whatever it is copied to.
func TestCopyRotten(t *testing.T) {
	needRoot(t)
	near := newSpy()
	a, _ := machine(t, near)
	build := newChain(t, a.Store, "one")
	build.step("1\n")
	build.step("2\n")
	push(t, a, build.results...)
	last := build.last()
	rotten := last.Layers[2].Blob
	for name, to := range map[string]repo.Repo{
		"memory": new(repo.Memory), "layout": repotest.Open(t, "oci:"+t.TempDir()+"/layout"),
		"registry": repotest.Open(t, conformance.NewDebian(t).Addr+"/rotten"),
	} {
		t.Run(name, func(t *testing.T) {
			from, warned := machine(t, &changed{near, map[digest.Digest]string{rotten.Digest: strings.Repeat("x", int(rotten.Size))}})
			into, _ := machine(t, to)
			report, err := registry.Copy(t.Context(), from, into, []keys.ID{last.Key, build.results[1].Key})
			if err != nil || report.Copied != 1 || !slices.Equal(report.Missing, []keys.ID{last.Key}) || len(warned.take()) != 1 {
				t.Errorf("copied %+v, %v", report, err)
			}
		})
	}
}

// Aliases of each other lead nowhere, not round in a circle.
func TestCopyCircle(t *testing.T) {
	needRoot(t)
	near := newSpy()
	a, _ := machine(t, near)
	build := newChain(t, a.Store, "one")
	r := build.step("1\n")
	one := build.result(fmt.Sprintf("(obx/1 run/1 (parent %s) (command one))", r.Key))
	two := build.result(fmt.Sprintf("(obx/1 run/1 (parent %s) (command two))", r.Key))
	push(t, a, &registry.Result{Key: one.Key, Alias: two.Key, Preimage: one.Preimage, Platform: r.Platform},
		&registry.Result{Key: two.Key, Alias: one.Key, Preimage: two.Preimage, Platform: r.Platform})
	from, _ := machine(t, near)
	to, _ := machine(t, newSpy())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	report, err := registry.Copy(ctx, from, to, []keys.ID{one.Key, two.Key})
	if err != nil || report.Copied != 0 || len(report.Missing) != 2 {
		t.Errorf("copied %+v, %v", report, err)
	}
}
