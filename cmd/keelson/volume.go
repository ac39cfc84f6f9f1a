package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

func newVolumeCommand(g *globalOptions) *cobra.Command {
	return group(&cobra.Command{Use: "volume", Aliases: []string{"vol"}, Short: "Create, attach and show volumes"},
		newVolumeCreateCommand(g), newVolumeListCommand(g), newVolumeShowCommand(g),
		newVolumeAttachCommand(g), newVolumeDetachCommand(g), newVolumeForceOnlineCommand(g), newVolumeScrubCommand(g), newVolumeSetCommand(g), newVolumeImportCommand(g), newVolumeExportCommand(g), newVolumeResizeCommand(g), newVolumeMoveCommand(g), newVolumeDeleteCommand(g))
}

// defaultWait is how long commands wait for what goes on in the background.
const defaultWait = 30 * time.Second

// VolumeCreateOptions are the flags of volume create.
type VolumeCreateOptions struct {
	Size, Media       string
	Replicas, Columns int32
	ZoneSpread        bool
	NodeSelector      []string
	Nodes, Zones      []string
	FromVolume        string
	FromSnapshot      string
	Encrypt           bool
	// where and counted say whether anything is given of where the copies shall lie, and how many.
	where, counted bool
	output         outputFlag
}

func newVolumeCreateCommand(g *globalOptions) *cobra.Command {
	var o VolumeCreateOptions
	set := settings{}
	cmd := &cobra.Command{
		Use: "create NAME --size SIZE", Short: "Create a volume",
		Example: "  keelson volume create pg --size 4Gi --replicas 2",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			policy, _, err := set.request(cmd, a[0])
			if err != nil {
				return err
			}
			for _, flag := range []string{"zone-spread", "node-selector", "media", "nodes", "zones"} {
				o.where = o.where || cmd.Flags().Changed(flag)
			}
			o.counted = cmd.Flags().Changed("replicas")
			return runVolumeCreate(cmd.Context(), g, o, policy, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Size, "size", "", "size, such as 4Gi; a multiple of 4096 bytes")
	f.Int32Var(&o.Replicas, "replicas", spec.DefaultReplicas, "number of copies")
	f.Int32Var(&o.Columns, "columns", 1, "number of stripes, each with its own copies")
	f.BoolVar(&o.ZoneSpread, "zone-spread", false, "put the copies into different zones, or fail")
	f.StringArrayVar(&o.NodeSelector, "node-selector", nil, "only nodes with the label key=value; can be repeated")
	f.StringVar(&o.Media, "media", "", "only pools of this media: nvme, ssd or hdd")
	f.StringSliceVar(&o.Nodes, "nodes", nil, "only these nodes, separated by ','")
	f.StringSliceVar(&o.Zones, "zones", nil, "only nodes of these zones, separated by ','")
	f.StringVar(&o.FromVolume, "from-volume", "", "make it a clone of what this volume holds now")
	f.StringVar(&o.FromSnapshot, "from-snapshot", "", "make it a clone of a snapshot, VOLUME/SNAPSHOT")
	f.BoolVar(&o.Encrypt, "encrypt", false, "encrypt its data on all copies; a clone is encrypted if its origin is")
	cmd.MarkFlagsMutuallyExclusive("from-volume", "from-snapshot")
	for _, from := range []string{"from-volume", "from-snapshot"} {
		cmd.MarkFlagsMutuallyExclusive(from, "columns")
		cmd.MarkFlagsMutuallyExclusive(from, "encrypt")
	}
	set.register(cmd, true)
	o.output.register(cmd)
	completeFlag(cmd, "media", words("nvme", "ssd", "hdd"))
	completeFlag(cmd, "nodes", completeNodes(g))
	return cmd
}

// runVolumeCreate makes a volume; policy has its name, and what is given of what volume set can change.
func runVolumeCreate(ctx context.Context, g *globalOptions, o VolumeCreateOptions, policy *pb.SetVolumeRequest, w io.Writer) error {
	name := policy.Name
	if err := o.output.check(); err != nil {
		return err
	}
	if o.FromVolume != "" || o.FromSnapshot != "" {
		return runVolumeClone(ctx, g, o, policy, w)
	}
	if o.Size == "" {
		return usageError{fmt.Errorf("volume %s needs a size: add --size, such as --size 4Gi", name)}
	}
	size, err := spec.ParseSize(o.Size)
	if err != nil {
		return err
	}
	where, err := o.whereProto()
	if err != nil {
		return err
	}
	// Here too, as 0 is "the default" in the API, and not what somebody means who types it.
	asked := spec.Volume{Name: name, Size: size, Replicas: int(o.Replicas), Columns: int(o.Columns), Media: spec.Media(o.Media)}
	if err := asked.Validate(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	r := &pb.CreateVolumeRequest{
		Name: name, Size: size, Replicas: o.Replicas, Columns: o.Columns,
		ZoneSpread: where.ZoneSpread, NodeSelector: where.NodeSelector, Media: where.Media, Topology: where.Topology,
		Limits: policy.Limits, Placement: policy.Placement, TrimEvery: policy.TrimEvery, Encrypt: o.Encrypt,
	}
	v, err := c.Volumes.CreateVolume(ctx, r)
	if err != nil {
		return err
	}
	return o.output.print(w, plain(v), func(w io.Writer) {
		fmt.Fprintf(w, "volume %s, %s, replicas on %s\n", v.Name, spec.FormatSize(v.Size), replicaNodes(v))
	})
}

func newVolumeListCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the volumes", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runVolumeList(cmd.Context(), g, o, cmd.OutOrStdout())
		},
	}
	o.register(cmd)
	return cmd
}

