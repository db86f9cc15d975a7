package registry

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/registry/internal/oci"
)

// The wire format, see FORMAT.md.
const (
	recordVersion   = 1
	recordFormat    = "obx.record/"
	statementType   = "https://in-toto.io/Statement/v1"
	predicateType   = "https://github.com/ocurrent/obx/record"
	mediaTypeRecord = "application/vnd.obx.record.v1+json"
	mediaTypeLog    = "application/vnd.obx.log.v1+zstd"

	annotationKey  = "dev.obx.key"
	annotationUsed = "dev.obx.used"

	defaultDomain = "default"
	recordSuffix  = ".rec"
)

// Bounds. What exceeds one is never written and not believed.
const (
	maxImageLayers = 120      // docker and overlayfs end at 125 to 127
	maxPreimage    = 16 << 10 // of what is published; larger ones are collapsed where they can be
	maxText        = 200      // bytes of an operation's heading, a history entry, a builder's name
	maxSize        = 1 << 50  // of any blob: sums of sizes cannot overflow
	inlineEnvelope = 32 << 10 // a larger envelope is not repeated in the manifest
	inlineLogs     = 64 << 10 // bytes of logs in one manifest
	inlineLayer    = 1 << 10  // bytes of a layer that is repeated in the manifest
	inlineLayers   = 8 << 10  // bytes of all those in one manifest
	maxRecordBytes = oci.MaxDocument
)

// The status of a record.
const (
	statusOK     = "ok"
	statusFailed = "failed"
	statusAlias  = "alias"
)

