package invariant_test

import (
	"errors"
	"testing"

	"keelson.io/keelson/internal/invariant"
)

func TestCheck(t *testing.T) {
	invariant.Check(true, "not seen")
	defer func() {
		err, ok := recover().(error)
		var v *invariant.Violation
		if !ok || !errors.As(err, &v) || v.Msg != "term 3 < 4" {
			t.Fatalf("recovered %v", err)
		}
	}()
	invariant.Check(false, "term %d < %d", 3, 4)
	t.Fatal("a false condition passed")
}
