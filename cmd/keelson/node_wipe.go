package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/server"
)

func newNodeWipeCommand(g *globalOptions) *cobra.Command {
	var yes, pools bool
	cmd := &cobra.Command{
		Use: "wipe", Short: "Remove Keelson from the machine on which this is run",
		Long: `Remove Keelson from the machine on which this is run: its identity, its part of the metadata and its mounts. It only says what
it would do until it is told --yes. What is in the pools is destroyed only with --destroy-pools as well.
Stop keelson server first, and make sure that the node was decommissioned: nobody is asked here whether other copies exist.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := server.LoadConfig(g.config)
			if err != nil {
				return usageError{err}
			}
			if g.dataDir != "" {
				cfg.DataDir = g.dataDir
			}
			w, err := server.Inspect(cfg)
			if err != nil {
				return err
			}
			if pools && !yes {
				return usageError{fmt.Errorf("--destroy-pools needs --yes as well: it destroys what is in the pools of this node")}
			}
			if !yes {
				wipePlan(cmd.OutOrStdout(), w)
				return nil
			}
			return server.Wipe(cmd.Context(), cfg, pools, cfg.Logger("wipe"))
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	cmd.Flags().BoolVar(&pools, "destroy-pools", false, "destroy what is in the pools too; needs --yes")
	return cmd
}

func wipePlan(w io.Writer, x server.Wiped) {
	fmt.Fprintf(w, "With --yes, everything in %s and %s is removed: this node's identity and its part of the metadata.\n", x.DataDir, x.RunDir)
	for _, p := range x.Pools {
		what := "device " + p.Device
		if p.File != "" {
			what = "file " + p.File
		}
		fmt.Fprintf(w, "Pool %s, %s, is unmounted; with --destroy-pools as well, what is in it is destroyed.\n", p.ID, what)
	}
	fmt.Fprintln(w, "Nothing was changed.")
}
