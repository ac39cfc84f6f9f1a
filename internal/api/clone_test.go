package api

import (
	"context"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

// cloned asks for a clone, which nobody makes here, and returns its record; and what is shown of how its copies move.
func (c *testCluster) cloned(t *testing.T, r *pb.CloneVolumeRequest) (spec.Volume, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.clients["n1"].Snaps.CloneVolume(ctx, r); err == nil {
		t.Fatal("a clone that nobody made is ready")
	}
	rec, err := c.store.VolumeByName(context.Background(), r.Name)
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.clients["n1"].Volumes.GetVolume(context.Background(), &pb.GetVolumeRequest{Name: r.Name})
	if err != nil {
		t.Fatal(err)
	}
	return rec.Value, v.Resettling
}

func nodesOf(v spec.Volume) (nodes []string) {
	for _, m := range v.State.Columns[0].Members {
		nodes = append(nodes, m.Node)
	}
	slices.Sort(nodes)
	return nodes
}

func where(nodes ...string) *pb.Where {
	w := &pb.Where{}
	for _, n := range nodes {
		w.Topology = append(w.Topology, &pb.TopologyTerm{Segments: map[string]string{spec.TopologyNode: n}})
	}
	return w
}

// A clone is made beside its origin's copies, whatever is asked for, and its record says where they are to go.
func TestCloneElsewhere(t *testing.T) {
	c := newTestCluster(t, "n1", "n2", "n3")
	c.volume(t, "pg", 1<<30, 2)
	c.change(t, "pg", func(v *spec.Volume) { v.Limits.IOPS, v.Media = 500, spec.MediaSSD })
	origin, _ := c.store.VolumeByName(context.Background(), "pg")
	here := nodesOf(origin.Value)
	there := "n2"
	if !slices.Contains(here, "n3") {
		there = "n3"
	}

	v, text := c.cloned(t, &pb.CloneVolumeRequest{Name: "same", FromVolume: "pg"})
	var desc struct {
		Volume string
		Policy spec.Volume
	}
	if err := json.Unmarshal(v.Source.Desc, &desc); err != nil || desc.Volume != v.ID || desc.Policy.ID != v.ID || desc.Policy.Name != "same" || desc.Policy.Media != spec.MediaSSD || desc.Policy.Source == nil || desc.Policy.Source.Pending {
		t.Errorf("its copies say %s, %v", v.Source.Desc, err)
	}
	if v.Resettle || text != "" || !slices.Equal(nodesOf(v), here) || v.Media != spec.MediaSSD || v.Limits.IOPS != 500 {
		t.Errorf("a clone like its origin: %+v, %q", v, text)
	}
	v, text = c.cloned(t, &pb.CloneVolumeRequest{Name: "there", FromVolume: "pg", Where: where("n1", there), Limits: &pb.Limits{Iops: proto.Int64(700)}})
	if !v.Resettle || text != "1 of 2 copies are still to move" || !slices.Equal(nodesOf(v), here) || v.Media != "" || len(v.Topology) != 2 || v.Limits.IOPS != 700 {
		t.Errorf("a clone with a copy elsewhere: %+v, %q", v, text)
	}
	v, text = c.cloned(t, &pb.CloneVolumeRequest{Name: "fits", FromVolume: "pg", Where: where(here...)})
	if v.Resettle || text != "" || len(v.Topology) != 2 {
		t.Errorf("a clone whose copies lie right: %+v, %q", v, text)
	}
	v, text = c.cloned(t, &pb.CloneVolumeRequest{Name: "single", FromVolume: "pg", Where: where("n1"), Replicas: 1})
	if v.Resettle || text != "" || !slices.Equal(nodesOf(v), []string{"n1"}) {
		t.Errorf("a clone with fewer copies: %+v, %q", v, text)
	}

	// What keeps a copy from its place is told; and the wish can be taken back.
	c.change(t, "there", func(v *spec.Volume) { v.Topology, _ = spec.TopologyOf([]string{"n1", "n9"}, nil) })
	shown, err := c.clients["n1"].Volumes.GetVolume(context.Background(), &pb.GetVolumeRequest{Name: "there"})
	if err != nil || len(shown.Resettling) < 40 {
		t.Errorf("%q, %v", shown.Resettling, err)
	}
	up := c.clients["n1"].Upkeep
	if shown, err = up.MoveReplicas(context.Background(), &pb.MoveReplicasRequest{Name: "there", Stay: true}); err != nil || shown.Resettling != "" {
		t.Errorf("%v, %v", shown, err)
	}
	_, err = up.MoveReplicas(context.Background(), &pb.MoveReplicasRequest{Name: "there", Stay: true})
	code(t, "nothing to take back", err, connect.CodeFailedPrecondition, "there")
}

// What can't be is refused, with the rule, before anything is made.
func TestBadClones(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.volume(t, "pg", 1<<30, 2)
	for what, x := range map[string]struct {
		r     *pb.CloneVolumeRequest
		code  connect.Code
		words []string
	}{
		"a node that isn't there": {&pb.CloneVolumeRequest{Where: where("n9")}, connect.CodeResourceExhausted, []string{"volume copy", "node n1: meets no term of the topology"}},
		"too few nodes":           {&pb.CloneVolumeRequest{Where: where("n1")}, connect.CodeResourceExhausted, []string{"node n3: meets no term"}},
		"a label":                 {&pb.CloneVolumeRequest{Where: &pb.Where{NodeSelector: map[string]string{"disk": "new"}}}, connect.CodeResourceExhausted, []string{`the node selector wants "new"`}},
		"media that no pool has":  {&pb.CloneVolumeRequest{Where: &pb.Where{Media: "hdd"}}, connect.CodeResourceExhausted, []string{"media is ssd, hdd is asked for"}},
		"media that there aren't": {&pb.CloneVolumeRequest{Where: &pb.Where{Media: "tape"}}, connect.CodeInvalidArgument, []string{"media", `"tape"`, "nvme"}},
		"copies":                  {&pb.CloneVolumeRequest{Replicas: 4}, connect.CodeResourceExhausted, []string{"has a copy already"}},
		"too many copies":         {&pb.CloneVolumeRequest{Replicas: 6}, connect.CodeInvalidArgument, []string{"replicas", `"6"`, "1 to 5"}},
		"a tier":                  {&pb.CloneVolumeRequest{Placement: &pb.Placement{Tier: proto.String("top")}}, connect.CodeInvalidArgument, []string{"io-priority", `"top"`}},
	} {
		x.r.Name, x.r.FromVolume = "copy", "pg"
		limited, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := c.clients["n1"].Snaps.CloneVolume(limited, x.r)
		cancel()
		code(t, what, err, x.code, x.words...)
		if _, err := c.store.VolumeByName(ctx, "copy"); err == nil {
			t.Fatalf("%s: something was made", what)
		}
	}
	if v, err := c.store.VolumeByName(ctx, "pg"); err != nil || len(v.Value.Snapshots) > 0 {
		t.Errorf("the origin was changed: %+v, %v", v.Value.Snapshots, err)
	}
}
