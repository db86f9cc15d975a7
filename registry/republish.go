package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// republish publishes a result that came from another cache, in its domain and under the envelope that it came with.
func (c *Cache) republish(ctx context.Context, r *Result) (sent int64, err error) {
	payload, err := unseal(r.Envelope, nil)
	if err != nil {
		return 0, fmt.Errorf("republish the result of %s: %w", r.Key, err)
	}
	was, err := decodePredicate(payload)
	if err != nil {
		return 0, fmt.Errorf("republish the result of %s: %w", r.Key, err)
	}
	p := &push{Cache: c, r: r, domain: was.Domain, tag: tagOf(r.Key, was.Domain)}
	if err := p.republish(ctx, was); err != nil {
		return p.sent.Load(), fmt.Errorf("republish the result of %s in %s: %w", r.Key, c.Repo.Name(), err)
	}
	return p.sent.Load(), nil
}

func (p *push) republish(ctx context.Context, was *predicate) error {
	if was.Key != p.r.Key || was.Status != statusOK {
		return errors.New("its envelope is that of another")
	}
	done, err := p.entries.Claim(ctx, p.tag)
	if err != nil {
		return err
	}
	defer done()
	if taken, err := p.taken(ctx); taken || err != nil {
		return err
	}
	pred, err := p.predicate()
	if err != nil {
		return err
	}
	image, err := p.image(ctx, pred)
	if err != nil {
		return err
	}
	logs, err := p.logs(ctx, pred)
	if err != nil {
		return err
	}
	if image.digest != was.Image.Digest.digest() {
		return fmt.Errorf("the image that can be made of it is %s, and it was %s", image.digest, was.Image.Digest.digest())
	}
	if !slices.EqualFunc(logs, was.Logs, func(l Log, ref logRef) bool { return l.Desc.Digest == ref.Digest.digest() }) {
		return errors.New("its logs are not as they were")
	}
	rec := &recordDocs{manifest: p.recordOf(was, p.r.Envelope, logs), envelope: p.r.Envelope, logs: logs}
	if p.refuses() {
		if err := rec.disguise(); err != nil {
			return err
		}
	}
	if err := p.send(ctx, slices.Concat(image.blobs, rec.blobs(ctx, p.Cache))); err != nil {
		return err
	}
	if err := p.putImage(ctx, image); err != nil {
		return err
	}
	desc, err := p.putRecord(ctx, rec)
	if err == nil {
		p.note(p.tag+recordSuffix, tagState{kind: good, digest: desc.Digest})
	}
	return err
}
