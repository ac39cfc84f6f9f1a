package api

import (
	"context"
	"strings"
	"testing"

	"connectrpc.com/connect"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// poolOf returns the id of a node's only pool.
func (c *testCluster) poolOf(t *testing.T, node string) string {
	t.Helper()
	pools, err := c.store.Pools(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pools {
		if p.Value.Node == node {
			return p.Value.ID
		}
	}
	t.Fatalf("node %s has no pool", node)
	return ""
}

// change changes a volume's record as an engine or a reconciler would.
func (c *testCluster) change(t *testing.T, name string, fn func(*spec.Volume)) {
	t.Helper()
	rec, err := c.store.VolumeByName(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	fn(&rec.Value)
	if _, err := c.store.PutVolume(context.Background(), rec.Value, rec.Rev, meta.Cond{}); err != nil {
		t.Fatal(err)
	}
}

func (c *testCluster) volume(t *testing.T, name string, size int64, replicas int32) {
	t.Helper()
	if _, err := c.clients["n1"].Volumes.CreateVolume(context.Background(), &pb.CreateVolumeRequest{Name: name, Size: size, Replicas: replicas, Near: "n1"}); err != nil {
		t.Fatal(err)
	}
}

func TestResizeVolume(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2")
	c.volume(t, "pg", 1<<30, 2)
	up := c.clients["n1"].Upkeep
	for what, x := range map[string]struct {
		name  string
		size  int64
		code  connect.Code
		words []string
	}{
		"no volume":   {"none", 2 << 30, connect.CodeNotFound, []string{"none"}},
		"smaller":     {"pg", 1 << 29, connect.CodeInvalidArgument, []string{"size", "536870912", "1Gi", "64Ti", "can't be made smaller"}},
		"zero":        {"pg", 0, connect.CodeInvalidArgument, []string{"size", "0", "4Mi"}},
		"negative":    {"pg", -4096, connect.CodeInvalidArgument, []string{"size", "-4096"}},
		"no multiple": {"pg", 1<<30 + 1, connect.CodeInvalidArgument, []string{"4096"}},
		"too large":   {"pg", spec.MaxVolumeSize + 4096, connect.CodeInvalidArgument, []string{"64Ti"}},
		"no room":     {"pg", 1 << 40, connect.CodeResourceExhausted, []string{"pg", "1Ti", "overcommit", "90Gi"}},
	} {
		_, err := up.ResizeVolume(ctx, &pb.ResizeVolumeRequest{Name: x.name, Size: x.size})
		code(t, what, err, x.code, x.words...)
	}
	rec, _ := c.store.VolumeByName(ctx, "pg")
	if rec.Value.Growth != (spec.Growth{}) || rec.Value.Size != 1<<30 {
		t.Fatalf("something was changed: %+v", rec.Value.Growth)
	}
	for range 2 { // asked for twice, planned once
		v, err := up.ResizeVolume(ctx, &pb.ResizeVolumeRequest{Name: "pg", Size: 3 << 30})
		if err != nil || v.Size != 1<<30 || v.GrowingTo != 3<<30 {
			t.Fatalf("%v, %v", v, err)
		}
	}
	p, err := c.clients["n2"].Pools.GetPool(ctx, &pb.GetPoolRequest{Id: c.poolOf(t, "n2")})
	if err != nil || p.Provisioned != 3<<30 {
		t.Errorf("what is planned isn't promised: %v, %v", p, err)
	}
	_, err = up.ResizeVolume(ctx, &pb.ResizeVolumeRequest{Name: "pg", Size: 2 << 30})
	code(t, "smaller than planned", err, connect.CodeInvalidArgument, "3Gi")
	if _, err := c.clients["n1"].Volumes.DeleteVolume(ctx, &pb.DeleteVolumeRequest{Name: "pg"}); err != nil {
		t.Fatal(err)
	}
	_, err = up.ResizeVolume(ctx, &pb.ResizeVolumeRequest{Name: "pg", Size: 4 << 30})
	code(t, "being deleted", err, connect.CodeFailedPrecondition, "deleted")
}

// TestNoGrowthWithinRestore checks that a volume stays as large as the snapshot to which it is being restored.
func TestNoGrowthWithinRestore(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2")
	c.volume(t, "pg", 1<<30, 2)
	c.change(t, "pg", func(v *spec.Volume) { v.Restore = &spec.Restore{Snapshot: "00000000000000aa"} })
	_, err := c.clients["n1"].Upkeep.ResizeVolume(ctx, &pb.ResizeVolumeRequest{Name: "pg", Size: 2 << 30})
	code(t, "within a restore", err, connect.CodeAborted, "pg", "being restored")
	if rec, _ := c.store.VolumeByName(ctx, "pg"); rec.Value.Growth != (spec.Growth{}) {
		t.Errorf("something was changed: %+v", rec.Value.Growth)
	}
}

func TestReplicasAndMoves(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.volume(t, "pg", 1<<30, 2)
	n1 := c.clients["n1"]
	rec, _ := c.store.VolumeByName(ctx, "pg")
	other, free := rec.Value.State.Columns[0].Members[1].Node, "n3"
	if other == "n3" {
		free = "n2"
	}
	for what, x := range map[string]struct {
		n     int32
		code  connect.Code
		words []string
	}{
		"none":      {0, connect.CodeInvalidArgument, []string{"replicas", "0", "1 to 5"}},
		"negative":  {-1, connect.CodeInvalidArgument, []string{"replicas", "-1", "1 to 5"}},
		"too many":  {6, connect.CodeInvalidArgument, []string{"replicas", "6", "1 to 5"}},
		"no places": {4, connect.CodeResourceExhausted, []string{"pg", "has a copy already"}},
	} {
		_, err := n1.Volumes.SetVolume(ctx, &pb.SetVolumeRequest{Name: "pg", Replicas: &x.n})
		code(t, what, err, x.code, x.words...)
	}
	for what, x := range map[string]struct {
		from, to string
		code     connect.Code
		words    []string
	}{
		"from nowhere":     {"", "n3", connect.CodeInvalidArgument, []string{"missing"}},
		"from no node":     {"n9", "n3", connect.CodeNotFound, []string{"n9"}},
		"to no node":       {"n1", "n9", connect.CodeNotFound, []string{"n9"}},
		"no copy there":    {free, "n1", connect.CodeFailedPrecondition, []string{free, "no copy"}},
		"has one already":  {"n1", other, connect.CodeResourceExhausted, []string{"has a copy already"}},
		"to where it is":   {"n1", "n1", connect.CodeResourceExhausted, []string{"the copy that is to leave"}},
		"no volume at all": {"n1", "n3", connect.CodeNotFound, []string{"none"}},
	} {
		name := "pg"
		if what == "no volume at all" {
			name = "none"
		}
		_, err := n1.Upkeep.MoveReplicas(ctx, &pb.MoveReplicasRequest{Name: name, From: x.from, To: x.to})
		code(t, what, err, x.code, x.words...)
	}
	if again, _ := c.store.VolumeByName(ctx, "pg"); again.Rev != rec.Rev {
		t.Fatal("something was changed")
	}
	v, err := n1.Upkeep.MoveReplicas(ctx, &pb.MoveReplicasRequest{Name: "pg", From: "n1", To: c.poolOf(t, free)})
	if err != nil || len(v.Columns[0].Members) != 3 || !v.Columns[0].Members[0].Removing || v.Columns[0].Members[2].Node != free {
		t.Fatalf("%v, %v", v, err)
	}
	_, err = n1.Upkeep.MoveReplicas(ctx, &pb.MoveReplicasRequest{Name: "pg", From: other})
	code(t, "two at once", err, connect.CodeFailedPrecondition, "already")
}

func TestPoolUpkeep(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.volume(t, "pg", 1<<30, 1)
	up := c.clients["n2"].Upkeep
	id := c.poolOf(t, "n1")
	_, err := up.RemovePool(ctx, &pb.RemovePoolRequest{Id: "none"})
	code(t, "no such pool", err, connect.CodeNotFound, "none")
	_, err = up.DrainPool(ctx, &pb.DrainPoolRequest{Id: "none"})
	code(t, "no such pool", err, connect.CodeNotFound, "none")
	_, err = up.ExpandPool(ctx, &pb.ExpandPoolRequest{Id: "none"})
	code(t, "no such pool", err, connect.CodeNotFound, "none")
	_, err = up.ExpandPool(ctx, &pb.ExpandPoolRequest{Id: id, Size: -1})
	code(t, "a negative size", err, connect.CodeInvalidArgument, "-1")
	_, err = up.GetProgress(ctx, &pb.GetProgressRequest{})
	code(t, "progress of nothing", err, connect.CodeInvalidArgument)
	_, err = up.GetProgress(ctx, &pb.GetProgressRequest{Pool: "none"})
	code(t, "progress of no pool", err, connect.CodeNotFound, "none")
	_, err = up.RemovePool(ctx, &pb.RemovePoolRequest{Id: id})
	code(t, "with copies", err, connect.CodeFailedPrecondition, "pg", "pool drain")
	_, err = up.RemovePool(ctx, &pb.RemovePoolRequest{Id: id, Lost: true})
	code(t, "the last copy", err, connect.CodeFailedPrecondition, "last copy", "pg")

	if p, err := up.ExpandPool(ctx, &pb.ExpandPoolRequest{Id: id, Size: 20 << 30}); err != nil || p.Capacity != 20<<30 {
		t.Errorf("%v, %v", p, err)
	}
	if p, err := up.DrainPool(ctx, &pb.DrainPoolRequest{Id: id}); err != nil || !p.Draining {
		t.Fatalf("%v, %v", p, err)
	}
	g, err := up.GetProgress(ctx, &pb.GetProgressRequest{Pool: id})
	if err != nil || g.Done || g.Copies != 1 || len(g.Holds) > 0 {
		t.Errorf("%v, %v", g, err)
	}
	for _, n := range []string{"n2", "n3"} {
		if _, err := c.clients["n1"].Nodes.CordonNode(ctx, &pb.CordonNodeRequest{Name: n, Cordoned: true}); err != nil {
			t.Fatal(err)
		}
	}
	g, err = up.GetProgress(ctx, &pb.GetProgressRequest{Pool: id})
	if err != nil || len(g.Holds) != 1 || !g.Holds[0].Stuck || !strings.Contains(g.Holds[0].Why, "cordoned") {
		t.Errorf("a copy that can't go anywhere: %v, %v", g, err)
	}
	c.change(t, "pg", func(v *spec.Volume) {
		v.State.Columns[0].Members[0].Node, v.State.Columns[0].Members[0].Pool = "n2", c.poolOf(t, "n2")
	})
	g, err = up.GetProgress(ctx, &pb.GetProgressRequest{Pool: id})
	if err != nil || !g.Done {
		t.Errorf("%v, %v", g, err)
	}
	if _, err := up.RemovePool(ctx, &pb.RemovePoolRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	_, err = up.DrainPool(ctx, &pb.DrainPoolRequest{Id: id})
	code(t, "a pool that was removed", err, connect.CodeNotFound)
}

func TestNodeUpkeep(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.volume(t, "one", 1<<30, 1)
	c.volume(t, "two", 1<<30, 2)
	up := c.clients["n2"].Upkeep
	_, err := up.SetUpkeep(ctx, &pb.SetUpkeepRequest{Node: "n1", Upkeep: "rest"})
	code(t, "an unknown upkeep", err, connect.CodeInvalidArgument, "rest", "drain", "decommission")
	_, err = up.SetUpkeep(ctx, &pb.SetUpkeepRequest{Node: "n9", Upkeep: "drain"})
	code(t, "an unknown node", err, connect.CodeNotFound, "n9")
	_, err = up.SetUpkeep(ctx, &pb.SetUpkeepRequest{Node: "n9", Upkeep: "decommission"})
	code(t, "an unknown node", err, connect.CodeNotFound, "n9")
	_, err = up.SetUpkeep(ctx, &pb.SetUpkeepRequest{Node: "n1", Upkeep: "drain"})
	code(t, "with the only copy", err, connect.CodeFailedPrecondition, "volume one", "--replicas 2", "--force")
	if n, _ := c.store.Node(ctx, "n1"); n.Value.Upkeep != "" {
		t.Fatal("the refused drain was recorded")
	}
	rec, _ := c.store.VolumeByName(ctx, "two")
	other := rec.Value.State.Columns[0].Members[1].Node
	p, err := up.SetUpkeep(ctx, &pb.SetUpkeepRequest{Node: other, Upkeep: "drain"})
	if err != nil || !p.Done {
		t.Fatalf("%v, %v", p, err)
	}
	// The other copy of two is on a node that is being drained: it isn't one to rely on.
	p, err = up.SetUpkeep(ctx, &pb.SetUpkeepRequest{Node: "n1", Upkeep: "drain", Force: true})
	if err != nil || p.Done || len(p.Holds) != 2 || !strings.Contains(p.Holds[1].Why, other+" is being drained too") {
		t.Fatalf("%v, %v", p, err)
	}
	if _, err := up.SetUpkeep(ctx, &pb.SetUpkeepRequest{Node: other}); err != nil {
		t.Fatal(err)
	}
	if p, err = up.GetProgress(ctx, &pb.GetProgressRequest{Node: "n1"}); err != nil || len(p.Holds) != 1 || p.Holds[0].Volume != "one" {
		t.Errorf("%v, %v", p, err)
	}
	c.change(t, "two", func(v *spec.Volume) { v.State.Node, v.State.Frontend = "n1", spec.FrontendFUSE })
	if p, err = up.GetProgress(ctx, &pb.GetProgressRequest{Node: "n1"}); err != nil || len(p.Holds) != 2 || !strings.Contains(p.Holds[1].Why, "attached") {
		t.Errorf("%v, %v", p, err)
	}
	if p, err = up.SetUpkeep(ctx, &pb.SetUpkeepRequest{Node: "n1", Upkeep: "decommission"}); err != nil || p.Upkeep != "decommission" || p.Copies != 2 {
		t.Errorf("%v, %v", p, err)
	}
	n, err := c.clients["n1"].Nodes.GetNode(ctx, &pb.GetNodeRequest{Name: "n1"})
	if err != nil || n.Upkeep != "decommission" {
		t.Errorf("%v, %v", n, err)
	}
}

func TestRebalanceSettings(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1")
	set := c.clients["n1"].Cluster.SetSettings
	for _, n := range []int32{-1, 1, 4, 101} {
		_, err := set(ctx, &pb.SetSettingsRequest{Rebalance: &n})
		code(t, "rebalance", err, connect.CodeInvalidArgument, "rebalance", "5 to 100")
	}
	for _, n := range []int32{-1, 0, 17} {
		_, err := set(ctx, &pb.SetSettingsRequest{RebalanceMoves: &n})
		code(t, "rebalance-moves", err, connect.CodeInvalidArgument, "rebalance-moves", "1 to 16")
	}
	n := int32(20)
	if s, err := set(ctx, &pb.SetSettingsRequest{Rebalance: &n}); err != nil || s.Rebalance != 20 || s.RebalanceMoves != 1 {
		t.Errorf("%v, %v", s, err)
	}
}
