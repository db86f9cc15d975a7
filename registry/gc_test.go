package registry_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/registry"
)

func TestGC(t *testing.T) {
	needRoot(t)
	repo := newSpy()
	a, _ := machine(t, repo)
	old, young := newChain(t, a.Store, "old"), newChain(t, a.Store, "young")
	month := 30 * 24 * time.Hour
	ago := func(d time.Duration) {
		registry.SetClock(a, func() time.Time { return time.Now().Add(-d) })
	}
	ago(month)
	for i := range 3 {
		push(t, a, old.step(fmt.Sprintln(i)), young.step(fmt.Sprintln(i)))
	}
	// The last step alone is used, by way of an alias; another result has the domain's own image of the same bytes.
	input := young.result(fmt.Sprintf("(obx/1 run/1 (parent %s) (command input))", young.last().Key))
	push(t, a, &registry.Result{Key: input.Key, Alias: young.last().Key, Preimage: input.Preimage, Platform: input.Platform})
	twin, _ := machine(t, repo)
	twin.Store, twin.Domains = a.Store, []string{"pr-7"}
	push(t, twin, old.results[1])
	broken := strings.Repeat("b", 64)
	if _, err := repo.PutManifest(t.Context(), "latest", ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.PutManifest(t.Context(), broken+".rec", ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"x":1}`)); err != nil {
		t.Fatal(err)
	}
	b, _ := machine(t, repo)
	r := find(t, b, input.Key)
	b.Touch(t.Context(), r)

	gc, _ := machine(t, repo)
	repo.seen()
	dry, err := gc.GC(t.Context(), registry.GCOptions{OlderThan: 7 * 24 * time.Hour, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	requests := repo.seen()
	if slices.ContainsFunc(requests, func(s string) bool { return strings.HasPrefix(s, "DELETE") }) {
		t.Error("a dry run deletes")
	}
	if dry.Requests != len(requests)+1 { // listing is not seen
		t.Errorf("%d requests, says %d", len(requests), dry.Requests)
	}
	report, err := gc.GC(t.Context(), registry.GCOptions{OlderThan: 7 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	// Two old steps and the broken one go; images of the old steps but the twin's.
	if report.Kept != 5 || report.Records != 4 || report.Images != 2 || dry.Records != report.Records || dry.Images != report.Images {
		t.Errorf("dry %+v, then %+v", dry, report)
	}
	seen := repo.seen()
	lastRecord, firstImage := -1, len(seen)
	for i, line := range seen {
		if strings.HasPrefix(line, "DELETE") {
			if !strings.HasPrefix(line, "DELETE sha256:") {
				t.Errorf("%s", line)
			}
			lastRecord = max(lastRecord, i)
		}
		if strings.HasPrefix(line, "HEAD") && strings.HasSuffix(line, ".rec") {
			firstImage = min(firstImage, i)
		}
	}
	if firstImage == len(seen) || lastRecord < firstImage {
		t.Errorf("made the requests %q", seen)
	}
	var tags []string
	for tag, err := range repo.Tags(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		tags = append(tags, tag)
	}
	want := []string{"latest", input.Key.String() + ".rec", old.results[1].Key.String() + ".pr-7", old.results[1].Key.String() + ".pr-7.rec"}
	want = append(want, old.results[1].Key.String()) // the twin's image
	for _, r := range young.results[1:] {
		want = append(want, r.Key.String(), r.Key.String()+".rec")
	}
	slices.Sort(want)
	if !slices.Equal(tags, want) {
		t.Errorf("left %q, want %q", tags, want)
	}
	b, warned := machine(t, repo)
	if files := fetch(t, b, find(t, b, input.Key)); files["base"] != "young" {
		t.Errorf("got %q, warned %q", files, warned.take())
	}
	if found := problems(t, b); len(found) > 0 {
		t.Errorf("found %q", found)
	}
}

// An envelope that cannot be read just now is no reason to remove what it needs.
func TestGCWithoutAnswer(t *testing.T) {
	needRoot(t)
	repo, _, build := pushSteps(t, 400, func(int) string { return "" })
	_, b, err := repo.Manifest(t.Context(), build.last().Key.String()+".rec")
	var m ocispec.Manifest
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil || m.Config.Data != nil {
		t.Fatalf("the envelope is in the manifest: %v", err)
	}
	repo.setFault(func(line string) error {
		if line == "GET "+m.Config.Digest.String() {
			return errors.New("503")
		}
		return nil
	})
	gc, _ := machine(t, repo)
	repo.seen()
	if report, err := gc.GC(t.Context(), registry.GCOptions{OlderThan: time.Hour}); err == nil {
		t.Errorf("no error: %+v", report)
	}
	for _, line := range repo.seen() {
		if strings.HasPrefix(line, "DELETE") {
			t.Error(line)
		}
	}
}
