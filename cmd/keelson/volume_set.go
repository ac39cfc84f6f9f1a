package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

// settable is something of a volume that volume set changes, and volume create can begin with.
type settable struct {
	flag, usage string
	words       []string // of which one is given; nil if it isn't a choice
	// set reads what was typed into the request. The error is a *spec.InvalidError.
	set func(r *pb.SetVolumeRequest, text string) error
	// later: only volume set has it.
	later bool
}

// settables are all of them, in the order of the help.
var settables = append(limitSettables(),
	settable{flag: "io-priority", usage: "media that the copies prefer: high (nvme), medium (ssd), low (hdd), or none", words: []string{"high", "medium", "low", "none"},
		set: placementField(func(p *pb.Placement) **string { return &p.Tier }, "none")},
	settable{flag: "group", usage: "group of volumes that --group-rule is about, or none",
		set: placementField(func(p *pb.Placement) **string { return &p.Group }, "none")},
	settable{flag: "group-rule", usage: "how copies lie to those of the group: prefer-apart, apart, prefer-together or together",
		words: []string{"prefer-apart", "apart", "prefer-together", "together"},
		set:   placementField(func(p *pb.Placement) **string { return &p.GroupRule }, "")},
	settable{flag: "locality", usage: "whether a copy follows the volume to the node where it is attached: off, prefer or require",
		words: []string{"off", "prefer", "require"},
		set:   placementField(func(p *pb.Placement) **string { return &p.Locality }, "off")},
	settable{flag: "auto-fstrim", usage: "how often the mounted file system gives back what it doesn't use, such as 24h, or off", set: setAutoTrim},
	settable{flag: "replicas", usage: "number of copies", later: true, set: setReplicas},
)

// limitSettables are the limits.
func limitSettables() []settable {
	var out []settable
	for i, k := range spec.LimitKinds {
		what, of := "requests", "reads and writes together"
		if k.Bandwidth {
			what = "bytes"
		}
		if kind, _, ok := strings.Cut(k.Name, "-"); ok && (kind == "read" || kind == "write") {
			of = kind + "s"
		}
		usage := fmt.Sprintf("%s a second at the most, %s; 0 is no limit", what, of)
		out = append(out, settable{flag: k.Name, usage: usage, set: func(r *pb.SetVolumeRequest, text string) error {
			n, err := parseLimit(k, text)
			if err != nil {
				return err
			}
			if r.Limits == nil {
				r.Limits = &pb.Limits{}
			}
			l := r.Limits
			*[]**int64{&l.Iops, &l.Bandwidth, &l.ReadIops, &l.WriteIops, &l.ReadBandwidth, &l.WriteBandwidth}[i] = &n
			return nil
		}})
	}
	return out
}

// parseLimit reads a limit.
func parseLimit(k spec.LimitKind, text string) (int64, error) {
	var n int64
	var err error
	if k.Bandwidth {
		n, err = spec.ParseSize(text)
	} else {
		n, err = strconv.ParseInt(text, 10, 64)
	}
	if err != nil {
		n = -1 // what is legal is said by the check
	}
	if err := k.Check(n); err != nil {
		err.(*spec.InvalidError).Value = text
		return 0, err
	}
	return n, nil
}

// placementField sets a text of the placement; the word none asks for nothing.
func placementField(of func(*pb.Placement) **string, none string) func(*pb.SetVolumeRequest, string) error {
	return func(r *pb.SetVolumeRequest, text string) error {
		if r.Placement == nil {
			r.Placement = &pb.Placement{}
		}
		if text == none {
			text = ""
		}
		*of(r.Placement) = &text
		// What is legal depends on the other fields only where the volume as a whole is known.
		p := spec.Placement{Tier: spec.Tier(r.Placement.GetTier()), Group: r.Placement.GetGroup(), Locality: spec.Locality(r.Placement.GetLocality())}
		if rule := spec.GroupRule(r.Placement.GetGroupRule()); rule != "" {
			p.GroupRule = rule
			if p.Group == "" {
				p.Group = "g"
			}
		}
		return p.Validate()
	}
}

func setAutoTrim(r *pb.SetVolumeRequest, text string) error {
	d := time.Duration(0)
	if text != "off" {
		var err error
		if d, err = time.ParseDuration(text); err != nil {
			d = -1
		}
	}
	if err := spec.CheckTrimEvery(d); err != nil {
		err.(*spec.InvalidError).Value = text
		return err
	}
	r.TrimEvery = durationpb.New(d)
	return nil
}

// settings are the flags of settable things, as they were typed.
type settings map[string]*string

