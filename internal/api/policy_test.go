package api

import (
	"context"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

func TestSetVolume(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2", "n3")
	vols := c.clients["n1"].Volumes
	_, err := vols.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "pg", Size: 1 << 30, Limits: &pb.Limits{Iops: proto.Int64(500)},
		Placement: &pb.Placement{Group: proto.String("g")}, TrimEvery: durationpb.New(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		r    *pb.SetVolumeRequest
		want spec.Limits
		p    spec.Placement
		trim time.Duration
	}{
		{&pb.SetVolumeRequest{}, spec.Limits{IOPS: 500}, spec.Placement{Group: "g"}, time.Hour},
		{&pb.SetVolumeRequest{Limits: &pb.Limits{WriteBandwidth: proto.Int64(1 << 20)}}, spec.Limits{IOPS: 500, WriteBandwidth: 1 << 20}, spec.Placement{Group: "g"}, time.Hour},
		{&pb.SetVolumeRequest{Limits: &pb.Limits{Iops: proto.Int64(0)}, TrimEvery: durationpb.New(0)}, spec.Limits{WriteBandwidth: 1 << 20}, spec.Placement{Group: "g"}, 0},
		{&pb.SetVolumeRequest{Placement: &pb.Placement{GroupRule: proto.String("apart"), Locality: proto.String("prefer"), Tier: proto.String("high")}},
			spec.Limits{WriteBandwidth: 1 << 20}, spec.Placement{Group: "g", GroupRule: "apart", Locality: "prefer", Tier: "high"}, 0},
		{&pb.SetVolumeRequest{Placement: &pb.Placement{Group: proto.String("")}}, // and with it the rule
			spec.Limits{WriteBandwidth: 1 << 20}, spec.Placement{Locality: "prefer", Tier: "high"}, 0},
	} {
		x.r.Name = "pg"
		v, err := vols.SetVolume(ctx, x.r)
		if err != nil {
			t.Fatalf("%v: %v", x.r, err)
		}
		rec, err := c.store.VolumeByName(ctx, "pg")
		if err != nil || rec.Value.Limits != x.want || rec.Value.Placement != x.p || rec.Value.Trim.Every != x.trim {
			t.Errorf("%v: %+v %+v %v, %v", x.r, rec.Value.Limits, rec.Value.Placement, rec.Value.Trim, err)
		}
		if v.Limits.GetIops() != x.want.IOPS || v.Limits.GetWriteBandwidth() != x.want.WriteBandwidth || v.Placement.GetLocality() != string(x.p.Locality) {
			t.Errorf("%v: shown as %v, %v", x.r, v.Limits, v.Placement)
		}
	}
	before, err := c.store.VolumeByName(ctx, "pg")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		r     *pb.SetVolumeRequest
		words string
	}{
		{&pb.SetVolumeRequest{Limits: &pb.Limits{Iops: proto.Int64(99)}}, `iops-limit "99" 100 to 100000000`},
		{&pb.SetVolumeRequest{Limits: &pb.Limits{ReadIops: proto.Int64(-1)}}, `read-iops-limit "-1"`},
		{&pb.SetVolumeRequest{Limits: &pb.Limits{WriteIops: proto.Int64(100_000_001)}}, `write-iops-limit "100000001"`},
		{&pb.SetVolumeRequest{Limits: &pb.Limits{Bandwidth: proto.Int64(1<<20 - 1)}}, `bandwidth-limit "1048575" 1Mi 512Gi`},
		{&pb.SetVolumeRequest{Limits: &pb.Limits{ReadBandwidth: proto.Int64(1)}}, `read-bandwidth-limit "1"`},
		{&pb.SetVolumeRequest{Limits: &pb.Limits{WriteBandwidth: proto.Int64(512<<30 + 1)}}, `write-bandwidth-limit`},
		{&pb.SetVolumeRequest{Placement: &pb.Placement{Tier: proto.String("top")}}, `io-priority "top" high, medium or low`},
		{&pb.SetVolumeRequest{Placement: &pb.Placement{Group: proto.String("a b")}}, `group "a b" letters`},
		{&pb.SetVolumeRequest{Placement: &pb.Placement{GroupRule: proto.String("apart")}}, `group-rule "apart" group`},
		{&pb.SetVolumeRequest{Placement: &pb.Placement{Group: proto.String("g"), GroupRule: proto.String("near")}}, `group-rule "near" prefer-apart`},
		{&pb.SetVolumeRequest{Placement: &pb.Placement{Locality: proto.String("on")}}, `locality "on" off, prefer or require`},
		{&pb.SetVolumeRequest{TrimEvery: durationpb.New(time.Minute)}, `auto-fstrim "1m0s" 1h`},
	} {
		x.r.Name = "pg"
		_, err := vols.SetVolume(ctx, x.r)
		code(t, x.r.String(), err, connect.CodeInvalidArgument, strings.Fields(x.words)...)
	}
	_, err = vols.SetVolume(ctx, &pb.SetVolumeRequest{Name: "none"})
	code(t, "an unknown volume", err, connect.CodeNotFound, "none")
	if after, err := c.store.VolumeByName(ctx, "pg"); err != nil || after.Rev != before.Rev {
		t.Errorf("refused changes changed it: %+v, %v", after, err)
	}
}

