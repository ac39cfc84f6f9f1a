package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/server"
	"keelson.io/keelson/internal/server/fdstore"
	"keelson.io/keelson/internal/spec"
)

// ServerOptions are the flags of server and of its children. Those that were given win over the
// configuration file.
type ServerOptions struct {
	flags  server.Config
	roles  []string
	labels []string
}

func (o *ServerOptions) register(cmd *cobra.Command) {
	d := server.DefaultConfig()
	f := cmd.Flags()
	f.StringVar(&o.flags.Node, "node", "", "name of this node (default: the host's)")
	f.StringVar(&o.flags.RunDir, "run-dir", d.RunDir, "directory of sockets")
	f.StringVar(&o.flags.Address, "address", "", "address where other nodes reach this one (default: the first of the machine)")
	f.IntVar(&o.flags.APIPort, "api-port", d.APIPort, "port of the API")
	f.IntVar(&o.flags.EnginePort, "engine-port", d.EnginePort, "port of the engine")
	f.IntVar(&o.flags.EtcdClientPort, "etcd-client-port", d.EtcdClientPort, "port of the metadata for clients")
	f.IntVar(&o.flags.EtcdPeerPort, "etcd-peer-port", d.EtcdPeerPort, "port of the metadata for its other members")
	f.StringSliceVar(&o.roles, "role", []string{"metadata", "storage"}, "roles of this node")
	f.StringVar(&o.flags.Zone, "zone", "", "zone of this node")
	f.StringArrayVar(&o.labels, "label", nil, "label key=value of this node; can be repeated")
	f.StringVar(&o.flags.ClusterName, "cluster-name", d.ClusterName, "name of a new cluster")
	f.StringVar(&o.flags.Join.URL, "join", "", "API of a node of the cluster to join: https://HOST:9500")
	f.StringVar(&o.flags.Join.Token, "token", "", "token to join with")
	f.StringVar(&o.flags.Join.TokenFile, "token-file", "", "file that has the token")
	f.IntVar(&o.flags.Engine.Shards, "shards", 0, "event loops of the engine (default: one a CPU, at most 8)")
	f.BoolVar(&o.flags.Engine.Encryption, "encryption", true, "encrypt what travels between engines")
	f.StringVar(&o.flags.Log.Level, "log-level", d.Log.Level, "debug, info, warn or error")
	f.StringVar(&o.flags.Log.Format, "log-format", d.Log.Format, "text or json")
}

// load reads the configuration file and lays the flags over it.
func (o *ServerOptions) load(cmd *cobra.Command, g *globalOptions) (server.Config, error) {
	c, err := server.LoadConfig(g.config)
	if err != nil {
		return c, usageError{err}
	}
	if g.dataDir != "" {
		c.DataDir = g.dataDir
	}
	f := &o.flags
	for name, set := range map[string]func(){
		"node": func() { c.Node = f.Node }, "run-dir": func() { c.RunDir = f.RunDir }, "address": func() { c.Address = f.Address },
		"api-port": func() { c.APIPort = f.APIPort }, "engine-port": func() { c.EnginePort = f.EnginePort },
		"etcd-client-port": func() { c.EtcdClientPort = f.EtcdClientPort }, "etcd-peer-port": func() { c.EtcdPeerPort = f.EtcdPeerPort },
		"zone": func() { c.Zone = f.Zone }, "cluster-name": func() { c.ClusterName = f.ClusterName },
		"join": func() { c.Join.URL = f.Join.URL }, "token": func() { c.Join.Token = f.Join.Token },
		"token-file": func() { c.Join.TokenFile = f.Join.TokenFile },
		"shards":     func() { c.Engine.Shards = f.Engine.Shards }, "encryption": func() { c.Engine.Encryption = f.Engine.Encryption },
		"log-level": func() { c.Log.Level = f.Log.Level }, "log-format": func() { c.Log.Format = f.Log.Format },
		"role": func() {
			c.Roles = nil
			for _, r := range o.roles {
				c.Roles = append(c.Roles, spec.Role(r))
			}
		},
	} {
		if cmd.Flags().Changed(name) {
			set()
		}
	}
	if cmd.Flags().Changed("label") {
		if c.Labels, err = spec.ParseLabels("label", o.labels); err != nil {
			return c, err
		}
	}
	if err := c.Complete(); err != nil {
		return c, usageError{err}
	}
	return c, nil
}

func newServerCommand(g *globalOptions) *cobra.Command {
	var o ServerOptions
	var check bool
	cmd := &cobra.Command{
		Use: "server", Short: "Run this node",
		Long: "Run this node: the metadata (on metadata nodes), the engine, and the API, as child processes.\n" +
			"Without --join, a node with an empty data directory begins a new cluster.",
		Example: "  keelson server\n  keelson server --join https://10.0.0.1:9500 --token K1…",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.load(cmd, g)
			if err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return fmt.Errorf("%w: keelson server makes mounts and devices: run it as root", server.ErrPermanent)
			}
			if check {
				return nil
			}
			return server.Supervise(cmd.Context(), c, childArgs())
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&check, "check", false, "only read the configuration")
	_ = cmd.Flags().MarkHidden("check")
	cmd.AddCommand(newUpgradeCommand(g))
	return cmd
}

// childArgs are this process's arguments without the word server: the children read the same ones.
func childArgs() []string {
	a := slices.Clone(os.Args[1:])
	if i := slices.Index(a, "server"); i >= 0 {
		a = slices.Delete(a, i, i+1)
	}
	return a
}

// newChildCommand is one of the processes that server runs.
func newChildCommand(g *globalOptions, use, short string, run func(context.Context, server.Config, *fdstore.Line) error) *cobra.Command {
	var o ServerOptions
	cmd := &cobra.Command{
		Use: use, Short: short, Hidden: true, Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.load(cmd, g)
			if err != nil {
				return err
			}
			return server.RunChild(cmd.Context(), c, use, run)
		},
	}
	o.register(cmd)
	return cmd
}
