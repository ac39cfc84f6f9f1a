package api

import (
	"cmp"
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

// Health of a volume, and of the cluster.
const (
	Healthy     = "Healthy"
	Degraded    = "Degraded"
	Unavailable = "Unavailable"
	Deleting    = "Deleting"
)

func roleNames(rs []spec.Role) []string {
	out := make([]string, len(rs))
	for i, r := range rs {
		out[i] = string(r)
	}
	return out
}

func parseRoles(names []string) ([]spec.Role, error) {
	out := make([]spec.Role, len(names))
	for i, n := range names {
		out[i] = spec.Role(n)
	}
	return out, spec.CheckRoles(out)
}

func hasRole(rs []spec.Role, r spec.Role) bool {
	for _, x := range rs {
		if x == r {
			return true
		}
	}
	return false
}

func tokenProto(t spec.Token) *pb.Token {
	return &pb.Token{Id: t.ID, Roles: roleNames(t.Roles), Created: timestamppb.New(t.Created), Expires: timestamppb.New(t.Expires)}
}

func settingsProto(s spec.Settings) *pb.Settings {
	return &pb.Settings{RebuildAfter: durationpb.New(s.RebuildAfter), RebuildBandwidth: s.RebuildBandwidth, Overcommit: s.Overcommit,
		Rebalance: int32(s.Rebalance), RebalanceMoves: int32(cmp.Or(s.RebalanceMoves, spec.DefaultRebalanceMoves)),
		ScrubInterval: durationpb.New(s.ScrubInterval), ScrubBandwidth: s.ScrubBandwidth, MaxSnapshots: int32(s.SnapshotLimit()),
		AnswerLimit: durationpb.New(cmp.Or(s.AnswerLimit, spec.DefaultAnswerLimit))}
}

func (v *view) nodeProto(n spec.Node) *pb.Node {
	return &pb.Node{
		Name: n.Name, Id: n.ID, Roles: roleNames(n.Roles), Zone: n.Zone, Labels: n.Labels,
		ApiAddr: n.APIAddr, EngineAddr: n.EngineAddr, Shards: int32(n.Shards), Cordoned: n.Cordoned, Unschedulable: n.Unschedulable,
		Joined: timestamppb.New(n.Joined), Version: n.Version,
		Upkeep: string(n.Upkeep), Alive: v.alive[n.Name], Leader: n.Name == v.leader, Problem: v.nodeProblem(n),
	}
}

// PoolProto shows a pool as the metadata has it.
func PoolProto(p spec.Pool) *pb.Pool {
	return &pb.Pool{
		Id: p.ID, Node: p.Node, Device: p.Device, File: p.File, Media: string(p.Media), Labels: p.Labels,
		Capacity: p.Capacity, Reserve: p.Reserve, Created: timestamppb.New(p.Created), Draining: p.Draining,
	}
}

func (v *view) poolProto(p spec.Pool) *pb.Pool {
	m := PoolProto(p)
	for _, vol := range v.volumes {
		for _, c := range vol.State.Columns {
			for _, mem := range c.Members {
				if mem.Pool == p.ID {
					m.Replicas++
					m.Provisioned += spec.ColumnSize(vol.Planned(), vol.Columns)
				}
			}
		}
	}
	if live := v.livePools[p.ID]; live != nil {
		m.Live, m.Used, m.Problem = true, live.Used, live.Problem
		if live.Capacity != 0 {
			m.Capacity = live.Capacity
		}
	} else {
		m.Problem = "node " + p.Node + " is " + v.absence(p.Node)
		if v.nodeLive(p.Node) {
			m.Problem = "the engine of node " + p.Node + " doesn't have it open; see its log"
		}
	}
	return m
}

func (v *view) volumeProto(vol spec.Volume) *pb.Volume {
	m := &pb.Volume{
		Id: vol.ID, Name: vol.Name, Size: vol.Size, Replicas: int32(vol.Replicas), ColumnCount: int32(vol.Columns),
		ZoneSpread: vol.ZoneSpread, NodeSelector: vol.NodeSelector, Media: string(vol.Media),
		Created: timestamppb.New(vol.Created), Deleting: vol.Deleting,
		GrowingTo: vol.Growth.To, Term: vol.State.Term, Node: vol.State.Node, Frontend: vol.State.Frontend,
	}
	for _, t := range vol.Topology {
		m.Topology = append(m.Topology, &pb.TopologyTerm{Segments: t})
	}
	if e := vol.Ephemeral; e != nil {
		m.Ephemeral = &pb.Ephemeral{Node: e.Node, Path: e.Path}
	}
	live := v.liveVolumes[vol.ID]
	progress := map[string]*pb.LiveMember{}
	if live != nil {
		m.Device = live.Device
		for _, lm := range live.Members {
			progress[lm.Replica] = lm
		}
	}
	for _, c := range vol.State.Columns {
		col := &pb.Column{}
		for _, mem := range c.Members {
			pm := &pb.Member{
				Replica: mem.Replica, Node: mem.Node, Pool: mem.Pool, State: string(mem.State), Run: mem.Run,
				Since: timestamppb.New(mem.Since), Reason: mem.Reason, Removing: mem.Removing, Alive: v.alive[mem.Node],
			}
			if lm := progress[mem.Replica]; lm != nil && mem.State == spec.Syncing {
				pm.ResyncDone, pm.ResyncTotal = lm.ResyncDone, lm.ResyncTotal
			}
			col.Members = append(col.Members, pm)
		}
		m.Columns = append(m.Columns, col)
	}
	m.Scrub = v.scrubProto(&vol, live)
	snapshotProtos(m, &vol)
	m.Resettling = v.resettling(&vol)
	policyProtos(m, &vol)
	m.Encryption = encryptionProto(&vol)
	m.Health, m.Condition = v.health(vol, live)
	return m
}

// health says how a volume is, and why.
func (v *view) health(vol spec.Volume, live *pb.LiveVolume) (health, condition string) {
	var why []string
	health = Healthy
	worse := func(h, format string, args ...any) {
		if h == Unavailable || health == Healthy {
			health = h
		}
		why = append(why, fmt.Sprintf(format, args...))
	}
	for i, c := range vol.State.Columns {
		good := 0
		for _, mem := range c.Members {
			switch {
			case !v.alive[mem.Node]:
				worse(Degraded, "column %d: the node of the replica on %s is gone", i, mem.Node)
			case mem.State != spec.InSync:
				worse(Degraded, "column %d: the replica on %s is %s", i, mem.Node, mem.State)
			case !mem.Removing:
				good++
			}
		}
		if good == 0 {
			worse(Unavailable, "column %d: no replica that is in sync can be reached", i)
		} else if good < vol.Replicas && health == Healthy {
			worse(Degraded, "column %d: %d of %d copies", i, good, vol.Replicas)
		}
	}
	if n := vol.State.Node; n != "" && !v.alive[n] && vol.State.Frontend != spec.FrontendNone {
		worse(Unavailable, "attached on node %s, which is gone; attach it on another one", n)
	}
	if i := vol.Import; i.Active() {
		worse(Degraded, "the import of %s isn't complete: %s of %s", i.Source, spec.FormatSize(i.Position), spec.FormatSize(i.Size))
	}
	for _, text := range scrubProblems(&vol) {
		worse(Degraded, "%s", text)
	}
	if vol.Unproven != nil {
		worse(Degraded, "the metadata was recovered, and it isn't known yet whether this record is the newest")
	}
	if live != nil && live.Condition != "" {
		why = append(why, live.Condition)
	}
	if vol.Deleting {
		health = Deleting
	}
	return health, strings.Join(why, "; ")
}
