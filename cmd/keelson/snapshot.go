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

// snapshotWait is how long commands about snapshots wait for what is done in the background.
const snapshotWait = 2 * time.Minute

func newSnapshotCommand(g *globalOptions) *cobra.Command {
	return group(&cobra.Command{Use: "snapshot", Aliases: []string{"snap"}, Short: "Keep what volumes held at a moment, and go back to it"},
		newSnapshotCreateCommand(g), newSnapshotListCommand(g), newSnapshotShowCommand(g), newSnapshotDeleteCommand(g),
		newSnapshotRestoreCommand(g), newSnapshotScheduleCommand(g), newSnapshotAttachCommand(g), newSnapshotDetachCommand(g))
}

func newSnapshotCreateCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	var groupName string
	cmd := &cobra.Command{
		Use: "create {VOLUME [NAME] | --group NAME VOLUME...}", Short: "Take a snapshot of a volume, or of several at one moment, on all their copies",
		Long: "Take a snapshot of a volume, on all its copies; or, with --group, of several volumes at one moment: what had been acknowledged on one of them\n" +
			"before something was begun on another one is in the group if that is. The snapshots have the group's name, and are deleted with the group.",
		Example: "  keelson snapshot create pg before-upgrade\n  keelson snapshot create --group before-upgrade pg-data pg-wal",
		Args:    groupArgs(&groupName, cobra.RangeArgs(1, 2), cobra.MinimumNArgs(1)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			if cmd.Flags().Changed("group") {
				return runGroupCreate(cmd.Context(), g, o, groupName, a, cmd.OutOrStdout())
			}
			name := ""
			if len(a) > 1 {
				name = a[1]
			}
			return runSnapshotCreate(cmd.Context(), g, o, a[0], name, cmd.OutOrStdout())
		},
	}
	o.register(cmd)
	cmd.Flags().StringVar(&groupName, "group", "", "name of the group: all arguments are volumes, of which snapshots are taken at one moment")
	return cmd
}

func runSnapshotCreate(ctx context.Context, g *globalOptions, o outputFlag, volume, name string, w io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotWait)
	defer cancel()
	s, err := c.Snaps.CreateSnapshot(ctx, &pb.CreateSnapshotRequest{Volume: volume, Name: name})
	if err != nil {
		return err
	}
	return o.print(w, plain(s), func(w io.Writer) { fmt.Fprintf(w, "snapshot %s of volume %s\n", s.Name, s.Volume) })
}

func newSnapshotListCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	cmd := &cobra.Command{
		Use: "list [VOLUME]", Aliases: []string{"ls"}, Short: "List the snapshots of a volume, or of all",
		Args: args(cobra.MaximumNArgs(1)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			list, err := listSnapshots(cmd.Context(), g, &o, strings.Join(a, ""))
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), plainList(list), func(w io.Writer) { snapshotTable(w, list) })
		},
	}
	o.register(cmd)
	return cmd
}

func listSnapshots(ctx context.Context, g *globalOptions, o *outputFlag, volume string) ([]*pb.Snapshot, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	c, err := g.client()
	if err != nil {
		return nil, err
	}
	r, err := c.Snaps.ListSnapshots(ctx, &pb.ListSnapshotsRequest{Volume: volume})
	return r.GetSnapshots(), err
}

func snapshotTable(w io.Writer, list []*pb.Snapshot) {
	table(w, "VOLUME SNAPSHOT STATE TAKEN SIZE USED BY", func(row func(...any)) {
		for _, s := range list {
			taken, used, by := "", "", s.Schedule
			if s.Taken.IsValid() {
				taken = s.Taken.AsTime().Format(time.DateTime)
			}
			if s.Used >= 0 {
				used = spec.FormatSize(s.Used)
			}
			if s.Group != "" {
				by = "group " + s.Group
			}
			if s.Attached != "" {
				by = strings.TrimPrefix(by+", attached to "+s.Attached, ", ")
			}
			row(s.Volume, s.Name, s.State, taken, spec.FormatSize(s.Size), used, by)
		}
	})
}

func newSnapshotShowCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	cmd := &cobra.Command{
		Use: "show VOLUME NAME", Short: "Show a snapshot",
		Args: args(cobra.ExactArgs(2)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			list, err := listSnapshots(cmd.Context(), g, &o, a[0])
			if err != nil {
				return err
			}
			for _, s := range list {
				if s.Name == a[1] || s.Id == a[1] {
					return o.print(cmd.OutOrStdout(), plain(s), func(w io.Writer) { snapshotTable(w, []*pb.Snapshot{s}) })
				}
			}
			return fmt.Errorf("volume %s has no snapshot %q; `keelson snapshot list %s` shows them", a[0], a[1], a[0])
		},
	}
	o.register(cmd)
	return cmd
}

func newSnapshotDeleteCommand(g *globalOptions) *cobra.Command {
	cmd := newSnapshotDeedCommand(g, func(ctx context.Context, c *api.Client, volume, name string) (string, error) {
		_, err := c.Snaps.DeleteSnapshot(ctx, &pb.DeleteSnapshotRequest{Volume: volume, Name: name})
		return fmt.Sprintf("snapshot %s of volume %s is deleted", name, volume), err
	})
	cmd.Use, cmd.Aliases, cmd.Short = "delete {VOLUME NAME | --group NAME}", []string{"rm"}, "Delete a snapshot, or all of a group; the space is free when this returns"
	var groupName string
	cmd.Flags().StringVar(&groupName, "group", "", "name of the group whose snapshots are deleted")
	cmd.Args = groupArgs(&groupName, cobra.ExactArgs(2), cobra.NoArgs)
	one := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, a []string) error {
		if cmd.Flags().Changed("group") {
			return runGroupDelete(cmd.Context(), g, groupName, cmd.OutOrStdout())
		}
		return one(cmd, a)
	}
	return cmd
}

func newSnapshotRestoreCommand(g *globalOptions) *cobra.Command {
	cmd := newSnapshotDeedCommand(g, func(ctx context.Context, c *api.Client, volume, name string) (string, error) {
		_, err := c.Snaps.RestoreVolume(ctx, &pb.RestoreVolumeRequest{Volume: volume, Snapshot: name})
		return fmt.Sprintf("volume %s is what it was in snapshot %s", volume, name), err
	})
	cmd.Use, cmd.Short = "restore VOLUME NAME", "Make a detached volume what it was; what was written since is lost, unless another snapshot has it"
	return cmd
}

// newSnapshotDeedCommand makes a command that does something with one snapshot, and prints what is then so.
func newSnapshotDeedCommand(g *globalOptions, do func(ctx context.Context, c *api.Client, volume, name string) (string, error)) *cobra.Command {
	return &cobra.Command{
		Args: args(cobra.ExactArgs(2)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), snapshotWait)
			defer cancel()
			done, err := do(ctx, c, a[0], a[1])
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), done)
			return nil
		},
	}
}

func newSnapshotScheduleCommand(g *globalOptions) *cobra.Command {
	return &cobra.Command{
		Use: "schedule VOLUME SCHEDULE", Short: "Have snapshots of a volume taken by themselves, and old ones deleted; none ends it",
		Long: "Have snapshots of a volume taken by themselves. A schedule is periodic=MINUTES,KEEP, daily=HH:MM,KEEP, weekly=WEEKDAY@HH:MM,KEEP or\n" +
			"monthly=DAY@HH:MM,KEEP; several are divided by ';'. Times are UTC. KEEP is how many snapshots of that schedule are kept.",
		Example: "  keelson snapshot schedule pg 'periodic=60,24;daily=02:30,7'\n  keelson snapshot schedule pg none",
		Args:    args(cobra.ExactArgs(2)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			r, err := c.Snaps.SetSchedule(cmd.Context(), &pb.SetScheduleRequest{Volume: a[0], Schedule: a[1]})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "snapshots of volume %s: %s\n", a[0], r.Schedule)
			return nil
		},
	}
}
