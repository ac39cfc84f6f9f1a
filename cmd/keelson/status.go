package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	pb "keelson.io/keelson/internal/api/keelsonv1"
)

// StatusOptions are the flags of status.
type StatusOptions struct {
	Watch  bool
	output outputFlag
}

func newStatusCommand(g *globalOptions) *cobra.Command {
	var o StatusOptions
	cmd := &cobra.Command{
		Use: "status", Short: "Show health, nodes, pools, volumes and resync progress at a glance", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runStatus(cmd.Context(), g, o, cmd.OutOrStdout()) },
	}
	cmd.Flags().BoolVarP(&o.Watch, "watch", "w", false, "show it again every second, until interrupted")
	o.output.register(cmd)
	return cmd
}

func runStatus(ctx context.Context, g *globalOptions, o StatusOptions, w io.Writer) error {
	if err := o.output.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	for {
		r, err := c.Cluster.Status(ctx, &pb.StatusRequest{})
		if err != nil && !o.Watch {
			return err
		}
		if o.Watch && o.output.format == "table" {
			fmt.Fprint(w, "\033[H\033[2J")
		}
		if err != nil {
			fmt.Fprintln(w, message(err))
		} else if err := o.output.print(w, plain(r), func(w io.Writer) { statusText(w, r) }); err != nil {
			return err
		}
		if !o.Watch {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func statusText(w io.Writer, r *pb.StatusResponse) {
	alive, online := 0, 0
	for _, n := range r.Nodes {
		if n.Alive {
			alive++
		}
	}
	for _, p := range r.Pools {
		if p.Live {
			online++
		}
	}
	if len(r.Nodes) == 0 {
		fmt.Fprintln(w, r.Health)
	} else {
		fmt.Fprintf(w, "%s  %s\n", r.ClusterName, r.Health)
		fmt.Fprintf(w, "%d of %d nodes alive, %d of %d pools online, %d volumes\n", alive, len(r.Nodes), online, len(r.Pools), len(r.Volumes))
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "! %s\n", p)
	}
	section := func(n int, print func()) {
		if n > 0 {
			fmt.Fprintln(w)
			print()
		}
	}
	section(len(r.Nodes), func() { nodeTable(w, r.Nodes) })
	section(len(r.Metadata), func() { metadataTable(w, r.Metadata) })
	section(len(r.Pools), func() { poolTable(w, r.Pools) })
	section(len(r.Volumes), func() { volumeTable(w, r.Volumes) })
}

func metadataTable(w io.Writer, ms []*pb.MetadataMember) {
	table(w, "METADATA STATE URL", func(row func(...any)) {
		for _, m := range ms {
			state := "voter"
			if m.Learner {
				state = "learner"
			}
			if !m.Healthy {
				state += ",gone"
			}
			row(m.Name, state, m.ClientUrl)
		}
	})
}
