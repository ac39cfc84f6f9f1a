package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

func newPoolCommand(g *globalOptions) *cobra.Command {
	return group(&cobra.Command{Use: "pool", Short: "Show and manage pools"},
		newPoolAddCommand(g), newPoolListCommand(g), newPoolShowCommand(g),
		newPoolExpandCommand(g), newPoolDrainCommand(g), newPoolRemoveCommand(g))
}

// PoolAddOptions are the flags of pool add.
type PoolAddOptions struct {
	Device, File, Size, Media, Node string
	Labels                          []string
	Wipe                            bool
	output                          outputFlag
}

func newPoolAddCommand(g *globalOptions) *cobra.Command {
	var o PoolAddOptions
	cmd := &cobra.Command{
		Use:   "add --device PATH | --file PATH --size SIZE",
		Short: "Make a pool of a device or a file of a node",
		Example: `  keelson pool add --device /dev/disk/by-id/nvme-…
  keelson pool add --file /srv/keelson.img --size 10G --label rack=7`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runPoolAdd(cmd.Context(), g, o, cmd.OutOrStdout()) },
	}
	f := cmd.Flags()
	f.StringVar(&o.Device, "device", "", "block device, taken whole")
	f.StringVar(&o.File, "file", "", "file to make, behind a loop device")
	f.StringVar(&o.Size, "size", "", "size of the file, such as 10Gi")
	f.StringVar(&o.Media, "media", "", "nvme, ssd or hdd (default: found out)")
	f.StringArrayVar(&o.Labels, "label", nil, "label key=value; can be repeated")
	f.StringVar(&o.Node, "node", "", "node that has the device or file (default: the one that is asked)")
	f.BoolVar(&o.Wipe, "wipe", false, "overwrite what is on the device or file")
	o.output.register(cmd)
	completeFlag(cmd, "media", words("nvme", "ssd", "hdd"))
	completeFlag(cmd, "node", completeNodes(g))
	return cmd
}

func runPoolAdd(ctx context.Context, g *globalOptions, o PoolAddOptions, w io.Writer) error {
	if err := o.output.check(); err != nil {
		return err
	}
	r := &pb.AddPoolRequest{Node: o.Node, Device: o.Device, Media: o.Media, Wipe: o.Wipe}
	var err error
	switch {
	case (o.Device == "") == (o.File == ""):
		return usageError{errors.New("give one of --device and --file")}
	case o.File != "" && o.Size == "":
		return usageError{errors.New("--file needs --size")}
	case o.Device != "" && o.Size != "":
		return usageError{errors.New("--size is only for --file; a device is taken whole")}
	case o.File != "":
		if r.Size, err = spec.ParseSize(o.Size); err != nil {
			return err
		}
		if r.File, err = filepath.Abs(o.File); err != nil {
			return err
		}
	}
	if r.Labels, err = spec.ParseLabels("label", o.Labels); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	p, err := c.Pools.AddPool(ctx, r)
	if err != nil {
		return err
	}
	return o.output.print(w, plain(p), func(w io.Writer) {
		fmt.Fprintf(w, "pool %s on %s, %s, %s\n", p.Id, p.Node, spec.FormatSize(p.Capacity), p.Media)
	})
}

func newPoolListCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the pools", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runPoolList(cmd.Context(), g, o, cmd.OutOrStdout()) },
	}
	o.register(cmd)
	return cmd
}

func runPoolList(ctx context.Context, g *globalOptions, o outputFlag, w io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	r, err := c.Pools.ListPools(ctx, &pb.ListPoolsRequest{})
	if err != nil {
		return err
	}
	return o.print(w, plainList(r.Pools), func(w io.Writer) { poolTable(w, r.Pools) })
}

func poolTable(w io.Writer, pools []*pb.Pool) {
	table(w, "POOL NODE MEDIA CAPACITY USED PROVISIONED REPLICAS STATE", func(row func(...any)) {
		for _, p := range pools {
			used, state := "?", "offline"
			if p.Live {
				used, state = spec.FormatSize(p.Used), "online"
			}
			if p.Draining {
				state += ",draining"
			}
			row(p.Id, p.Node, p.Media, spec.FormatSize(p.Capacity), used, spec.FormatSize(p.Provisioned), p.Replicas, state)
		}
	})
}

func newPoolShowCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	cmd := &cobra.Command{
		Use: "show POOL", Short: "Show a pool", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completePools(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			return runPoolShow(cmd.Context(), g, o, a[0], cmd.OutOrStdout())
		},
	}
	o.register(cmd)
	return cmd
}

func runPoolShow(ctx context.Context, g *globalOptions, o outputFlag, id string, w io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	p, err := c.Pools.GetPool(ctx, &pb.GetPoolRequest{Id: id})
	if err != nil {
		return err
	}
	return o.print(w, plain(p), func(w io.Writer) { poolDetails(w, p) })
}

func poolDetails(w io.Writer, p *pb.Pool) {
	used := "?"
	if p.Live {
		used = fmt.Sprintf("%s (%d %%)", spec.FormatSize(p.Used), p.Used*100/max(1, p.Capacity))
	}
	fields(w, "Pool", p.Id, "Node", p.Node, "Device", p.Device, "File", p.File, "Media", p.Media, "Labels", labelsText(p.Labels),
		"Capacity", spec.FormatSize(p.Capacity), "Reserve", spec.FormatSize(p.Reserve), "Used", used,
		"Provisioned", spec.FormatSize(p.Provisioned), "Replicas", p.Replicas, "Problem", p.Problem,
		"Created", p.Created.AsTime().Format(timeFormat))
}
