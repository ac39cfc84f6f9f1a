package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	pb "keelson.io/keelson/internal/api/keelsonv1"
)

func newKeyCommand(g *globalOptions) *cobra.Command {
	return group(&cobra.Command{Use: "key", Short: "Show and rotate the keys that wrap the data keys of encrypted volumes"},
		newKeyListCommand(g), newKeyRotateCommand(g))
}

func newKeyListCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the wrapping keys: which one wraps now, and for how many volumes each is needed", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runKeyList(cmd.Context(), g, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd)
	return cmd
}

func runKeyList(ctx context.Context, g *globalOptions, o outputFlag, w, problems io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	r, err := c.Keys.ListKeys(ctx, &pb.ListKeysRequest{})
	if err != nil {
		return err
	}
	return o.print(w, plain(r), func(w io.Writer) {
		table(w, "KEY VOLUMES WRAPS", func(row func(...any)) {
			for _, k := range r.Keys {
				wraps := ""
				if k.Current {
					wraps = "new volumes"
				}
				row(k.Name, k.Volumes, wraps)
			}
			if r.PlainVolumes > 0 {
				row("(not encrypted)", r.PlainVolumes, "")
			}
		})
		if r.Problem != "" {
			fmt.Fprintf(problems, "keelson: which key wraps now isn't known: %s\n", r.Problem)
		}
	})
}

func newKeyRotateCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	cmd := &cobra.Command{
		Use: "rotate", Short: "Wrap the data keys of all volumes by the newest wrapping key; attached volumes go on meanwhile", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runKeyRotate(cmd.Context(), g, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd)
	return cmd
}

// runKeyRotate asks for a few volumes at a time until none is left that can be done.
func runKeyRotate(ctx context.Context, g *globalOptions, o outputFlag, w, say io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	var r *pb.RotateKeysResponse
	for done := int32(0); ; {
		if r, err = c.Keys.RotateKeys(ctx, &pb.RotateKeysRequest{}); err != nil {
			if done > 0 {
				return fmt.Errorf("after %d volumes; run the command again to go on: %w", done, err)
			}
			return err
		}
		done += r.Rewrapped
		if r.Left == 0 || r.Rewrapped == 0 {
			r.Rewrapped = done
			break
		}
		fmt.Fprintf(say, "keelson: %d of %d volumes\n", r.Volumes-r.Left, r.Volumes)
	}
	err = o.print(w, plain(r), func(w io.Writer) {
		fmt.Fprintf(w, "%d of %d encrypted volumes have their keys wrapped by %s; %d were rewrapped\n", r.Volumes-r.Left, r.Volumes, r.Key, r.Rewrapped)
	})
	for _, p := range r.Problems {
		err = errors.Join(err, fmt.Errorf("volume %s: %s", p.Volume, p.Problem))
	}
	if r.Left > 0 {
		err = errors.Join(err, codedError{fmt.Errorf("%d volumes still need older keys: keep those, and run the command again", r.Left), exitConflict})
	}
	return err
}
