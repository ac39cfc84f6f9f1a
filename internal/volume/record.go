package volume

import (
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// Record returns the newest record that the volume has seen, or written. It must be called on the loop.
func (v *Volume) Record() meta.Versioned[spec.Volume] {
	return meta.Versioned[spec.Volume]{Value: v.rec, Rev: v.rev}
}
