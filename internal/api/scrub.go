package api

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// What can be done with a scrub.
const (
	ScrubBegin  = "begin"
	ScrubPause  = "pause"
	ScrubResume = "resume"
	ScrubCancel = "cancel"
)

// States of a scrub.
const (
	ScrubIdle    = "Idle"
	ScrubRunning = "Running"
	ScrubPaused  = "Paused"
	ScrubWaiting = "Waiting"
)

// ScrubVolume writes what is to be done into the record. The volume's coordinator does it; where there is none, the leader
// has some node serve the volume for it.
func (x volumeService) ScrubVolume(ctx context.Context, r *pb.ScrubVolumeRequest) (*pb.Volume, error) {
	if r.Bandwidth != 0 && r.Bandwidth < spec.MinScrubBandwidth {
		return nil, errorf(errInvalid, "bandwidth %d is below 1 MiB a second", r.Bandwidth)
	}
	if r.Prefer != "" {
		if err := allowed(callerOf(ctx), access{who: admin}, "a scrub that overwrites copies"); err != nil {
			return nil, err
		}
	}
	err := retry(ctx, func() error {
		vol, err := x.s.volume(ctx, r.Name)
		if err != nil {
			return err
		}
		if vol.Value.Deleting {
			return errorf(errRefused, "volume %s is being deleted", r.Name)
		}
		if err := changeScrub(&vol.Value, r, x.s.cfg.Now()); err != nil {
			return err
		}
		_, err = x.s.cfg.Store.PutVolume(ctx, vol.Value, vol.Rev, meta.Cond{})
		return err
	})
	if err != nil {
		return nil, err
	}
	return x.GetVolume(ctx, &pb.GetVolumeRequest{Name: r.Name})
}

// changeScrub does one action on a volume's scrub.
func changeScrub(v *spec.Volume, r *pb.ScrubVolumeRequest, now time.Time) error {
	s := &v.Scrub
	if r.Action != ScrubBegin && !s.Active {
		return errorf(errRefused, "volume %s isn't being scrubbed", v.Name)
	}
	switch r.Action {
	case ScrubBegin:
		if r.Prefer != "" && !hasCopy(v, r.Prefer) {
			return errorf(errRefused, "node %s has no copy of volume %s; `keelson volume show %s` shows those that have", r.Prefer, v.Name, v.Name)
		}
		if s.Active && s.Prefer != r.Prefer {
			return errorf(errRefused, "a scrub of volume %s is active; cancel it first: keelson volume scrub %s --cancel", v.Name, v.Name)
		}
		if !s.Active {
			s.Begin(now, false)
		}
		s.Bandwidth, s.Prefer, s.Paused = r.Bandwidth, r.Prefer, false
	case ScrubPause:
		s.Paused = true
	case ScrubResume:
		s.Paused = false
	case ScrubCancel:
		s.Cancel(now)
	default:
		return errorf(errInvalid, "action %q is none of begin, pause, resume, cancel", r.Action)
	}
	return nil
}

func hasCopy(v *spec.Volume, node string) bool {
	for _, c := range v.State.Columns {
		for _, m := range c.Members {
			if m.Node == node {
				return true
			}
		}
	}
	return false
}

// scrubProto shows a volume's scrub; live is nil if nobody serves the volume.
func (v *view) scrubProto(vol *spec.Volume, live *pb.LiveVolume) *pb.Scrub {
	s := &vol.Scrub
	m := &pb.Scrub{Number: s.Number, State: ScrubIdle}
	if s.Last.Number != 0 {
		m.Last = &pb.ScrubResult{
			Number: s.Last.Number, Scheduled: s.Last.Scheduled, Begun: timestamppb.New(s.Last.Begun), Ended: timestamppb.New(s.Last.Ended),
			Findings: FindingsProto(s.Last.Findings),
		}
	}
	if !s.Active {
		if every := v.cluster.Settings.ScrubInterval; every > 0 {
			m.Due = timestamppb.New(vol.ScrubDue(every))
		}
		return m
	}
	m.State, m.Scheduled, m.Bandwidth, m.Prefer, m.Begun = ScrubWaiting, s.Scheduled, s.Bandwidth, s.Prefer, timestamppb.New(s.Begun)
	m.Total = vol.Size
	m.Done, m.Findings = min(vol.Size, s.Position*block.ChunkSize), FindingsProto(s.Findings)
	if live.GetScrubTotal() > 0 {
		m.State, m.Done, m.Total, m.Findings = ScrubRunning, live.ScrubDone, live.ScrubTotal, live.ScrubFindings
	}
	if s.Paused {
		m.State = ScrubPaused
	}
	return m
}

// FindingsProto shows what a scrub found.
func FindingsProto(f spec.ScrubFindings) *pb.ScrubFindings {
	m := &pb.ScrubFindings{Bytes: f.Bytes, Repaired: f.Repaired, Unreadable: f.Unreadable, Differing: f.Differing, Chosen: f.Chosen, Partial: f.Partial}
	for _, b := range f.Bad {
		m.Bad = append(m.Bad, &pb.ScrubBad{Off: b.Off, Len: b.Len, Differ: b.Differ, Pools: b.Pools, Snapshot: b.Snapshot})
	}
	return m
}

// scrubProblems says what the last scrub, or the one that is active, found and could not mend.
func scrubProblems(vol *spec.Volume) []string {
	f := vol.Scrub.Last.Findings
	when := "the scrub that ended " + vol.Scrub.Last.Ended.Format(time.DateTime)
	if a := vol.Scrub.Findings; vol.Scrub.Active && a.Unreadable+a.Differing > 0 {
		f, when = a, "the scrub that is active"
	}
	var list []string
	if f.Differing > 0 {
		list = append(list, fmt.Sprintf("copies differ: %s found %d blocks whose copies are intact and not the same", when, f.Differing))
	}
	if f.Unreadable > 0 {
		list = append(list, fmt.Sprintf("%s found %d blocks of which no copy is intact; reads of them fail", when, f.Unreadable))
	}
	return list
}

// ListEvents implements the call.
func (c clusterService) ListEvents(ctx context.Context, r *pb.ListEventsRequest) (*pb.ListEventsResponse, error) {
	list, err := c.s.cfg.Store.Events(ctx)
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		return nil, err
	}
	out := &pb.ListEventsResponse{}
	for _, e := range list.Value {
		if r.Volume != "" && e.Volume != r.Volume || r.Warnings && !e.Warning {
			continue
		}
		out.Events = append(out.Events, &pb.Event{
			Time: timestamppb.New(e.Time), What: e.What, Warning: e.Warning, Volume: e.Volume, Node: e.Node, Pool: e.Pool, Message: e.Message,
		})
	}
	return out, nil
}
