package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/server"
)

func newUpgradeCommand(g *globalOptions) *cobra.Command {
	var binary string
	cmd := &cobra.Command{
		Use: "upgrade", Short: "Have the node on this machine go on with another binary",
		Long: "Have the node on this machine go on with another binary: it is put in the place of the one that runs, and the\n" +
			"node's processes are replaced one after another. Attached volumes stay attached; what uses them waits for a moment.\n" +
			"If the new processes don't come up, the node goes back to the old binary.",
		Example: "  keelson server upgrade --binary ./keelson",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := server.LoadConfig(g.config)
			if err != nil {
				return usageError{err}
			}
			if g.dataDir != "" {
				c.DataDir = g.dataDir
			}
			if err := c.Complete(); err != nil {
				return usageError{err}
			}
			v, err := server.Upgrade(cmd.Context(), c, binary)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "node %s runs version %s\n", c.Node, v)
			return nil
		},
	}
	cmd.Flags().StringVar(&binary, "binary", "", "the new binary (default: the one that is at the old one's path now)")
	return cmd
}
