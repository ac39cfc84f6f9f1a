package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

// groupArgs checks the arguments as without --group, or as with it.
func groupArgs(name *string, without, with cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, a []string) error {
		if cmd.Flags().Changed("group") {
			if err := spec.CheckName("group", *name); err != nil {
				return usageError{err}
			}
			return args(with)(cmd, a)
		}
		return args(without)(cmd, a)
	}
}

func runGroupCreate(ctx context.Context, g *globalOptions, o outputFlag, name string, volumes []string, w io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	if err := spec.CheckGroup(name, volumes); err != nil {
		return usageError{err}
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotWait)
	defer cancel()
	r, err := c.Snaps.CreateGroup(ctx, &pb.CreateGroupRequest{Name: name, Volumes: volumes})
	if err != nil {
		return err
	}
	return o.print(w, plain(r), func(w io.Writer) {
		fmt.Fprintf(w, "group %s: snapshots of %d volumes, taken at %s\n", r.Name, len(r.Snapshots), r.Taken.AsTime().Format(time.DateTime))
	})
}

func runGroupDelete(ctx context.Context, g *globalOptions, name string, w io.Writer) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotWait)
	defer cancel()
	if _, err := c.Snaps.DeleteGroup(ctx, &pb.DeleteGroupRequest{Name: name}); err != nil {
		return err
	}
	fmt.Fprintf(w, "group %s is deleted\n", name)
	return nil
}

// cutSnapshot reads VOLUME@SNAPSHOT.
func cutSnapshot(arg string) (volume, name string, err error) {
	volume, name, ok := strings.Cut(arg, "@")
	if !ok || volume == "" || name == "" {
		return "", "", usageError{&spec.InvalidError{Field: "snapshot", Value: arg, Legal: "VOLUME@SNAPSHOT"}}
	}
	return volume, name, nil
}

func newSnapshotAttachCommand(g *globalOptions) *cobra.Command {
	var node, frontend string
	var o outputFlag
	cmd := &cobra.Command{
		Use: "attach VOLUME@SNAPSHOT", Short: "Show a snapshot to a node as a device that can't be written to",
		Long: "Show a snapshot to a node as a device that can't be written to, also while its volume is attached, to that node or another one, and written to.\n" +
			"It is attached to one node at a time, can't be deleted meanwhile, and has as many copies as its volume.",
		Example: "  keelson snapshot attach pg@before-upgrade --node n2\n  mount -o ro,noload /run/keelson/dev/pg@before-upgrade /mnt",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			if err := o.check(); err != nil {
				return err
			}
			volume, name, err := cutSnapshot(a[0])
			if err != nil {
				return err
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), snapshotWait)
			defer cancel()
			r, err := c.Snaps.AttachSnapshot(ctx, &pb.AttachSnapshotRequest{Volume: volume, Name: name, Node: node, Frontend: frontend})
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), plain(r), func(w io.Writer) { fmt.Fprintln(w, r.Device) })
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "node to attach it to (default: the one that answers)")
	cmd.Flags().StringVar(&frontend, "frontend", spec.FrontendFUSE, "fuse (a block device) or nbd (a socket)")
	o.register(cmd)
	return cmd
}

func newSnapshotDetachCommand(g *globalOptions) *cobra.Command {
	return &cobra.Command{
		Use: "detach VOLUME@SNAPSHOT", Short: "Take the device of a snapshot away; refused while it is in use",
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			volume, name, err := cutSnapshot(a[0])
			if err != nil {
				return err
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), snapshotWait)
			defer cancel()
			if _, err := c.Snaps.DetachSnapshot(ctx, &pb.DetachSnapshotRequest{Volume: volume, Name: name}); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "snapshot %s of volume %s is detached\n", name, volume)
			return nil
		},
	}
}
