package spec

import (
	"crypto/rand"
	"encoding/hex"
)

// idBytes is the length of an id before it is written in hex.
const idBytes = 8

// NewID returns a new random id: 16 hex digits.
func NewID() string {
	var b [idBytes]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// ValidateID checks that s is an id: 16 lower-case hex digits. The error is an *InvalidError.
func ValidateID(field, s string) error {
	if len(s) == 2*idBytes && isHex(s) {
		return nil
	}
	return &InvalidError{Field: field, Value: s, Legal: "16 hex digits"}
}

func isHex(s string) bool {
	for _, r := range s {
		if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
			return false
		}
	}
	return true
}
