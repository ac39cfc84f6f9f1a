package api

import (
	"strings"
	"testing"
	"time"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

// TestClockSkewIsTold: a clock that is off by an hour, either way, is a problem of its node; a second is not.
func TestClockSkewIsTold(t *testing.T) {
	for skew, want := range map[time.Duration]string{
		time.Hour: "off by 1h0m0s", -time.Hour: "off by -1h0m0s", time.Second: "", 0: "",
	} {
		v := &view{
			self: "n1", alive: map[string]bool{"n2": true},
			live: map[string]*pb.NodeStatusResponse{"n2": {}}, skew: map[string]time.Duration{"n2": skew},
		}
		if got := v.nodeProblem(spec.Node{Name: "n2"}); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("skew %s: %q, want %q", skew, got, want)
		}
	}
}
