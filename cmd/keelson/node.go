package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

func newNodeCommand(g *globalOptions) *cobra.Command {
	return group(&cobra.Command{Use: "node", Short: "Show and manage nodes"},
		newNodeListCommand(g), newNodeShowCommand(g), newNodeCordonCommand(g, true), newNodeCordonCommand(g, false),
		newNodeDrainCommand(g), newNodeDecommissionCommand(g), newNodeRemoveCommand(g), newNodeWipeCommand(g))
}

func newNodeListCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the nodes", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runNodeList(cmd.Context(), g, o, cmd.OutOrStdout()) },
	}
	o.register(cmd)
	return cmd
}

func runNodeList(ctx context.Context, g *globalOptions, o outputFlag, w io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	r, err := c.Nodes.ListNodes(ctx, &pb.ListNodesRequest{})
	if err != nil {
		return err
	}
	return o.print(w, plainList(r.Nodes), func(w io.Writer) { nodeTable(w, r.Nodes) })
}

func nodeTable(w io.Writer, nodes []*pb.Node) {
	table(w, "NODE STATE ROLES ZONE ADDRESS VERSION", func(row func(...any)) {
		for _, n := range nodes {
			row(n.Name, nodeState(n), strings.Join(n.Roles, ","), n.Zone, n.ApiAddr, n.Version)
		}
	})
}

func nodeState(n *pb.Node) string {
	s := "alive"
	if !n.Alive {
		s = "gone"
	}
	if n.Leader {
		s += ",leader"
	}
	if n.Cordoned {
		s += ",cordoned"
	}
	if n.Unschedulable {
		s += ",unschedulable"
	}
	switch n.Upkeep {
	case string(spec.Drain):
		s += ",draining"
	case string(spec.Decommission):
		s += ",leaving"
	}
	return s
}

func newNodeShowCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	cmd := &cobra.Command{
		Use: "show NODE", Short: "Show a node", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeNodes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			return runNodeShow(cmd.Context(), g, o, a[0], cmd.OutOrStdout())
		},
	}
	o.register(cmd)
	return cmd
}

func runNodeShow(ctx context.Context, g *globalOptions, o outputFlag, name string, w io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	n, err := c.Nodes.GetNode(ctx, &pb.GetNodeRequest{Name: name})
	if err != nil {
		return err
	}
	return o.print(w, plain(n), func(w io.Writer) { nodeDetails(w, n) })
}

func nodeDetails(w io.Writer, n *pb.Node) {
	fields(w,
		"Node", n.Name, "ID", n.Id, "State", nodeState(n), "Problem", n.Problem, "Roles", strings.Join(n.Roles, ", "),
		"Zone", n.Zone, "Labels", labelsText(n.Labels), "API", n.ApiAddr, "Engine", n.EngineAddr, "Shards", n.Shards,
		"Joined", n.Joined.AsTime().Format(timeFormat), "Version", n.Version)
}

const timeFormat = "2006-01-02 15:04:05 MST"

// fields writes name and value pairs; empty values are left out.
func fields(w io.Writer, pairs ...any) {
	for i := 0; i+1 < len(pairs); i += 2 {
		if v := fmt.Sprint(pairs[i+1]); v != "" {
			fmt.Fprintf(w, "%-14s %s\n", fmt.Sprint(pairs[i])+":", v)
		}
	}
}

func newNodeCordonCommand(g *globalOptions, cordon bool) *cobra.Command {
	use, short := "cordon NODE", "Put no further replicas on a node"
	if !cordon {
		use, short = "uncordon NODE", "Let replicas be put on a node again, and end its draining or decommissioning"
	}
	return &cobra.Command{
		Use: use, Short: short, Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeNodes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			if !cordon {
				if _, err := c.Upkeep.SetUpkeep(cmd.Context(), &pb.SetUpkeepRequest{Node: a[0]}); err != nil {
					return err
				}
			}
			was, err := c.Nodes.GetNode(cmd.Context(), &pb.GetNodeRequest{Name: a[0]})
			if err != nil {
				return err
			}
			_, err = c.Nodes.CordonNode(cmd.Context(), &pb.CordonNodeRequest{Name: a[0], Cordoned: cordon})
			if err == nil && !cordon && was.Unschedulable {
				fmt.Fprintf(cmd.ErrOrStderr(), "node %s was cordoned in Kubernetes too, and stays so until: kubectl uncordon\n", a[0])
			}
			return err
		},
	}
}

func newNodeRemoveCommand(g *globalOptions) *cobra.Command {
	return &cobra.Command{
		Use: "remove NODE", Aliases: []string{"rm"}, Short: "Forget a node that is gone for good and holds nothing any more",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeNodes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			_, err = c.Nodes.RemoveNode(cmd.Context(), &pb.RemoveNodeRequest{Name: a[0]})
			return err
		},
	}
}