func runVolumeList(ctx context.Context, g *globalOptions, o outputFlag, w io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	r, err := c.Volumes.ListVolumes(ctx, &pb.ListVolumesRequest{})
	if err != nil {
		return err
	}
	return o.print(w, plainList(r.Volumes), func(w io.Writer) { volumeTable(w, r.Volumes) })
}

func newVolumeShowCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show a volume: its replicas, their states, and why they are where they are",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			return runVolumeShow(cmd.Context(), g, o, a[0], cmd.OutOrStdout())
		},
	}
	o.register(cmd)
	return cmd
}

func runVolumeShow(ctx context.Context, g *globalOptions, o outputFlag, name string, w io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	v, err := c.Volumes.GetVolume(ctx, &pb.GetVolumeRequest{Name: name})
	if err != nil {
		return err
	}
	return o.print(w, plain(v), func(w io.Writer) { volumeDetails(w, v) })
}

// VolumeAttachOptions are the flags of volume attach and force-online.
type VolumeAttachOptions struct {
	Node, Frontend string
	Wait           time.Duration
	AcceptLoss     bool
	output         outputFlag
}

func (o *VolumeAttachOptions) register(cmd *cobra.Command, g *globalOptions) {
	f := cmd.Flags()
	f.StringVar(&o.Node, "node", "", "node to attach it to (default: the one that is asked)")
	f.StringVar(&o.Frontend, "frontend", spec.FrontendFUSE, "fuse (a loop device) or nbd (a unix socket)")
	f.DurationVar(&o.Wait, "wait", defaultWait, "how long to wait for the lease of an unreachable holder to end, and then for the replicas")
	o.output.register(cmd)
	completeFlag(cmd, "node", completeNodes(g))
	completeFlag(cmd, "frontend", words(spec.FrontendFUSE, spec.FrontendNBD))
}

func newVolumeAttachCommand(g *globalOptions) *cobra.Command {
	var o VolumeAttachOptions
	cmd := &cobra.Command{
		Use: "attach NAME", Short: "Attach a volume to a node, and print the path of its device",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			return runVolumeAttach(cmd.Context(), g, o, a[0], cmd.OutOrStdout())
		},
	}
	o.register(cmd, g)
	return cmd
}

