package api

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

func TestScrubVolume(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2")
	vols := c.clients["n1"].Volumes
	if _, err := vols.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "pg", Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	do := func(action string, more ...func(*pb.ScrubVolumeRequest)) (*pb.Volume, error) {
		r := &pb.ScrubVolumeRequest{Name: "pg", Action: action}
		for _, m := range more {
			m(r)
		}
		return vols.ScrubVolume(ctx, r)
	}
	for _, action := range []string{ScrubPause, ScrubResume, ScrubCancel} {
		_, err := do(action)
		code(t, action+" without a scrub", err, connect.CodeFailedPrecondition, "isn't being scrubbed")
	}
	_, err := do("mend")
	code(t, "an unknown action", err, connect.CodeFailedPrecondition)
	_, err = do(ScrubBegin, func(r *pb.ScrubVolumeRequest) { r.Name = "none" })
	code(t, "an unknown volume", err, connect.CodeNotFound, "none")
	_, err = do(ScrubBegin, func(r *pb.ScrubVolumeRequest) { r.Bandwidth = 5 })
	code(t, "too slow", err, connect.CodeInvalidArgument, "1 MiB")
	_, err = do(ScrubBegin, func(r *pb.ScrubVolumeRequest) { r.Prefer = "n9" })
	code(t, "no copy there", err, connect.CodeFailedPrecondition, "n9")

	v, err := do(ScrubBegin, func(r *pb.ScrubVolumeRequest) { r.Bandwidth = 2 << 20 })
	if err != nil || v.Scrub.Number != 1 || v.Scrub.State != ScrubWaiting || v.Scrub.Bandwidth != 2<<20 || v.Scrub.Total != 1<<30 {
		t.Fatalf("%v, %v", v.GetScrub(), err)
	}
	_, err = do("mend")
	code(t, "an unknown action", err, connect.CodeInvalidArgument, "mend")
	_, err = do(ScrubBegin, func(r *pb.ScrubVolumeRequest) { r.Prefer = "n1" })
	code(t, "another sort while one is active", err, connect.CodeFailedPrecondition, "--cancel")
	if v, err = do(ScrubPause); err != nil || v.Scrub.State != ScrubPaused {
		t.Fatalf("%v, %v", v.GetScrub(), err)
	}
	if v, err = do(ScrubBegin); err != nil || v.Scrub.State != ScrubWaiting || v.Scrub.Number != 1 || v.Scrub.Bandwidth != 0 {
		t.Fatalf("begun again: %v, %v", v.GetScrub(), err)
	}

	// What a coordinator found, so far and at the end.
	rec, err := c.store.VolumeByName(ctx, "pg")
	if err != nil {
		t.Fatal(err)
	}
	rec.Value.Scrub.Findings = spec.ScrubFindings{Bytes: 1 << 30, Repaired: 2, Differing: 1, Bad: []spec.ScrubBad{{Off: 4096, Len: 4096, Differ: true, Pools: []string{"p"}}}}
	rec.Value.Scrub.End(time.Now())
	if _, err := c.store.PutVolume(ctx, rec.Value, rec.Rev, meta.Cond{}); err != nil {
		t.Fatal(err)
	}
	if v, err = vols.GetVolume(ctx, &pb.GetVolumeRequest{Name: "pg"}); err != nil || v.Health != Degraded || v.Scrub.State != ScrubIdle || v.Scrub.Due == nil ||
		len(v.Scrub.Last.Findings.Bad) != 1 || v.Scrub.Last.Findings.Repaired != 2 {
		t.Fatalf("%v, %v", v, err)
	}
	if v, err = do(ScrubBegin); err != nil || v.Scrub.Number != 2 || v.Health != Degraded {
		t.Fatalf("the next one: %v, %v", v, err)
	}
	if v, err = do(ScrubCancel); err != nil || v.Scrub.State != ScrubIdle || v.Scrub.Last.Number != 1 {
		t.Fatalf("cancelled: %v, %v", v, err)
	}
}

func TestScrubSettingsAndEvents(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1")
	cl := c.clients["n1"].Cluster
	s, err := cl.GetSettings(ctx, &pb.GetSettingsRequest{})
	if err != nil || s.ScrubInterval.AsDuration() != spec.DefaultScrubInterval || s.ScrubBandwidth != spec.DefaultScrubBandwidth {
		t.Fatalf("%v, %v", s, err)
	}
	_, err = cl.SetSettings(ctx, &pb.SetSettingsRequest{ScrubInterval: durationpb.New(time.Second)})
	code(t, "too often", err, connect.CodeInvalidArgument, "scrub-interval")
	small := int64(5)
	_, err = cl.SetSettings(ctx, &pb.SetSettingsRequest{ScrubBandwidth: &small})
	code(t, "too slow", err, connect.CodeInvalidArgument, "scrub-bandwidth")
	if s, err = cl.SetSettings(ctx, &pb.SetSettingsRequest{ScrubInterval: durationpb.New(0)}); err != nil || s.ScrubInterval.AsDuration() != 0 || s.Overcommit == 0 {
		t.Fatalf("off: %v, %v", s, err)
	}
	r, err := cl.ListEvents(ctx, &pb.ListEventsRequest{})
	if err != nil || len(r.Events) != 0 {
		t.Fatalf("%v, %v", r, err)
	}
	for _, e := range []spec.Event{{What: "a", Volume: "x", Message: "1"}, {What: "b", Volume: "y", Warning: true, Message: "2"}, {What: "c", Volume: "x", Warning: true, Message: "3"}} {
		if err := meta.AddEvent(ctx, c.store, e); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		ask  *pb.ListEventsRequest
		want string
	}{{&pb.ListEventsRequest{}, "abc"}, {&pb.ListEventsRequest{Volume: "x"}, "ac"}, {&pb.ListEventsRequest{Warnings: true}, "bc"}, {&pb.ListEventsRequest{Volume: "x", Warnings: true}, "c"}} {
		r, err := cl.ListEvents(ctx, x.ask)
		got := ""
		for _, e := range r.GetEvents() {
			got += e.What
		}
		if err != nil || got != x.want {
			t.Errorf("%v: %q, %v; want %q", x.ask, got, err, x.want)
		}
	}
}
