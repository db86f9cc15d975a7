package keys

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// An ID is the key of a base or of a step: the SHA-256 of its preimage with all directories collapsed. It never
// shares a type with the digest of content, so that the two cannot be swapped.
type ID [sha256.Size]byte

// String gives 64 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports the ID of nothing.
func (id ID) IsZero() bool { return id == ID{} }

// ParseID reads what String gives. Upper-case digits are refused: a key has one spelling.
func ParseID(s string) (ID, error) {
	var id ID
	if !isHex(s) {
		return ID{}, fmt.Errorf("%q is no key: it must be 64 lower-case hexadecimal digits", s)
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, err
	}
	return id, nil
}

// MarshalText is String, for JSON.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is ParseID, for JSON.
func (id *ID) UnmarshalText(b []byte) error {
	v, err := ParseID(string(b))
	if err == nil {
		*id = v
	}
	return err
}

// isHex reports a SHA-256 in its one spelling.
func isHex(s string) bool {
	if len(s) != 2*sha256.Size {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
