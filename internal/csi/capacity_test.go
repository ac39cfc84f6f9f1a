package csi_test

import (
	"testing"

	pb "github.com/container-storage-interface/spec/lib/go/csi"

	"keelson.io/keelson/internal/csi"
)

// TestCapacityOfANodeThatIsGone: nothing can be used on a node without a lease, so that kube-scheduler sends no pod there for
// which a volume is still to be made; and its pools don't count for the others.
func TestCapacityOfANodeThatIsGone(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	most := func(node string) int64 {
		got, err := r.GetCapacity(t.Context(), &pb.GetCapacityRequest{AccessibleTopology: &pb.Topology{Segments: map[string]string{"topology.keelson.io/node": node}}})
		if err != nil {
			t.Fatal(err)
		}
		return got.MaximumVolumeSize.GetValue()
	}
	if most("n2") == 0 {
		t.Fatal("no capacity while all nodes are there")
	}
	r.cluster.SetNode("n2", func(n *csi.Node) { n.Alive = false })
	if most("n2") != 0 {
		t.Error("a node that is gone has capacity")
	}
	if most("n1") == 0 {
		t.Error("two nodes are left, and have none")
	}
	r.cluster.SetNode("n3", func(n *csi.Node) { n.Storage = false })
	if most("n1") != 0 || most("n3") != 0 {
		t.Error("two copies have room on one node")
	}
}
