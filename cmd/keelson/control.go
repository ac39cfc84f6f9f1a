package main

import (
	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/server"
)

func newControlCommand(g *globalOptions) *cobra.Command {
	return newChildCommand(g, "control", "Run this node's API and reconcilers", server.RunControl)
}
