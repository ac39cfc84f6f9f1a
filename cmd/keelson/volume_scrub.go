package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

// VolumeScrubOptions are the flags of volume scrub.
type VolumeScrubOptions struct {
	Pause, Resume, Cancel, Wait bool
	Bandwidth, Prefer           string
	output                      outputFlag
}

func newVolumeScrubCommand(g *globalOptions) *cobra.Command {
	var o VolumeScrubOptions
	cmd := &cobra.Command{
		Use: "scrub NAME", Short: "Verify all copies of a volume against their checksums and each other, and repair them",
		Example: "  keelson volume scrub pg --wait\n  keelson volume scrub pg --pause",
		Args:    args(cobra.ExactArgs(1)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			return runVolumeScrub(cmd.Context(), g, o, a[0], cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Pause, "pause", false, "pause the one that is active")
	f.BoolVar(&o.Resume, "resume", false, "go on with the one that is paused")
	f.BoolVar(&o.Cancel, "cancel", false, "end the one that is active, without a result")
	f.BoolVar(&o.Wait, "wait", false, "wait until it has ended; fail if it found what it could not mend")
	f.StringVar(&o.Bandwidth, "bandwidth", "", "at most so much a second, such as 10Mi (default: the setting scrub-bandwidth)")
	f.StringVar(&o.Prefer, "prefer", "", "where intact copies differ, replace the others with the copy on this node")
	o.output.register(cmd)
	cmd.MarkFlagsMutuallyExclusive("pause", "resume", "cancel")
	for _, begin := range []string{"bandwidth", "prefer"} {
		cmd.MarkFlagsMutuallyExclusive("pause", "resume", "cancel", begin)
	}
	cmd.MarkFlagsMutuallyExclusive("pause", "cancel", "wait")
	completeFlag(cmd, "prefer", completeNodes(g))
	return cmd
}

func (o *VolumeScrubOptions) request(name string) (*pb.ScrubVolumeRequest, error) {
	r := &pb.ScrubVolumeRequest{Name: name, Action: api.ScrubBegin, Prefer: o.Prefer}
	switch {
	case o.Pause:
		r.Action = api.ScrubPause
	case o.Resume:
		r.Action = api.ScrubResume
	case o.Cancel:
		r.Action = api.ScrubCancel
	}
	if o.Bandwidth != "" {
		n, err := spec.ParseSize(o.Bandwidth)
		if err != nil {
			return nil, err
		}
		r.Bandwidth = n
	}
	return r, nil
}

func runVolumeScrub(ctx context.Context, g *globalOptions, o VolumeScrubOptions, name string, w io.Writer) error {
	if err := o.output.check(); err != nil {
		return err
	}
	r, err := o.request(name)
	if err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	v, err := c.Volumes.ScrubVolume(ctx, r)
	if err != nil {
		return err
	}
	number := v.Scrub.Number
	for o.Wait && v.Scrub.Number == number && v.Scrub.State != api.ScrubIdle {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
		if v, err = c.Volumes.GetVolume(ctx, &pb.GetVolumeRequest{Name: name}); err != nil {
			return err
		}
	}
	ended := v.Scrub.GetLast().GetNumber() == number
	if o.Wait && !ended {
		return fmt.Errorf("the scrub of volume %s was cancelled", name)
	}
	err = o.output.print(w, plain(v.Scrub), func(w io.Writer) {
		if !ended {
			fmt.Fprintf(w, "volume %s: scrub %s\n", name, scrubText(v.Scrub))
			return
		}
		fmt.Fprintf(w, "volume %s: scrub %s\n", name, lastScrubText(v.Scrub))
		for _, b := range v.Scrub.Last.Findings.Bad {
			fmt.Fprintf(w, "! %s\n", badText(b))
		}
	})
	if f := v.Scrub.GetLast().GetFindings(); err == nil && o.Wait && f.GetUnreadable()+f.GetDiffering() > 0 {
		return fmt.Errorf("volume %s has blocks that could not be mended: see docs/ops/scrub.md", name)
	}
	return err
}

// scrubText says how the active scrub is, or when the next one is due.
func scrubText(s *pb.Scrub) string {
	if s == nil {
		return ""
	}
	if s.State == api.ScrubIdle {
		if s.Due == nil {
			return ""
		}
		return "the next one is due " + s.Due.AsTime().Format(timeFormat)
	}
	text := fmt.Sprintf("%d is %s", s.Number, strings.ToLower(s.State))
	if s.Total > 0 {
		text += fmt.Sprintf(", %d%% of %s", s.Done*100/s.Total, spec.FormatSize(s.Total))
	}
	if f := s.Findings; f != nil && f.Repaired+f.Unreadable+f.Differing > 0 {
		text += "; " + findingsText(f)
	}
	return text
}

func lastScrubText(s *pb.Scrub) string {
	l := s.GetLast()
	if l == nil {
		return ""
	}
	return fmt.Sprintf("%d ended %s: %s verified, %s", l.Number, l.Ended.AsTime().Format(timeFormat), spec.FormatSize(l.Findings.GetBytes()), findingsText(l.Findings))
}

func findingsText(f *pb.ScrubFindings) string {
	if f.GetRepaired()+f.GetUnreadable()+f.GetDiffering()+f.GetChosen() == 0 && !f.GetPartial() {
		return "all well"
	}
	text := fmt.Sprintf("%d blocks repaired, %d unreadable, %d differ", f.Repaired, f.Unreadable, f.Differing)
	if f.Chosen > 0 {
		text += fmt.Sprintf(", %d made what the preferred copy has", f.Chosen)
	}
	if f.Partial {
		text += "; not every copy was verified"
	}
	return text
}

func badText(b *pb.ScrubBad) string {
	what := "no copy is intact"
	if b.Differ {
		what = "the copies differ"
	}
	if b.Snapshot != "" {
		what = "in snapshot " + b.Snapshot + " " + what
	}
	return fmt.Sprintf("at %d, %d bytes, pools %s: %s", b.Off, b.Len, strings.Join(b.Pools, ","), what)
}
