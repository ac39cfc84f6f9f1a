package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	pb "keelson.io/keelson/internal/api/keelsonv1"
)

// EventsOptions are the flags of events.
type EventsOptions struct {
	Volume   string
	Warnings bool
	output   outputFlag
}

func newEventsCommand(g *globalOptions) *cobra.Command {
	var o EventsOptions
	cmd := &cobra.Command{
		Use: "events", Short: "Show what happened lately: results of scrubs, damage that was found", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runEvents(cmd.Context(), g, o, cmd.OutOrStdout()) },
	}
	cmd.Flags().StringVar(&o.Volume, "volume", "", "only those of this volume")
	cmd.Flags().BoolVar(&o.Warnings, "warnings", false, "only those that ask for attention")
	o.output.register(cmd)
	completeFlag(cmd, "volume", completeVolumes(g))
	return cmd
}

func runEvents(ctx context.Context, g *globalOptions, o EventsOptions, w io.Writer) error {
	if err := o.output.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	r, err := c.Cluster.ListEvents(ctx, &pb.ListEventsRequest{Volume: o.Volume, Warnings: o.Warnings})
	if err != nil {
		return err
	}
	return o.output.print(w, plainList(r.Events), func(w io.Writer) {
		table(w, "TIME EVENT VOLUME NODE MESSAGE", func(row func(...any)) {
			for _, e := range r.Events {
				what := e.What
				if e.Warning {
					what = "! " + what
				}
				row(e.Time.AsTime().Format(time.DateTime), what, e.Volume, e.Node, e.Message)
			}
		})
	})
}
