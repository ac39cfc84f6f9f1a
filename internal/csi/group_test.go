package csi_test

import (
	"testing"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Groups are made once, known by their snapshots, and deleted with all of these.
func TestGroupSnapshots(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	ctx := t.Context()
	caps, err := r.GroupControllerGetCapabilities(ctx, &pb.GroupControllerGetCapabilitiesRequest{})
	if err != nil || len(caps.Capabilities) != 1 {
		t.Errorf("%v, %v", caps, err)
	}
	for _, name := range []string{"pvc-1", "pvc-2"} {
		if _, err := r.CreateVolume(ctx, request(name, 100)); err != nil {
			t.Fatal(err)
		}
	}
	ask := &pb.CreateVolumeGroupSnapshotRequest{Name: "groupsnapshot-1", SourceVolumeIds: []string{"pvc-2", "pvc-1"},
		Parameters: map[string]string{"csi.storage.k8s.io/volumegroupsnapshot/name": "a"}}
	var ids []string
	for range 2 {
		got, err := r.CreateVolumeGroupSnapshot(ctx, ask)
		if err != nil {
			t.Fatal(err)
		}
		g := got.GroupSnapshot
		if g.GroupSnapshotId != "groupsnapshot-1" || !g.ReadyToUse || len(g.Snapshots) != 2 || g.CreationTime == nil {
			t.Errorf("%v", g)
		}
		ids = nil
		for _, s := range g.Snapshots {
			if s.GroupSnapshotId != g.GroupSnapshotId || !s.ReadyToUse {
				t.Errorf("%v", s)
			}
			ids = append(ids, s.SnapshotId)
		}
	}
	get := func(snapshots ...string) error {
		_, err := r.GetVolumeGroupSnapshot(ctx, &pb.GetVolumeGroupSnapshotRequest{GroupSnapshotId: "groupsnapshot-1", SnapshotIds: snapshots})
		return err
	}
	if err := get(ids...); err != nil {
		t.Error(err)
	}
	create := func(volumes ...string) error {
		_, err := r.CreateVolumeGroupSnapshot(ctx, &pb.CreateVolumeGroupSnapshotRequest{Name: "groupsnapshot-1", SourceVolumeIds: volumes})
		return err
	}
	_, parameter := r.CreateVolumeGroupSnapshot(ctx, &pb.CreateVolumeGroupSnapshotRequest{Name: "g", SourceVolumeIds: []string{"pvc-1"}, Parameters: map[string]string{"color": "red"}})
	_, alone := r.DeleteSnapshot(ctx, &pb.DeleteSnapshotRequest{SnapshotId: ids[0]})
	for what, x := range map[string]struct {
		err  error
		code codes.Code
		says string
	}{
		"other volumes":         {create("pvc-1"), codes.AlreadyExists, "groupsnapshot-1"},
		"no volumes":            {create(), codes.InvalidArgument, "source volume"},
		"a volume that isn't":   {create("pvc-1", "pvc-9"), codes.NotFound, "pvc-9"},
		"a parameter":           {parameter, codes.InvalidArgument, "color"},
		"a snapshot too few":    {get(ids[0]), codes.InvalidArgument, "doesn't name"},
		"another's snapshot":    {get(ids[0], "pvc-1/else"), codes.InvalidArgument, "pvc-1/else"},
		"deleting a part of it": {alone, codes.InvalidArgument, "group"},
		"a name that isn't given": {func() error {
			_, err := r.CreateVolumeGroupSnapshot(ctx, &pb.CreateVolumeGroupSnapshotRequest{})
			return err
		}(), codes.InvalidArgument, "name"},
	} {
		refused(t, what, x.err, x.code, x.says)
	}
	for range 2 {
		if _, err := r.DeleteVolumeGroupSnapshot(ctx, &pb.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: "groupsnapshot-1", SnapshotIds: ids}); err != nil {
			t.Error(err)
		}
	}
	if code := status.Code(get()); code != codes.NotFound {
		t.Errorf("deleted, it is %v", code)
	}
}
