package spec

import "time"

// ImportState is the copying of an image into a volume that isn't complete: until it is, the volume can be attached for the copying
// only. The zero value is a volume that nothing is imported into.
type ImportState struct {
	Source string `json:"source,omitempty"` // in the words of the command line
	Size   int64  `json:"size,omitempty"`   // of the image, in bytes
	// Version tells one state of the source from another; "" if it can't be told.
	Version string `json:"version,omitempty"`
	// Position is how many bytes are copied, and durable.
	Position int64     `json:"position,omitempty"`
	Begun    time.Time `json:"begun,omitzero"`
	// Clearing: what the volume had before is still being thrown away.
	Clearing bool `json:"clearing,omitempty"`
}

// Active reports whether an import isn't complete.
func (s *ImportState) Active() bool { return s.Source != "" }
