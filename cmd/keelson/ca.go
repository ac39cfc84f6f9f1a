package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
)

func newCACommand(g *globalOptions) *cobra.Command {
	return group(&cobra.Command{Use: "ca", Short: "Show and replace the CA that signs the nodes' certificates"},
		newCAShowCommand(g), newCARotateCommand(g))
}

func newCAShowCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	cmd := &cobra.Command{
		Use: "show", Short: "Show the CA, how far a change to another one is, and which nodes it waits for", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			r, err := c.CA.GetCA(cmd.Context(), &pb.GetCARequest{})
			if err != nil {
				return err
			}
			return printCA(cmd.OutOrStdout(), o, r)
		},
	}
	o.register(cmd)
	return cmd
}

// phaseText says what happens in a phase.
var phaseText = map[string]string{
	"":       "no change is under way",
	"trust":  "1 of 3: nodes come to trust the new CA",
	"issue":  "2 of 3: nodes get certificates of the new CA",
	"retire": "3 of 3: nodes cease to trust the old CA",
}

func printCA(w io.Writer, o outputFlag, r *pb.CAStatus) error {
	return o.print(w, plain(r), func(w io.Writer) {
		fmt.Fprintf(w, "CA     %s, until %s\n", short(r.Current), r.Until.AsTime().Format("2006-01-02"))
		fmt.Fprintf(w, "phase  %s\n", phaseText[r.Phase])
		if r.Phase != "" {
			fmt.Fprintf(w, "new    %s\nbegun  %s\n", short(r.Next), r.Begun.AsTime().Format(time.RFC3339))
		}
		if r.KeepOld != nil {
			fmt.Fprintf(w, "the old CA stays trusted until %s\n", r.KeepOld.AsTime().Format(time.RFC3339))
		}
		if len(r.Without) > 0 {
			fmt.Fprintf(w, "left out: %s\n", strings.Join(r.Without, ", "))
		}
		fmt.Fprintln(w)
		table(w, "NODE STATE CERTIFICATE TRUSTS WAITS", func(row func(...any)) {
			for _, n := range r.Nodes {
				state := "alive"
				if !n.Alive {
					state = "gone"
				}
				var trusts []string
				for _, h := range n.Trusts {
					trusts = append(trusts, short(h))
				}
				row(n.Node, state, short(n.Issuer), strings.Join(trusts, ","), n.Waits)
			}
		})
	})
}

// short is how tables name a CA: by the beginning of its hash.
func short(hash string) string { return hash[:min(len(hash), 12)] }

// CARotateOptions are how the CA is changed.
type CARotateOptions struct {
	Without []string
	KeepOld lifetime
	Wait    time.Duration
	Output  outputFlag
}

func newCARotateCommand(g *globalOptions) *cobra.Command {
	var o CARotateOptions
	cmd := &cobra.Command{
		Use: "rotate", Short: "Replace the CA, while everything runs; or, with --without, have a change that is under way go on without a node",
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runCARotate(cmd.Context(), g, o, cmd.Flags().Changed("keep-old"), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringSliceVar(&o.Without, "without", nil, "nodes that are gone and aren't waited for: they need a new join token if they come back")
	cmd.Flags().Var(&o.KeepOld, "keep-old", "for how long at least the old CA stays trusted, such as 7d: tokens that were made before name it")
	waitFlag(cmd, &o.Wait, 0)
	o.Output.register(cmd)
	return cmd
}

// caPoll is how often the progress is asked for.
const caPoll = time.Second

func runCARotate(ctx context.Context, g *globalOptions, o CARotateOptions, keep bool, w io.Writer) error {
	if err := o.Output.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	q := &pb.RotateCARequest{Without: o.Without}
	if keep {
		q.KeepOld = durationpb.New(time.Duration(o.KeepOld))
	}
	r, err := c.CA.RotateCA(ctx, q)
	if err != nil {
		return err
	}
	for began := time.Now(); r.Phase != "" && time.Since(began) < o.Wait; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(caPoll):
		}
		// A node that gets a new certificate, or whose member of the metadata starts anew, may not answer for a moment.
		if now, err := c.CA.GetCA(ctx, &pb.GetCARequest{}); err == nil {
			r = now
		}
	}
	if err := printCA(w, o.Output, r); err != nil {
		return err
	}
	if o.Wait > 0 && r.Phase != "" {
		return fmt.Errorf("the change isn't done after %s; it goes on by itself, and `keelson ca show` says how far it is", o.Wait)
	}
	return nil
}
