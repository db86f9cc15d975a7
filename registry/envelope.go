package registry

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// payloadType is DSSE's name for an in-toto statement.
const payloadType = "application/vnd.in-toto+json"

// maxSignatures bounds how many signatures of an envelope are tried.
const maxSignatures = 16

// An envelope is a DSSE envelope. https://github.com/secure-systems-lab/dsse/blob/v1.0.2/envelope.md
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid"` // a hint
	Sig   []byte `json:"sig"`
}

// preAuth is what is signed: DSSE's pre-authentication encoding.
func preAuth(payloadType string, payload []byte) []byte {
	b := []byte("DSSEv1 " + strconv.Itoa(len(payloadType)) + " " + payloadType + " " + strconv.Itoa(len(payload)) + " ")
	return append(b, payload...)
}

// seal wraps a payload; s may be nil.
func seal(payload []byte, s *Signer) ([]byte, error) {
	e := envelope{PayloadType: payloadType, Payload: payload, Signatures: []signature{}}
	if s != nil {
		e.Signatures = append(e.Signatures, signature{KeyID: s.Name, Sig: ed25519.Sign(s.key, preAuth(payloadType, payload))})
	}
	return json.Marshal(e)
}

// unseal gives the payload. If trust is not empty, one of the keys must have signed it. Names of signers that stand in the envelope are hints:
// each signature is tried with each key.
func unseal(b []byte, trust []PublicKey) ([]byte, error) {
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("read the envelope: %w", err)
	}
	if e.PayloadType != payloadType {
		return nil, fmt.Errorf("read the envelope: its payload's type is %q", e.PayloadType)
	}
	if len(e.Signatures) > maxSignatures {
		return nil, fmt.Errorf("read the envelope: it has %d signatures", len(e.Signatures))
	}
	if len(trust) == 0 {
		return e.Payload, nil
	}
	signed := preAuth(e.PayloadType, e.Payload)
	for _, k := range trust {
		if slices.ContainsFunc(e.Signatures, func(s signature) bool { return ed25519.Verify(k.key, signed, s.Sig) }) {
			return e.Payload, nil
		}
	}
	if len(e.Signatures) == 0 {
		return nil, &untrustedError{errors.New("it is not signed")}
	}
	return nil, &untrustedError{fmt.Errorf("it is signed by %q, and not by a trusted key", e.Signatures[0].KeyID)}
}

// An untrustedError is about a record that may be good, but not for us.
type untrustedError struct{ err error }

func (e *untrustedError) Error() string { return e.err.Error() }
