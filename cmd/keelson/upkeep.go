package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

// How long the commands here wait, unless told otherwise, for what goes on in the background, and how often they look.
const (
	growWait   = time.Minute
	moveWait   = time.Hour
	upkeepPoll = 500 * time.Millisecond
)

func setReplicas(r *pb.SetVolumeRequest, text string) error {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 1 || n > spec.MaxReplicas {
		return &spec.InvalidError{Field: "replicas", Value: text, Legal: fmt.Sprintf("1 to %d", spec.MaxReplicas)}
	}
	n32 := int32(n)
	r.Replicas = &n32
	return nil
}

// waitFlag is how long a command waits.
func waitFlag(cmd *cobra.Command, wait *time.Duration, usual time.Duration) {
	cmd.Flags().DurationVar(wait, "wait", usual, "how long to wait until it is done; 0 doesn't wait, and it goes on in the background all the same")
}

// poll calls look until it says that it's done, fails, or wait is over: then the error says what it goes on with. What it says is
// told when it changes.
func poll(ctx context.Context, w io.Writer, wait time.Duration, look func() (done bool, text string, err error)) error {
	end := time.Now().Add(wait)
	told := ""
	for {
		done, text, err := look()
		if err != nil && !api.Retryable(err) {
			return err
		}
		if err != nil {
			text = err.Error()
		}
		if done || wait <= 0 {
			return nil
		}
		if text != told {
			fmt.Fprintln(w, text)
			told = text
		}
		if time.Now().After(end) {
			return fmt.Errorf("not done within %v; it goes on in the background: %s", wait, text)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(upkeepPoll):
		}
	}
}

func newVolumeResizeCommand(g *globalOptions) *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "resize NAME SIZE", Short: "Make a volume larger, while it is in use too",
		Long: "Make a volume larger, while it is in use too: SIZE is the new size, or +SIZE how much is added.\n" +
			"A file system on it is grown with resize2fs or xfs_growfs; Kubernetes does that by itself for the claims that it grows.",
		Example: "  keelson volume resize pg 20Gi\n  keelson volume resize pg +5Gi",
		Args:    args(cobra.ExactArgs(2)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			return runVolumeResize(cmd.Context(), g, a[0], a[1], wait, cmd.OutOrStdout())
		},
	}
	waitFlag(cmd, &wait, growWait)
	return cmd
}

func runVolumeResize(ctx context.Context, g *globalOptions, name, text string, wait time.Duration, w io.Writer) error {
	more, relative := strings.CutPrefix(text, "+")
	size, err := spec.ParseSize(more)
	if err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	if relative {
		v, err := c.Volumes.GetVolume(ctx, &pb.GetVolumeRequest{Name: name})
		if err != nil {
			return err
		}
		size += max(v.Size, v.GrowingTo)
	}
	v, err := c.Upkeep.ResizeVolume(ctx, &pb.ResizeVolumeRequest{Name: name, Size: size})
	if err != nil {
		return err
	}
	err = poll(ctx, w, wait, func() (bool, string, error) {
		now, err := c.Volumes.GetVolume(ctx, &pb.GetVolumeRequest{Name: name})
		if err != nil {
			return false, "", err
		}
		v = now
		return v.Size >= size, fmt.Sprintf("volume %s: its copies are being made larger%s", name, growHolds(v)), nil
	})
	if err != nil {
		return err
	}
	if v.Size < size {
		fmt.Fprintf(w, "volume %s, %s, on its way to %s\n", v.Name, spec.FormatSize(v.Size), spec.FormatSize(v.GrowingTo))
		return nil
	}
	fmt.Fprintf(w, "volume %s, %s\n", v.Name, spec.FormatSize(v.Size))
	return nil
}

// growHolds names the nodes that hold a growth up.
func growHolds(v *pb.Volume) string {
	var away []string
	for _, c := range v.Columns {
		for _, m := range c.Members {
			if !m.Alive && m.State == string(spec.InSync) {
				away = append(away, m.Node)
			}
		}
	}
	if len(away) == 0 {
		return ""
	}
	return "; it waits for nodes that are gone: " + strings.Join(away, ", ")
}