func TestRecordImport(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2")
	vols := c.clients["n1"].Volumes
	image := func(source, version string, pos int64) *pb.Import {
		return &pb.Import{Source: source, Size: 1 << 20, Version: version, Position: pos}
	}
	record := func(i *pb.Import, restart bool) error {
		_, err := vols.RecordImport(ctx, &pb.RecordImportRequest{Name: "pg", Import: i, Restart: restart})
		return err
	}
	v, err := vols.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "pg", Size: 1 << 30, Import: image("/a", "1", 0)})
	if err != nil || v.Health == Healthy || !strings.Contains(v.Condition, "/a") {
		t.Fatalf("%v, %v", v, err)
	}
	_, err = vols.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "pg"})
	code(t, "attached before it is complete", err, connect.CodeFailedPrecondition, "isn't complete", "keelson volume import pg --from /a")
	if _, err := vols.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "pg", Importing: true, Frontend: spec.FrontendNBD}); err != nil {
		t.Fatal(err)
	}
	if err := record(image("/a", "1", 4096), false); err != nil {
		t.Fatal(err)
	}
	code(t, "another source", record(image("/b", "1", 0), false), connect.CodeFailedPrecondition, "/a", "/b", "--overwrite")
	code(t, "it has changed", record(image("/a", "2", 0), false), connect.CodeFailedPrecondition, "changed")
	code(t, "behind the end", record(image("/a", "1", 1<<20+1), false), connect.CodeInvalidArgument)
	code(t, "no source", record(image("", "1", 0), false), connect.CodeInvalidArgument)
	code(t, "too large", record(&pb.Import{Source: "/a", Size: 2 << 30}, true), connect.CodeInvalidArgument, "size", "2Gi")
	if err := record(image("/b", "1", 0), true); err != nil {
		t.Fatal(err)
	}
	if err := record(nil, false); err != nil {
		t.Fatal(err)
	}
	if v, err := vols.GetVolume(ctx, &pb.GetVolumeRequest{Name: "pg"}); err != nil || v.Import != nil {
		t.Errorf("complete: %v, %v", v, err)
	}
	code(t, "over data", record(image("/b", "1", 0), false), connect.CodeFailedPrecondition, "has data", "--overwrite")

	if _, err := vols.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "fresh", Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	if _, err := vols.RecordImport(ctx, &pb.RecordImportRequest{Name: "fresh", Import: image("/a", "1", 0)}); err != nil {
		t.Errorf("into a volume that nobody wrote to: %v", err)
	}
}

func TestLocalityRequired(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2")
	_, err := c.clients["n1"].Volumes.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "pg", Size: 1 << 30, Replicas: 1, Near: "n1",
		Placement: &pb.Placement{Locality: proto.String("require")}})
	if err != nil {
		t.Fatal(err)
	}
	n2, err := c.store.Node(ctx, "n2")
	if err != nil {
		t.Fatal(err)
	}
	n2.Value.Cordoned = true
	if _, err := c.store.PutNode(ctx, n2.Value, n2.Rev); err != nil {
		t.Fatal(err)
	}
	_, err = c.clients["n1"].Volumes.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "pg", Node: "n2"})
	code(t, "no copy can be there", err, connect.CodeFailedPrecondition, "n2", "requires a copy", "is cordoned")
	if _, err := c.clients["n1"].Volumes.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "pg"}); err != nil {
		t.Errorf("where its copy is: %v", err)
	}
	if _, err := c.clients["n1"].Volumes.RecordTrim(ctx, &pb.RecordTrimRequest{Name: "pg", Bytes: 7}); err != nil {
		t.Fatal(err)
	}
	rec, err := c.store.VolumeByName(ctx, "pg")
	if err != nil || rec.Value.Trim.Bytes != 7 || rec.Value.Trim.Node != "n1" || rec.Value.Trim.Last.IsZero() {
		t.Errorf("%+v, %v", rec.Value.Trim, err)
	}
}
