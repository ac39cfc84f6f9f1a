package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

func newPoolExpandCommand(g *globalOptions) *cobra.Command {
	var size string
	cmd := &cobra.Command{
		Use: "expand POOL [--size SIZE]", Short: "Use the space by which a pool's device has grown, or make its file larger",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completePools(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			r := &pb.ExpandPoolRequest{Id: a[0]}
			if size != "" {
				n, err := spec.ParseSize(size)
				if err != nil {
					return err
				}
				r.Size = n
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			p, err := c.Upkeep.ExpandPool(cmd.Context(), r)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "pool %s on %s, %s, %s\n", p.Id, p.Node, spec.FormatSize(p.Capacity), p.Media)
			return nil
		},
	}
	cmd.Flags().StringVar(&size, "size", "", "what the pool's file is to have; only for a pool of a file")
	return cmd
}

func newPoolDrainCommand(g *globalOptions) *cobra.Command {
	var cancel bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "drain POOL", Short: "Move the replicas of a pool elsewhere, while their volumes are in use too",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completePools(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			if _, err := c.Upkeep.DrainPool(cmd.Context(), &pb.DrainPoolRequest{Id: a[0], Cancel: cancel}); err != nil || cancel {
				return err
			}
			what := "pool " + a[0] + " is being drained"
			if err := follow(cmd.Context(), c, &pb.GetProgressRequest{Pool: a[0]}, what, wait, cmd.OutOrStdout()); err != nil || wait <= 0 {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "pool %s has no replicas; to take it out of service: keelson pool remove %s\n", a[0], a[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&cancel, "cancel", false, "call it off: what has moved stays where it is, the rest stays here")
	waitFlag(cmd, &wait, moveWait)
	return cmd
}

func newPoolRemoveCommand(g *globalOptions) *cobra.Command {
	var lost bool
	cmd := &cobra.Command{
		Use: "remove POOL", Aliases: []string{"rm"}, Short: "Take an empty pool out of service, or one whose device is lost",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completePools(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			if _, err := c.Upkeep.RemovePool(cmd.Context(), &pb.RemovePoolRequest{Id: a[0], Lost: lost}); err != nil {
				return err
			}
			text := "pool %s is out of service; its device or file still has its file system\n"
			if lost {
				text = "pool %s is out of service; the copies that it had are rebuilt elsewhere\n"
			}
			fmt.Fprintf(cmd.OutOrStdout(), text, a[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&lost, "lost", false, "its device is lost: give up the copies in it, of which others are in sync")
	return cmd
}
