package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
)

// AuditOptions are the flags of audit.
type AuditOptions struct {
	Node   string
	Since  lifetime
	Limit  int
	output outputFlag
}

func newAuditCommand(g *globalOptions) *cobra.Command {
	var o AuditOptions
	cmd := &cobra.Command{
		Use: "audit", Short: "Show who changed what through a node's API", Args: args(cobra.NoArgs),
		Example: "  keelson audit --since 24h\n  keelson audit --node n2 -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runAudit(cmd.Context(), g, o, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&o.Node, "node", "", "node whose audit log is shown (default: the one that is asked)")
	cmd.Flags().Var(&o.Since, "since", "not older than that, such as 24h or 7d (default: all that is kept)")
	cmd.Flags().IntVar(&o.Limit, "limit", 1000, "at most so many of the newest")
	o.output.register(cmd)
	return cmd
}

func runAudit(ctx context.Context, g *globalOptions, o AuditOptions, w io.Writer) error {
	if err := o.output.check(); err != nil {
		return err
	}
	if o.Limit < 1 || o.Limit > 10000 {
		return usageError{fmt.Errorf("--limit %d is not between 1 and 10000", o.Limit)}
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	req := &pb.ListAuditRequest{Node: o.Node, Limit: int32(o.Limit)}
	if o.Since > 0 {
		req.Since = timestamppb.New(time.Now().Add(-time.Duration(o.Since)))
	}
	r, err := c.Access.ListAudit(ctx, req)
	if err != nil {
		return err
	}
	return o.output.print(w, plainList(r.Entries), func(w io.Writer) {
		table(w, "TIME CALLER REMOTE CALL OBJECT OUTCOME", func(row func(...any)) {
			for _, e := range ended(r.Entries) {
				row(e.Time.AsTime().Format(timeFormat), e.Caller, e.Remote, e.Call, e.Object, e.Outcome)
			}
		})
	})
}

// ended leaves out the entries that a call began if the one is there that says how it ended.
func ended(es []*pb.AuditEntry) (out []*pb.AuditEntry) {
	count := map[string]int{}
	for _, e := range es {
		count[e.Id]++
	}
	for _, e := range es {
		if count[e.Id]--; count[e.Id] == 0 {
			out = append(out, e)
		}
	}
	return out
}
