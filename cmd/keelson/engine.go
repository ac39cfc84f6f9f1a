package main

import (
	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/server"
)

func newEngineCommand(g *globalOptions) *cobra.Command {
	return newChildCommand(g, "engine", "Run this node's data plane", server.RunEngine)
}
