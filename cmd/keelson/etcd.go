package main

import (
	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/server"
)

func newEtcdCommand(g *globalOptions) *cobra.Command {
	return newChildCommand(g, "etcd", "Run this node's member of the metadata", server.RunEtcd)
}
