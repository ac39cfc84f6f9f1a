package spec

import (
	"errors"
	"strings"
	"testing"
)

func TestEphemeral(t *testing.T) {
	for _, e := range []*Ephemeral{nil, {Node: "n1", Path: "/var/lib/kubelet/pods/1/volumes/x/mount"}} {
		if err := e.Validate(); err != nil {
			t.Errorf("%+v: %v", e, err)
		}
	}
	for _, e := range []*Ephemeral{
		{}, {Node: "N 1", Path: "/a"}, {Node: "n1"}, {Node: "n1", Path: "a/b"}, {Node: "n1", Path: "/a/../b"}, {Node: "n1", Path: "/" + strings.Repeat("a", 4095)},
	} {
		var invalid *InvalidError
		if err := e.Validate(); !errors.As(err, &invalid) || !strings.HasPrefix(invalid.Field, "ephemeral.") {
			t.Errorf("%+v: %v", e, err)
		}
	}
}
