package main

import "github.com/spf13/cobra"

// newGuardCommand is what the pod runs that stands on a node with a last copy, so that a drain waits: nothing.
func newGuardCommand() *cobra.Command {
	return &cobra.Command{
		Use: "guard", Short: "Do nothing until told to end: a pod that holds up the drain of a node", Hidden: true, Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			<-cmd.Context().Done()
			return nil
		},
	}
}