func newVolumeForceOnlineCommand(g *globalOptions) *cobra.Command {
	var o VolumeAttachOptions
	cmd := &cobra.Command{
		Use: "force-online NAME --accept-loss", Short: "Attach a volume with the replicas there are, though acknowledged writes may be missing",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			if !o.AcceptLoss {
				return usageError{fmt.Errorf("forcing volume %s online may take it back in time; if that is meant, add --accept-loss", a[0])}
			}
			return runVolumeAttach(cmd.Context(), g, o, a[0], cmd.OutOrStdout())
		},
	}
	o.register(cmd, g)
	cmd.Flags().BoolVar(&o.AcceptLoss, "accept-loss", false, "yes, acknowledged writes may be lost; it is recorded")
	return cmd
}

func runVolumeAttach(ctx context.Context, g *globalOptions, o VolumeAttachOptions, name string, w io.Writer) error {
	if err := o.output.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	r, err := attachPatiently(ctx, c, o, &pb.AttachVolumeRequest{Name: name, Node: o.Node, Frontend: o.Frontend, AcceptLoss: o.AcceptLoss})
	if err != nil {
		return err
	}
	return o.output.print(w, plain(r), func(w io.Writer) { fmt.Fprintln(w, r.Device) })
}

// attachPatiently asks again while the answer is "not yet", and says what it waits for.
func attachPatiently(ctx context.Context, c *api.Client, o VolumeAttachOptions, r *pb.AttachVolumeRequest) (*pb.AttachVolumeResponse, error) {
	began := time.Now()
	said := ""
	for {
		r.Wait = durationpb.New(max(o.Wait-time.Since(began), time.Second))
		resp, err := c.Volumes.AttachVolume(ctx, r)
		if !api.Retryable(err) || time.Since(began) > o.Wait {
			return resp, err
		}
		if m := message(err); m != said {
			fmt.Fprintf(os.Stderr, "keelson: %s; waiting up to %s\n", m, o.Wait)
			said = m
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// VolumeDetachOptions are the flags of volume detach.
type VolumeDetachOptions struct{ Wait time.Duration }

func newVolumeDetachCommand(g *globalOptions) *cobra.Command {
	var o VolumeDetachOptions
	cmd := &cobra.Command{
		Use: "detach NAME", Short: "Detach a volume from its node",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			_, err = c.Volumes.DetachVolume(cmd.Context(), &pb.DetachVolumeRequest{Name: a[0], Wait: durationpb.New(o.Wait)})
			return err
		},
	}
	cmd.Flags().DurationVar(&o.Wait, "wait", defaultWait, "how long to wait until everything written is durable on all replicas")
	return cmd
}

// VolumeDeleteOptions are the flags of volume delete.
type VolumeDeleteOptions struct{ Wait time.Duration }

func newVolumeDeleteCommand(g *globalOptions) *cobra.Command {
	var o VolumeDeleteOptions
	cmd := &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Delete a detached volume and its data",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error { return runVolumeDelete(cmd.Context(), g, o, a[0]) },
	}
	cmd.Flags().DurationVar(&o.Wait, "wait", defaultWait, "how long to wait until its replicas are gone")
	return cmd
}

func runVolumeDelete(ctx context.Context, g *globalOptions, o VolumeDeleteOptions, name string) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	if _, err := c.Volumes.DeleteVolume(ctx, &pb.DeleteVolumeRequest{Name: name}); err != nil {
		return err
	}
	for began := time.Now(); time.Since(began) < o.Wait; {
		v, err := c.Volumes.GetVolume(ctx, &pb.GetVolumeRequest{Name: name})
		switch {
		case connect.CodeOf(err) == connect.CodeNotFound:
			return nil
		case err != nil:
			return err
		case !v.Deleting: // another one by that name
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	fmt.Fprintf(os.Stderr, "keelson: volume %s is marked as deleted; it goes when the nodes of its replicas are all there\n", name)
	return nil
}
