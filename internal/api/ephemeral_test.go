package api

import (
	"context"
	"testing"

	"connectrpc.com/connect"

	pb "keelson.io/keelson/internal/api/keelsonv1"
)

// TestEphemeralVolume: a volume that was made for a pod can be deleted though a node that is gone has it; another one can't.
func TestEphemeralVolume(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2")
	vols := c.clients["n2"].Volumes
	for name, e := range map[string]*pb.Ephemeral{"scratch": {Node: "n1", Path: "/pods/1/mount"}, "db": nil} {
		if _, err := vols.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: name, Size: 1 << 30, Ephemeral: e}); err != nil {
			t.Fatal(err)
		}
		if _, err := vols.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: name, Node: "n1"}); err != nil {
			t.Fatal(err)
		}
	}
	v, err := vols.GetVolume(ctx, &pb.GetVolumeRequest{Name: "scratch"})
	if err != nil || v.Ephemeral.GetNode() != "n1" || v.Ephemeral.GetPath() != "/pods/1/mount" {
		t.Errorf("%v, %v", v, err)
	}
	remove := func(name string) error {
		_, err := vols.DeleteVolume(ctx, &pb.DeleteVolumeRequest{Name: name})
		return err
	}
	code(t, "delete what a living node has", remove("scratch"), connect.CodeFailedPrecondition, "n1")
	c.leases["n1"]()
	code(t, "delete what isn't ephemeral", remove("db"), connect.CodeFailedPrecondition, "n1")
	if err := remove("scratch"); err != nil {
		t.Error(err)
	}
	_, err = vols.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "bad", Size: 1 << 30, Ephemeral: &pb.Ephemeral{Node: "n1", Path: "x"}})
	code(t, "a path that is none", err, connect.CodeInvalidArgument, "ephemeral.path", "x")
}

// TestDetachFrom a node does nothing once another has the volume.
func TestDetachFrom(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2")
	vols := c.clients["n1"].Volumes
	if _, err := vols.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "pg", Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	detach := func(from string) {
		t.Helper()
		if _, err := vols.DetachVolume(ctx, &pb.DetachVolumeRequest{Name: "pg", From: from}); err != nil {
			t.Error(err)
		}
	}
	holder := func(want string) {
		t.Helper()
		if v, err := vols.GetVolume(ctx, &pb.GetVolumeRequest{Name: "pg"}); err != nil || v.Node != want {
			t.Errorf("%v, %v; want it on %q", v, err, want)
		}
	}
	detach("n1") // it is nowhere
	if _, err := vols.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "pg", Node: "n2"}); err != nil {
		t.Fatal(err)
	}
	detach("n1")
	holder("n2")
	detach("n2")
	holder("")
}
