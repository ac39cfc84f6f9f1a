package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// readyLimit is how long the node may take to say whether it is ready.
const readyLimit = 5 * time.Second

func newReadyCommand(g *globalOptions) *cobra.Command {
	return &cobra.Command{
		Use: "ready", Short: "Exit with 0 if this node takes work: the probe of its pod", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), readyLimit)
			defer cancel()
			c, err := g.client()
			if err != nil {
				return err
			}
			said, err := c.Page(ctx, "/readyz")
			if err != nil {
				return fmt.Errorf("this node isn't ready: %w", err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(string(said)))
			return err
		},
	}
}
