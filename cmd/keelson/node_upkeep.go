package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

func newNodeDrainCommand(g *globalOptions) *cobra.Command {
	var force bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "drain NODE", Short: "Make it safe to restart a node: wait until every volume is in sync elsewhere and none is attached there",
		Long: `Make it safe to restart a node. It gets no new copies, and keeps those that it has. The command ends when every volume that
has a copy there has another one in sync on a node that stays up, none is attached there, and the metadata has a majority
without it. End it with "keelson node uncordon NODE" when the node is back.`,
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeNodes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			if _, err := c.Upkeep.SetUpkeep(cmd.Context(), &pb.SetUpkeepRequest{Node: a[0], Upkeep: string(spec.Drain), Force: force}); err != nil {
				return err
			}
			what := "node " + a[0] + " is being drained"
			if err := follow(cmd.Context(), c, &pb.GetProgressRequest{Node: a[0]}, what, wait, cmd.OutOrStdout()); err != nil || wait <= 0 {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "node %s can be restarted; when it is back: keelson node uncordon %s\n", a[0], a[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "begin although volumes have their only copy there: they wait while the node is down")
	waitFlag(cmd, &wait, 10*time.Minute)
	return cmd
}

func newNodeDecommissionCommand(g *globalOptions) *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "decommission NODE", Short: "Move all copies away from a node that is going to leave",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeNodes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			if _, err := c.Upkeep.SetUpkeep(cmd.Context(), &pb.SetUpkeepRequest{Node: a[0], Upkeep: string(spec.Decommission)}); err != nil {
				return err
			}
			what := "node " + a[0] + " is being decommissioned"
			if err := follow(cmd.Context(), c, &pb.GetProgressRequest{Node: a[0]}, what, wait, cmd.OutOrStdout()); err != nil || wait <= 0 {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "node %s holds nothing any more; stop keelson server there, and then: keelson node remove %s\n", a[0], a[0])
			return nil
		},
	}
	waitFlag(cmd, &wait, moveWait)
	return cmd
}
