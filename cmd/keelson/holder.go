package main

import (
	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/server"
)

func newHolderCommand(g *globalOptions) *cobra.Command {
	var o ServerOptions
	cmd := &cobra.Command{
		Use: "holder", Short: "Keep the descriptors of devices for a supervisor that dies", Hidden: true, Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.load(cmd, g)
			if err != nil {
				return err
			}
			return server.RunHolder(cmd.Context(), c)
		},
	}
	o.register(cmd)
	return cmd
}
