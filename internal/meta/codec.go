package meta

import (
	"encoding/json"
	"errors"
	"fmt"
)

// FormatVersion is the newest format of stored nouns that this Keelson reads, and the one that it writes.
const FormatVersion = 1

// ErrFormat: a stored noun can't be read, because a newer Keelson wrote it or because it's damaged.
var ErrFormat = errors.New("unreadable metadata")

// envelope is how a noun is stored.
type envelope struct {
	Version int             `json:"v"`
	Data    json.RawMessage `json:"data"`
}

// Encode returns a noun as it is stored.
func Encode(noun any) ([]byte, error) {
	data, err := json.Marshal(noun)
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	return json.Marshal(envelope{FormatVersion, data})
}

// Decode reads a stored noun. The error is an ErrFormat; what names the noun in it.
func Decode(what string, stored []byte, noun any) error {
	var e envelope
	if err := json.Unmarshal(stored, &e); err != nil {
		return fmt.Errorf("%s: %w: %v", what, ErrFormat, err)
	}
	if e.Version > FormatVersion {
		return fmt.Errorf("%s: %w: it has format %d, and this keelson knows formats up to %d: upgrade this node", what, ErrFormat, e.Version, FormatVersion)
	}
	if e.Version < 1 {
		return fmt.Errorf("%s: %w: it has no format version", what, ErrFormat)
	}
	if err := json.Unmarshal(e.Data, noun); err != nil {
		return fmt.Errorf("%s: %w: %v", what, ErrFormat, err)
	}
	return nil
}
