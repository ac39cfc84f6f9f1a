package volume

import (
	"errors"
	"syscall"
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/spec"
)

// A volume that shows a snapshot refuses every change, and only changes.
func TestReadOnlyRefusesChanges(t *testing.T) {
	v := &Volume{size: 1 << 20, rec: spec.Volume{ReadOnly: &spec.ReadOnly{}}}
	for _, op := range []block.Op{block.OpRead, block.OpFlush, block.OpWrite, block.OpZero, block.OpTrim} {
		r := &block.Request{Op: op, Len: block.Size, Data: make([]byte, block.Size)}
		if err := v.check(r); errors.Is(err, syscall.EROFS) != op.Changes() {
			t.Errorf("%v: %v", op, err)
		}
	}
}