// register adds the flags of those that are wanted.
func (s settings) register(cmd *cobra.Command, creating bool) {
	for _, x := range settables {
		if creating && x.later {
			continue
		}
		s[x.flag] = cmd.Flags().String(x.flag, "", x.usage)
		if x.words != nil {
			completeFlag(cmd, x.flag, words(x.words...))
		}
	}
}

// request reads what was given.
func (s settings) request(cmd *cobra.Command, name string) (r *pb.SetVolumeRequest, given int, err error) {
	r = &pb.SetVolumeRequest{Name: name}
	for _, x := range settables {
		if f := cmd.Flags().Lookup(x.flag); f == nil || !f.Changed || s[x.flag] == nil { // it may be another command's own
			continue
		}
		given++
		if err := x.set(r, *s[x.flag]); err != nil {
			return nil, 0, err
		}
	}
	return r, given, nil
}

func newVolumeSetCommand(g *globalOptions) *cobra.Command {
	s := settings{}
	var out outputFlag
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Change limits, placement and upkeep of a volume, while it is in use too",
		Example: "  keelson volume set pg --iops-limit 5000 --bandwidth-limit 100Mi\n  keelson volume set pg --iops-limit 0 --locality prefer",
		Args:    args(cobra.ExactArgs(1)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			return runVolumeSet(cmd, g, s, out, a[0], cmd.OutOrStdout())
		},
	}
	s.register(cmd, false)
	out.register(cmd)
	return cmd
}

func runVolumeSet(cmd *cobra.Command, g *globalOptions, s settings, out outputFlag, name string, w io.Writer) error {
	if err := out.check(); err != nil {
		return err
	}
	r, given, err := s.request(cmd, name)
	if err != nil {
		return err
	}
	if given == 0 {
		return usageError{fmt.Errorf("nothing to change of volume %s: give at least one flag; see %s --help", name, cmd.CommandPath())}
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	v, err := c.Volumes.SetVolume(cmd.Context(), r)
	if err != nil {
		return err
	}
	return out.print(w, plain(v), func(w io.Writer) {
		fields(w, append([]any{"Volume", v.Name}, policyFields(v)...)...)
	})
}

// policyFields are limits, placement and trims of a volume, as names and texts.
func policyFields(v *pb.Volume) []any {
	var imported string
	if i := v.Import; i != nil {
		imported = fmt.Sprintf("of %s isn't complete: %s of %s", i.Source, spec.FormatSize(i.Position), spec.FormatSize(i.Size))
	}
	return []any{"Limits", limitsText(v.Limits), "Placement", placementText(v), "Fstrim", trimText(v.Trim), "Import", imported}
}

// placementText says where copies should lie, beyond what is in the policy.
func placementText(v *pb.Volume) string {
	var list []string
	for _, t := range v.Topology {
		list = append(list, "nodes with "+labelsText(t.Segments))
	}
	if len(list) > 0 {
		list = []string{"on " + strings.Join(list, " or ")}
	}
	p := v.Placement
	if p.GetTier() != "" {
		list = append(list, "io-priority "+p.GetTier())
	}
	if p.GetGroup() != "" {
		rule := p.GetGroupRule()
		if rule == "" {
			rule = string(spec.GroupPreferApart)
		}
		list = append(list, "group "+p.GetGroup()+" "+rule)
	}
	if p.GetLocality() != "" {
		list = append(list, "locality "+p.GetLocality())
	}
	return strings.Join(list, ", ")
}

// limitsText says what limits there are; "" if there are none.
func limitsText(l *pb.Limits) string {
	if l == nil {
		return ""
	}
	var list []string
	for i, n := range []int64{l.GetIops(), l.GetBandwidth(), l.GetReadIops(), l.GetWriteIops(), l.GetReadBandwidth(), l.GetWriteBandwidth()} {
		if n == 0 {
			continue
		}
		k := spec.LimitKinds[i]
		text := strconv.FormatInt(n, 10)
		if k.Bandwidth {
			text = spec.FormatSize(n)
		}
		list = append(list, strings.TrimSuffix(k.Name, "-limit")+" "+text+"/s")
	}
	return strings.Join(list, ", ")
}

func trimText(t *pb.Trim) string {
	if t == nil {
		return ""
	}
	text := "off"
	if every := t.Every.AsDuration(); every > 0 {
		text = "every " + every.String()
	}
	switch {
	case t.Last == nil:
	case t.Problem != "":
		text += fmt.Sprintf("; the last one, %s on node %s, failed: %s", t.Last.AsTime().Format(timeFormat), t.Node, t.Problem)
	default:
		text += fmt.Sprintf("; the last one, %s on node %s, gave back %s", t.Last.AsTime().Format(timeFormat), t.Node, spec.FormatSize(t.Bytes))
	}
	return text
}