func newVolumeMoveCommand(g *globalOptions) *cobra.Command {
	var r pb.MoveReplicasRequest
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "move NAME --from NODE|POOL [--to NODE|POOL]", Short: "Move copies of a volume, while it is in use too",
		Example: "  keelson volume move pg --from n1 --to n3\n  keelson volume move pg --from 21a6c4e8f7b3d950 --to 6f8c1be0a3d94257",
		Args:    args(cobra.ExactArgs(1)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			r.Name = a[0]
			if r.From == "" && !r.Stay {
				return usageError{fmt.Errorf("say with --from where the copies of volume %s are that shall move: a node, or a pool's id", r.Name)}
			}
			return runVolumeMove(cmd.Context(), g, &r, wait, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.From, "from", "", "node, or pool, that has the copies")
	f.StringVar(&r.To, "to", "", "node, or pool, that gets them (default: the best there is)")
	f.BoolVar(&r.Stay, "stay", false, "instead: copies of a clone that are still to move to where it was asked for stay where they are")
	for _, flag := range []string{"from", "to"} {
		cmd.MarkFlagsMutuallyExclusive("stay", flag)
	}
	waitFlag(cmd, &wait, moveWait)
	completeFlag(cmd, "from", completeNodes(g))
	completeFlag(cmd, "to", completeNodes(g))
	return cmd
}

func runVolumeMove(ctx context.Context, g *globalOptions, r *pb.MoveReplicasRequest, wait time.Duration, w io.Writer) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	v, err := c.Upkeep.MoveReplicas(ctx, r)
	if err != nil {
		return err
	}
	err = poll(ctx, w, wait, func() (bool, string, error) {
		now, err := c.Volumes.GetVolume(ctx, &pb.GetVolumeRequest{Name: r.Name})
		if err != nil {
			return false, "", err
		}
		v = now
		done, text := moveState(v)
		return done, text, nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "volume %s, replicas on %s\n", v.Name, replicaNodes(v))
	return nil
}

// moveState says whether no copy of a volume is on its way, and otherwise how far it is.
func moveState(v *pb.Volume) (done bool, text string) {
	done = true
	text = "volume " + v.Name + ":"
	for _, c := range v.Columns {
		for _, m := range c.Members {
			if m.Removing {
				done = false
				text += fmt.Sprintf(" the copy on %s leaves;", m.Node)
			} else if m.State != string(spec.InSync) {
				done = false
				text += fmt.Sprintf(" the one on %s is %s", m.Node, m.State)
				if m.ResyncTotal > 0 {
					text += fmt.Sprintf(" (%d %%)", m.ResyncDone*100/m.ResyncTotal)
				}
				text += ";"
			}
		}
	}
	return done, strings.TrimSuffix(text, ";")
}

// upkeepText says how far an upkeep is, with all that it waits for.
func upkeepText(what string, p *pb.Progress) string {
	var b strings.Builder
	b.WriteString(what)
	if p.Copies > 0 {
		fmt.Fprintf(&b, ": %d copies still there", p.Copies)
		if p.Bytes > 0 {
			fmt.Fprintf(&b, ", %s to copy of those on their way", spec.FormatSize(p.Bytes))
		}
	}
	for _, h := range p.Holds {
		b.WriteString("\n  ")
		if h.Volume != "" {
			b.WriteString("volume " + h.Volume + ": ")
		}
		b.WriteString(h.Why)
	}
	return b.String()
}

// follow shows the progress of an upkeep until it is done or wait is over. One that only waits for what doesn't pass by itself
// ends at once.
func follow(ctx context.Context, c *api.Client, r *pb.GetProgressRequest, what string, wait time.Duration, w io.Writer) error {
	return poll(ctx, w, wait, func() (bool, string, error) {
		p, err := c.Upkeep.GetProgress(ctx, r)
		if err != nil {
			return false, "", err
		}
		text := upkeepText(what, p)
		if p.Upkeep == "" {
			return false, "", errors.New(what + " was called off")
		}
		if stuck(p) {
			return false, "", fmt.Errorf("%s needs something to be done first", text)
		}
		return p.Done, text, nil
	})
}

// stuck reports whether everything that is left needs a person.
func stuck(p *pb.Progress) bool {
	n := 0
	for _, h := range p.Holds {
		if !h.Stuck {
			return false
		}
		n++
	}
	return n > 0 && int(p.Copies) <= n
}

// sizeText is a volume's size, and what it is on its way to.
func sizeText(v *pb.Volume) string {
	text := spec.FormatSize(v.Size)
	if v.GrowingTo > 0 {
		text += ", on its way to " + spec.FormatSize(v.GrowingTo)
	}
	return text
}
