package csi_test

import (
	"maps"
	"testing"

	pb "github.com/container-storage-interface/spec/lib/go/csi"

	"keelson.io/keelson/internal/spec"
)

// A volume of a claim with a dataSource is placed, and limited, as its class says, and not as its origin is; its number of copies is its origin's if
// the class says none.
func TestCloneIsWhatTheClassAsksFor(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	origin := request("pvc-origin", 100)
	origin.Parameters = map[string]string{"replicas": "1", "media": "ssd", "iopsLimit": "500", "ioPriority": "high"}
	r.make(origin)
	clone := request("pvc-elsewhere", 100)
	clone.VolumeContentSource = &pb.VolumeContentSource{Type: &pb.VolumeContentSource_Volume{Volume: &pb.VolumeContentSource_VolumeSource{VolumeId: "pvc-origin"}}}
	clone.Parameters = map[string]string{"media": "hdd", "zoneSpread": "true", "nodeSelector": "disk=slow"}
	r.make(clone)
	r.make(clone) // asked for again
	v, err := r.cluster.At("n1").Volume(t.Context(), "pvc-elsewhere")
	if err != nil || v.Media != "hdd" || !v.ZoneSpread || !maps.Equal(v.NodeSelector, map[string]string{"disk": "slow"}) || v.Replicas != 1 || v.Limits != (spec.Limits{}) || v.Placement != (spec.Placement{}) {
		t.Errorf("%+v, %v", v, err)
	}
}
