package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

func newSettingsCommand(g *globalOptions) *cobra.Command {
	return group(&cobra.Command{Use: "settings", Short: "Show and change the settings of the cluster"},
		newSettingsGetCommand(g), newSettingsSetCommand(g))
}

func newSettingsGetCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	cmd := &cobra.Command{
		Use: "get", Short: "Show the settings", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			s, err := c.Cluster.GetSettings(cmd.Context(), &pb.GetSettingsRequest{})
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), plain(s), func(w io.Writer) { settingsTable(w, s) })
		},
	}
	o.register(cmd)
	return cmd
}

func settingsTable(w io.Writer, s *pb.Settings) {
	table(w, "SETTING VALUE", func(row func(...any)) {
		row("rebuild-after", s.RebuildAfter.AsDuration())
		row("rebuild-bandwidth", spec.FormatSize(s.RebuildBandwidth))
		row("answer-limit", s.AnswerLimit.AsDuration())
		row("overcommit", s.Overcommit)
		every := lifetime(s.ScrubInterval.AsDuration())
		row("scrub-interval", every.String())
		row("rebalance", s.Rebalance)
		row("rebalance-moves", s.RebalanceMoves)
		row("scrub-bandwidth", spec.FormatSize(s.ScrubBandwidth))
		row("snapshots-max", fmt.Sprint(s.MaxSnapshots))
	})
}

func newSettingsSetCommand(g *globalOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use: "set NAME VALUE", Short: "Change a setting: " + settingNames,
		Example:   "  keelson settings set rebuild-after 30m\n  keelson settings set rebuild-bandwidth 100Mi\n  keelson settings set scrub-interval 7d",
		Args:      args(cobra.ExactArgs(2)),
		ValidArgs: []string{"rebuild-after", "rebuild-bandwidth", "answer-limit", "overcommit", "rebalance", "rebalance-moves", "scrub-interval", "scrub-bandwidth", "snapshots-max"},
		RunE: func(cmd *cobra.Command, a []string) error {
			return runSettingsSet(cmd.Context(), g, a[0], a[1], cmd.OutOrStdout())
		},
	}
	return cmd
}

// settingNames are the settings that there are.
const settingNames = "rebuild-after, rebuild-bandwidth, answer-limit, overcommit, rebalance, rebalance-moves, scrub-interval, scrub-bandwidth, snapshots-max"

func runSettingsSet(ctx context.Context, g *globalOptions, name, value string, w io.Writer) error {
	r := &pb.SetSettingsRequest{}
	switch name {
	case "rebuild-after":
		d, err := time.ParseDuration(value)
		if err != nil {
			return usageError{fmt.Errorf("rebuild-after %q is no duration such as 10m or 1h30m", value)}
		}
		r.RebuildAfter = durationpb.New(d)
	case "rebuild-bandwidth":
		n, err := spec.ParseSize(value)
		if err != nil {
			return err
		}
		r.RebuildBandwidth = &n
	case "answer-limit":
		d, err := time.ParseDuration(value)
		if err != nil {
			return usageError{fmt.Errorf("answer-limit %q is no duration such as 10s", value)}
		}
		r.AnswerLimit = durationpb.New(d)
	case "overcommit":
		f, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return usageError{fmt.Errorf("overcommit %q is no number", value)}
		}
		r.Overcommit = &f
	case "rebalance", "rebalance-moves":
		n, err := strconv.ParseInt(value, 10, 32)
		if err != nil {
			return usageError{fmt.Errorf("%s %q is no whole number", name, value)}
		}
		if n32 := int32(n); name == "rebalance" {
			r.Rebalance = &n32
		} else {
			r.RebalanceMoves = &n32
		}
	case "scrub-interval":
		var d lifetime
		if err := d.Set(value); err != nil {
			return usageError{fmt.Errorf("scrub-interval %q is no duration such as 30d or 12h, or 0", value)}
		}
		r.ScrubInterval = durationpb.New(time.Duration(d))
	case "snapshots-max":
		n, err := strconv.ParseInt(value, 10, 32)
		if err != nil {
			return &spec.InvalidError{Field: "snapshots-max", Value: value, Legal: fmt.Sprintf("a whole number from 1 to %d", spec.MaxMaxSnapshots)}
		}
		k := int32(n)
		r.MaxSnapshots = &k
	case "scrub-bandwidth":
		n, err := spec.ParseSize(value)
		if err != nil {
			return err
		}
		r.ScrubBandwidth = &n
	default:
		return usageError{fmt.Errorf("there is no setting %q; the settings are %s", name, settingNames)}
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	s, err := c.Cluster.SetSettings(ctx, r)
	if err != nil {
		return err
	}
	settingsTable(w, s)
	return nil
}
