package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/server"
)

func newRecoverCommand(g *globalOptions) *cobra.Command {
	var o server.RecoverOptions
	var yes bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "recover", Short: "Make new metadata from what this node has, after most members were lost for good",
		Long: `Make new metadata from what this node has, after most members were lost for good. Run it as root on one node with the role metadata. It
only says what it would do until it is told --yes, and refuses while the metadata has its quorum.

Volumes stay attached. What this node has may be older than what was done last: so until every node has said what it has of each volume,
nobody attaches a volume anew or changes its copies. Nodes that are gone for good can't say it: name them with --lost, also later, with
"keelson recover lost NODE...".`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := ownConfig(g)
			if err != nil {
				return err
			}
			p, err := server.PlanRecovery(cmd.Context(), cfg, o)
			if errors.Is(err, server.ErrQuorum) {
				return codedError{err, exitConflict}
			}
			if errors.Is(err, server.ErrNothingToRecover) {
				return codedError{err, exitNotFound}
			}
			if err != nil {
				return err
			}
			recoverPlan(cmd.OutOrStdout(), p, yes)
			if !yes {
				return nil
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			served, err := server.Recover(ctx, cfg, p)
			if err != nil {
				return codedError{err, exitUnavailable}
			}
			if !served {
				fmt.Fprintln(cmd.OutOrStdout(), "keelson server doesn't run on this node: the metadata is recovered when it starts.")
				return nil
			}
			fmt.Fprintln(cmd.OutOrStdout(), "The metadata serves again. `keelson status` says what is waited for.")
			return nil
		},
	}
	cmd.Flags().StringVar(&o.Snapshot, "snapshot", "", "take the state from this file; \"newest\" is the newest snapshot on this node's pools (default: this node's own copy, or else the newest snapshot)")
	cmd.Flags().StringArrayVar(&o.Lost, "lost", nil, "a node that is gone for good: what it has isn't waited for (repeat for more)")
	cmd.Flags().BoolVar(&o.AlthoughAlive, "although-alive", false, "go back to an older state although the metadata has its quorum; needs --yes as well")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	cmd.Flags().DurationVar(&wait, "wait", time.Minute, "how long to wait until the metadata serves")
	cmd.AddCommand(newRecoverLostCommand(g))
	return cmd
}

func newRecoverLostCommand(g *globalOptions) *cobra.Command {
	return &cobra.Command{
		Use: "lost NODE...", Short: "Say of nodes that they are gone for good, after the metadata was recovered",
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, nodes []string) error {
			cfg, err := ownConfig(g)
			if err != nil {
				return err
			}
			if err := server.DeclareLost(cmd.Context(), cfg, nodes); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Not waited for any more: %s. Never start them again with what they have: wipe them first.\n", strings.Join(nodes, ", "))
			return nil
		},
	}
}

// ownConfig is the configuration of the node on which the command runs.
func ownConfig(g *globalOptions) (server.Config, error) {
	cfg, err := server.LoadConfig(g.config)
	if err != nil {
		return cfg, usageError{err}
	}
	if g.dataDir != "" {
		cfg.DataDir = g.dataDir
	}
	if err := cfg.Complete(); err != nil {
		return cfg, usageError{err}
	}
	return cfg, nil
}

func recoverPlan(w io.Writer, p server.RecoverPlan, yes bool) {
	verb := "becomes"
	if !yes {
		verb = "would become"
	}
	age := time.Since(p.StateOf).Round(time.Second)
	fmt.Fprintf(w, "Node %s %s the only member of the metadata, with the state of %s, last changed %s (%s ago).\n",
		p.Node, verb, p.From, p.StateOf.Format(time.RFC3339), age)
	if len(p.Members) > 0 {
		fmt.Fprintf(w, "Given up: what the members at %s have. If one of them comes back it joins again, without what it had.\n", strings.Join(p.Members, ", "))
	}
	if len(p.Lost) > 0 {
		fmt.Fprintf(w, "Declared lost for good: %s. Never start them again with what they have: wipe them first.\n", strings.Join(p.Lost, ", "))
	}
	if !yes {
		fmt.Fprintln(w, "Nothing was changed; --yes does it.")
	}
}