type statement struct {
	Type          string    `json:"_type"`
	Subject       []subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     predicate `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// A predicate is what a record says. Lists are written as tuples: with hundreds of steps, names of fields would be most of it.
type predicate struct {
	Format   string           `json:"format"`
	Key      keys.ID          `json:"key"`
	Preimage string           `json:"preimage"`
	Parent   keys.ID          `json:"parent,omitzero"`
	Platform ocispec.Platform `json:"platform"`
	Domain   string           `json:"domain"`
	Status   string           `json:"status"`
	Exit     int              `json:"exit,omitempty"`
	Alias    keys.ID          `json:"alias,omitzero"`
	Image    *blobRef         `json:"image,omitempty"`
	Config   *blobRef         `json:"config,omitempty"`
	Layers   []layerRef       `json:"layers,omitempty"`
	Base     int              `json:"base,omitempty"`
	Steps    []stepRef        `json:"steps,omitempty"`
	Others   []stepRef        `json:"others,omitempty"`
	Logs     []logRef         `json:"logs,omitempty"`
	Builder  string           `json:"builder,omitempty"`
	Started  time.Time        `json:"started,omitzero"`
	Took     int64            `json:"took,omitempty"` // milliseconds
}

// MaxExit is the largest exit status of a failure that is shared. Shells end with more when a signal has ended what they ran, and that may
// be other the next time.
const MaxExit = 128

// finished is when the result was made.
func (p *predicate) finished() time.Time {
	return p.Started.Add(time.Duration(p.Took) * time.Millisecond)
}

// A sum is a SHA-256, written as 43 characters of unpadded base64url: two thirds of what hexadecimal digits take.
type sum [sha256.Size]byte

func sumOf(d digest.Digest) (s sum, err error) {
	if err := oci.CheckDigest(d); err != nil {
		return s, err
	}
	_, err = hex.Decode(s[:], []byte(d.Encoded()))
	return s, err
}

func (s sum) digest() digest.Digest { return digest.NewDigestFromBytes(digest.SHA256, s[:]) }

func (s sum) MarshalText() ([]byte, error) {
	return base64.RawURLEncoding.AppendEncode(nil, s[:]), nil
}

func (s *sum) UnmarshalText(b []byte) error {
	if base64.RawURLEncoding.DecodedLen(len(b)) != len(s) {
		return fmt.Errorf("%d characters are no SHA-256", len(b))
	}
	_, err := base64.RawURLEncoding.Strict().Decode(s[:], b)
	return err
}

// A blobRef is [digest, size].
type blobRef struct {
	Digest sum
	Size   int64
}

func (r blobRef) MarshalJSON() ([]byte, error)  { return json.Marshal([]any{r.Digest, r.Size}) }
func (r *blobRef) UnmarshalJSON(b []byte) error { return untuple(b, 2, &r.Digest, &r.Size) }

// A layerRef is [digest, size, diff id, unpacked size, compression], and the number of the steps' layers it was merged from if that is not 1.
type layerRef struct {
	blobRef
	DiffID      sum
	Unpacked    int64 // 0 if unknown
	Compression string
	Members     int
}

func (r layerRef) MarshalJSON() ([]byte, error) {
	t := []any{r.Digest, r.Size, r.DiffID, r.Unpacked, r.Compression}
	if r.Members != 1 {
		t = append(t, r.Members)
	}
	return json.Marshal(t)
}

func (r *layerRef) UnmarshalJSON(b []byte) error {
	r.Members = 1
	return untuple(b, 5, &r.Digest, &r.Size, &r.DiffID, &r.Unpacked, &r.Compression, &r.Members)
}

// A stepRef is [key, heading, layers, milliseconds, log], and the input key if that is another. log counts from 0 in logs, -1 is an empty one.
type stepRef struct {
	Key    sum
	Op     string
	Layers int
	Took   int64
	Log    int
	Input  sum
}

func (r stepRef) MarshalJSON() ([]byte, error) {
	t := []any{r.Key, r.Op, r.Layers, r.Took, r.Log}
	if r.Input != (sum{}) {
		t = append(t, r.Input)
	}
	return json.Marshal(t)
}

func (r *stepRef) UnmarshalJSON(b []byte) error {
	return untuple(b, 5, &r.Key, &r.Op, &r.Layers, &r.Took, &r.Log, &r.Input)
}

// A logRef is [digest, size, unpacked size].
type logRef struct {
	blobRef
	Unpacked int64
}

func (r logRef) MarshalJSON() ([]byte, error) {
	return json.Marshal([]any{r.Digest, r.Size, r.Unpacked})
}

func (r *logRef) UnmarshalJSON(b []byte) error { return untuple(b, 3, &r.Digest, &r.Size, &r.Unpacked) }

// untuple reads a JSON array of at least min elements; to has a pointer for each that there may be.
func untuple(b []byte, min int, to ...any) error {
	var raw []json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	if len(raw) < min || len(raw) > len(to) {
		return fmt.Errorf("a tuple of %d elements, %d to %d were expected", len(raw), min, len(to))
	}
	for i, e := range raw {
		if bytes.Equal(e, []byte("null")) {
			return fmt.Errorf("element %d of a tuple is null", i)
		}
		if err := json.Unmarshal(e, to[i]); err != nil {
			return err
		}
	}
	return nil
}

// encode gives the payload of an envelope: the statement of a predicate.
func (p *predicate) encode() ([]byte, error) {
	return json.Marshal(statement{
		Type:          statementType,
		Subject:       []subject{{Name: p.Key.String(), Digest: map[string]string{"sha256": p.subject()}}},
		PredicateType: predicateType,
		Predicate:     *p,
	})
}

// subject is the hash of what the statement is about: the image; without one the preimage, whose hash is the key.
func (p *predicate) subject() string {
	if p.Image == nil {
		return p.Key.String()
	}
	return p.Image.Digest.digest().Encoded()
}

// errNewer says that a record is of a format that is yet to come.
var errNewer = errors.New("its format is newer than this program")

// decodePredicate reads a payload, and believes no more than is consistent and bounded.
func decodePredicate(payload []byte) (*predicate, error) {
	// What the format is decides how the rest is read.
	var head struct {
		Type          string `json:"_type"`
		PredicateType string `json:"predicateType"`
		Predicate     struct {
			Format string `json:"format"`
		} `json:"predicate"`
	}
	if err := json.Unmarshal(payload, &head); err != nil {
		return nil, fmt.Errorf("read the statement: %w", err)
	}
	if head.Type != statementType || head.PredicateType != predicateType {
		return nil, fmt.Errorf("it is a statement %q about %q", head.Type, head.PredicateType)
	}
	version, err := strconv.Atoi(strings.TrimPrefix(head.Predicate.Format, recordFormat))
	switch {
	case err != nil || version < recordVersion || !strings.HasPrefix(head.Predicate.Format, recordFormat):
		return nil, fmt.Errorf("its format %q is unknown", head.Predicate.Format)
	case version > recordVersion:
		return nil, fmt.Errorf("%w: %q", errNewer, head.Predicate.Format)
	}
	var s statement
	if err := json.Unmarshal(payload, &s); err != nil {
		return nil, fmt.Errorf("read the statement: %w", err)
	}
	p := &s.Predicate
	if err := p.check(); err != nil {
		return nil, err
	}
	if len(s.Subject) != 1 || s.Subject[0].Name != p.Key.String() || s.Subject[0].Digest["sha256"] != p.subject() {
		return nil, errors.New("its subject is not what it describes")
	}
	return p, nil
}

// check holds a predicate against itself.
func (p *predicate) check() error {
	id, err := keys.Sum([]byte(p.Preimage))
	if err != nil {
		return fmt.Errorf("its preimage: %w", err)
	}
	if id != p.Key {
		return fmt.Errorf("its preimage gives the key %s", id)
	}
	if parent, _, err := keys.Parent([]byte(p.Preimage)); err != nil || parent != p.Parent {
		return errors.New("its preimage names another parent")
	}
	if p.Domain == "" || !isText(p.Domain) || !isText(p.Builder) {
		return errors.New("it has a domain or builder that is no name")
	}
	if p.Took < 0 || p.Took > int64(time.Duration(1<<63-1)/time.Millisecond) {
		return errors.New("it took no time that there is")
	}
	switch p.Status {
	case statusOK:
		err = p.checkImage()
	case statusFailed:
		if p.Exit < 1 || p.Exit > MaxExit || !p.Alias.IsZero() || p.hasImage() {
			err = errors.New("it is no failure, but says so")
		}
	case statusAlias:
		if p.Alias.IsZero() || p.Alias == p.Key || p.Exit != 0 || p.hasImage() || len(p.Steps)+len(p.Others)+len(p.Logs) > 0 {
			err = errors.New("it is no alias, but says so")
		}
	default:
		err = fmt.Errorf("its status %q is unknown", p.Status)
	}
	if err != nil {
		return err
	}
	return p.checkSteps()
}

func (p *predicate) hasImage() bool {
	return p.Image != nil || p.Config != nil || len(p.Layers) > 0 || p.Base != 0
}

func (p *predicate) checkImage() error {
	if p.Exit != 0 || !p.Alias.IsZero() {
		return errors.New("it is ok, and is not")
	}
	for _, r := range []*blobRef{p.Image, p.Config} {
		if r == nil || r.Size <= 0 || r.Size > oci.MaxDocument {
			return errors.New("it has no image, or one of a size that cannot be")
		}
	}
	if len(p.Layers) > maxImageLayers || p.Base < 0 || p.Base > len(p.Layers) {
		return fmt.Errorf("it has %d layers, %d of them the base's", len(p.Layers), p.Base)
	}
	diffIDs := make(map[sum]sum)
	for i, l := range p.Layers {
		if l.Size <= 0 || l.Size > maxSize || l.Unpacked < 0 || l.Unpacked > maxSize || l.Members < 1 || l.Members > maxSize {
			return fmt.Errorf("layer %d has a size that cannot be", i+1)
		}
		if _, err := layerType(l.Compression); err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
		if was, ok := diffIDs[l.Digest]; ok && was != l.DiffID {
			return fmt.Errorf("layer %d has the bytes of another, but not its diff id", i+1)
		}
		diffIDs[l.Digest] = l.DiffID
	}
	return nil
}

func (p *predicate) checkSteps() error {
	for i, l := range p.Logs {
		if l.Size <= 0 || l.Size > maxSize || l.Unpacked <= 0 || l.Unpacked > maxSize {
			return fmt.Errorf("log %d has a size that cannot be", i+1)
		}
	}
	for _, s := range slices.Concat(p.Others, p.Steps) {
		if s.Key == (sum{}) || s.Took < 0 || s.Log < -1 || s.Log >= len(p.Logs) || !isText(s.Op) {
			return fmt.Errorf("its step %q cannot be", s.Op)
		}
	}
	last := p.Base
	for _, s := range p.Steps {
		if s.Layers == -1 {
			continue
		}
		if s.Layers < last || s.Layers > len(p.Layers) {
			return fmt.Errorf("its step %q has %d of %d layers", s.Op, s.Layers, len(p.Layers))
		}
		last = s.Layers
	}
	for _, s := range p.Others {
		if s.Layers != -1 {
			return fmt.Errorf("its step %q is of another stage, but has %d layers", s.Op, s.Layers)
		}
	}
	n := len(p.Steps)
	if n == 0 && p.Status == statusOK && !p.Parent.IsZero() { // a base image alone is made by none
		return errors.New("it has no steps")
	}
	if n > 0 {
		if p.Steps[n-1].Key != sum(p.Key) {
			return errors.New("its last step has another key")
		}
		if p.Status == statusOK && p.Steps[n-1].Layers != len(p.Layers) {
			return errors.New("its last step has not all layers")
		}
	}
	return nil
}

// isText reports what can be shown on one line.
func isText(s string) bool {
	return len(s) <= maxText && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// text makes one line of at most maxText bytes.
func text(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) <= maxText {
		return s
	}
	const dots = "…"
	n := maxText - len(dots)
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + dots
}

// layerType gives the media type of a compression as records name it.
func layerType(compression string) (string, error) {
	switch compression {
	case "none":
		return ocispec.MediaTypeImageLayer, nil
	case "gzip":
		return ocispec.MediaTypeImageLayerGzip, nil
	case "zstd":
		return ocispec.MediaTypeImageLayerZstd, nil
	}
	return "", fmt.Errorf("its compression %q is unknown", compression)
}

// layerCompression is layerType's inverse, for Docker's types too.
func layerCompression(mediaType string) (string, error) {
	t, err := oci.LayerType(mediaType)
	switch t {
	case ocispec.MediaTypeImageLayer:
		return "none", err
	case ocispec.MediaTypeImageLayerGzip:
		return "gzip", err
	}
	return "zstd", err
}

// A record is a record as it was found, and believed.
type record struct {
	*predicate
	tag      string
	digest   digest.Digest // of the manifest
	manifest []byte
	config   ocispec.Descriptor // the envelope's; without data
	envelope []byte
	looked   bool                     // for its image under its tag, by who has fetched it
	astray   bool                     // the image was not there
	logs     []ocispec.Descriptor     // one for each of predicate.Logs, with its data if that was inlined and is right
	inlined  map[digest.Digest][]byte // what the manifest has, and says that it is
}

// A recordManifest is the manifest of a record.
type recordManifest struct {
	specs.Versioned
	MediaType   string               `json:"mediaType"`
	Config      ocispec.Descriptor   `json:"config"`
	Layers      []ocispec.Descriptor `json:"layers"`
	Annotations map[string]string    `json:"annotations,omitempty"`
}

// decodeRecordManifest reads what stands outside the envelope: hints.
func decodeRecordManifest(b []byte) (*recordManifest, error) {
	var m recordManifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("read the record's manifest: %w", err)
	}
	if m.SchemaVersion != 2 || m.MediaType != "" && m.MediaType != ocispec.MediaTypeImageManifest {
		return nil, fmt.Errorf("it is no record: its media type is %q", m.MediaType)
	}
	// The second is what registries get that refuse the first.
	if t := m.Config.MediaType; t != mediaTypeRecord && t != ocispec.MediaTypeImageConfig {
		return nil, fmt.Errorf("it is no record: its config's type is %q", t)
	}
	if err := oci.CheckDescriptor(m.Config); err != nil {
		return nil, err
	}
	if m.Config.Size > maxRecordBytes {
		return nil, fmt.Errorf("its envelope has %d bytes", m.Config.Size)
	}
	return &m, nil
}

// openRecord believes an envelope. Data of logs and layers is taken from the manifest if it is what the envelope says.
func openRecord(m *recordManifest, envelope []byte, trust []PublicKey) (*record, error) {
	if int64(len(envelope)) != m.Config.Size {
		return nil, fmt.Errorf("its envelope has %d bytes instead of %d", len(envelope), m.Config.Size)
	}
	if err := oci.CheckBytes(envelope, m.Config.Digest); err != nil {
		return nil, err
	}
	payload, err := unseal(envelope, trust)
	if err != nil {
		return nil, err
	}
	p, err := decodePredicate(payload)
	if err != nil {
		return nil, err
	}
	r := &record{predicate: p, config: m.Config, envelope: envelope}
	r.config.Data = nil
	r.inlined = make(map[digest.Digest][]byte)
	for _, l := range m.Layers {
		if l.Data != nil {
			r.inlined[l.Digest] = l.Data
		}
	}
	for _, l := range p.Logs {
		desc := ocispec.Descriptor{MediaType: mediaTypeLog, Digest: l.Digest.digest(), Size: l.Size}
		desc.Data = r.data(desc)
		r.logs = append(r.logs, desc)
	}
	return r, nil
}

// data gives the bytes of a blob if the manifest has them, and they are the right ones.
func (r *record) data(desc ocispec.Descriptor) []byte {
	data, ok := r.inlined[desc.Digest]
	if !ok || int64(len(data)) != desc.Size || digest.FromBytes(data) != desc.Digest {
		return nil
	}
	return data
}

// descriptor gives a blob its type.
func (r blobRef) descriptor(mediaType string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: r.Digest.digest(), Size: r.Size}
}

// layer gives a layer's bytes their type.
func (r layerRef) layer() ocispec.Descriptor {
	mediaType, _ := layerType(r.Compression) // was checked
	return r.descriptor(mediaType)
}

// tagOf is the tag of a key's image; its record's has recordSuffix behind it. Domains whose names could not stand in a tag, or would be
// mistaken for something else there, are hashed: the record has the name.
func tagOf(id keys.ID, domain string) string {
	if domain == defaultDomain {
		return id.String()
	}
	return id.String() + "." + domainTag(domain)
}

func domainTag(domain string) string {
	plain := func(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' }
	if len(domain) <= 48 && domain != "" && domain != "rec" && !strings.HasPrefix(domain, "x-") &&
		!strings.ContainsFunc(domain, func(r rune) bool { return !plain(r) }) {
		return domain
	}
	return "x-" + digest.FromString(domain).Encoded()[:32]
}

// parseTag is tagOf's inverse, as far as that goes. domain is as in the tag.
func parseTag(tag string) (id keys.ID, domain string, isRecord, ok bool) {
	tag, isRecord = strings.CutSuffix(tag, recordSuffix)
	key, domain, found := strings.Cut(tag, ".")
	id, err := keys.ParseID(key)
	if !found {
		domain = defaultDomain
	}
	return id, domain, isRecord, err == nil && domain != "" && !strings.Contains(domain, ".")
}
