package main

import (
	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/server"
)

func newPrepareCommand(g *globalOptions) *cobra.Command {
	return newChildCommand(g, "prepare", "Prepare the data directory", server.RunPrepare)
}
