package registry

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// A PublicKey says whom to believe: an ed25519 key with a name, written NAME:BASE64 as Nix does.
type PublicKey struct {
	Name string
	key  ed25519.PublicKey
}

// ParsePublicKey reads NAME:BASE64.
func ParsePublicKey(s string) (PublicKey, error) {
	name, key, err := parseKey(s, ed25519.PublicKeySize)
	if err != nil {
		return PublicKey{}, fmt.Errorf("public key: %w", err)
	}
	return PublicKey{Name: name, key: key}, nil
}

// String is what ParsePublicKey reads.
func (k PublicKey) String() string { return k.Name + ":" + base64.StdEncoding.EncodeToString(k.key) }

// A Signer signs records.
type Signer struct {
	Name string
	key  ed25519.PrivateKey
}

// GenerateSigner makes a new key pair.
func GenerateSigner(name string) (*Signer, error) {
	if err := checkKeyName(name); err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return &Signer{Name: name, key: key}, nil
}

// ParseSigner reads the content of a secret key file: NAME:BASE64 of 64 bytes, the seed and the public key, as Nix writes them. No error
// quotes it.
func ParseSigner(data []byte) (*Signer, error) {
	name, key, err := parseKey(string(bytes.TrimSpace(data)), ed25519.PrivateKeySize)
	if err != nil {
		return nil, fmt.Errorf("secret key: %w", err)
	}
	if !bytes.Equal(key, ed25519.NewKeyFromSeed(key[:ed25519.SeedSize])) {
		return nil, errors.New("secret key: its halves do not belong together")
	}
	return &Signer{Name: name, key: key}, nil
}

// Marshal gives the content of a secret key file.
func (s *Signer) Marshal() []byte {
	return []byte(s.Name + ":" + base64.StdEncoding.EncodeToString(s.key) + "\n")
}

// Public is the other half.
func (s *Signer) Public() PublicKey {
	return PublicKey{Name: s.Name, key: s.key.Public().(ed25519.PublicKey)}
}

func parseKey(s string, size int) (name string, key []byte, err error) {
	name, text, ok := strings.Cut(s, ":")
	if !ok {
		return "", nil, errors.New("it is not NAME:BASE64")
	}
	if err := checkKeyName(name); err != nil {
		return "", nil, err
	}
	key, err = base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || strings.ContainsAny(text, "\r\n") { // which base64 skips: a key has one spelling
		return "", nil, fmt.Errorf("what follows the name %q is not base64", name)
	}
	if len(key) != size {
		return "", nil, fmt.Errorf("%q has %d bytes instead of %d", name, len(key), size)
	}
	return name, key, nil
}

// checkKeyName keeps names in one word, so that they can stand in lists and messages.
func checkKeyName(name string) error {
	bad := func(r rune) bool { return r == ':' || !unicode.IsGraphic(r) || unicode.IsSpace(r) }
	if name == "" || len(name) > 100 || strings.ContainsFunc(name, bad) {
		return errors.New("the name of a key is one word of at most 100 bytes, without a colon")
	}
	return nil
}
