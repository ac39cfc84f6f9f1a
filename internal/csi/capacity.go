package csi

import (
	"cmp"
	"context"
	"slices"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"keelson.io/keelson/internal/csi/dialect"
	"keelson.io/keelson/internal/spec"
)

// GetCapacity implements the controller service: how much volume of that class can be made. A segment that names a node is
// where it will be used, and copies may lie anywhere; one that doesn't is where they shall lie.
func (c *controller) GetCapacity(ctx context.Context, r *pb.GetCapacityRequest) (*pb.GetCapacityResponse, error) {
	class, _, err := c.dialect.Translate(r.GetParameters())
	if err != nil {
		return nil, err
	}
	none := &pb.GetCapacityResponse{MaximumVolumeSize: wrapperspb.Int64(0)}
	if list := r.GetVolumeCapabilities(); len(list) > 0 && checkCapabilities(list) != nil {
		return none, nil
	}
	nodes, err := c.cfg.Keelson.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	term := r.GetAccessibleTopology().GetSegments()
	if !slices.ContainsFunc(nodes, func(n Node) bool { return n.Storage && n.Alive && matches(n, c.endpoint.Driver, term) }) {
		return none, nil
	}
	pools, err := c.cfg.Keelson.Pools(ctx)
	if err != nil {
		return nil, err
	}
	rooms := c.rooms(nodes, pools, class, term)
	replicas := cmp.Or(class.Replicas, spec.DefaultReplicas)
	return &pb.GetCapacityResponse{
		AvailableCapacity: available(rooms, replicas),
		MaximumVolumeSize: wrapperspb.Int64(largest(rooms, replicas)),
		MinimumVolumeSize: wrapperspb.Int64(spec.MinVolumeSize),
	}, nil
}

// room is what a node can take.
type room struct {
	sum     int64 // in all its pools
	largest int64 // in one of them
}

// rooms returns what each node has for copies of that class.
func (c *controller) rooms(nodes []Node, pools []Pool, class dialect.Request, term map[string]string) []room {
	_, named := term[dialect.KeyNode]
	terms, err := within(nil, class.Within)
	if err != nil {
		return nil
	}
	var out []room
	for _, n := range nodes {
		if !n.Storage || !n.Alive || n.Cordoned || !named && !matches(n, c.endpoint.Driver, term) || !selected(n, class.NodeSelector, terms) {
			continue
		}
		var x room
		for _, p := range pools {
			if p.Node == n.Name && p.Room > 0 && (class.Media == "" || class.Media == p.Media) {
				x.sum += p.Room
				x.largest = max(x.largest, p.Room)
			}
		}
		if x.sum > 0 {
			out = append(out, x)
		}
	}
	return out
}

// selected reports whether placement would give a node a copy.
func selected(n Node, selector map[string]string, terms []map[string]string) bool {
	has := func(want map[string]string) bool {
		for k, v := range want {
			have := n.Labels[k]
			switch k {
			case dialect.KeyNode:
				have = n.Name
			case dialect.KeyZone:
				have = n.Zone
			}
			if have != v {
				return false
			}
		}
		return true
	}
	return has(selector) && (len(terms) == 0 || slices.ContainsFunc(terms, has))
}

// largest returns the size of the largest volume of which every copy finds a pool on another node.
func largest(rooms []room, replicas int) int64 {
	if len(rooms) < replicas {
		return 0
	}
	slices.SortFunc(rooms, func(a, b room) int { return cmp.Compare(b.largest, a.largest) })
	return min(rooms[replicas-1].largest, spec.MaxVolumeSize) &^ 4095
}

// available returns how much volume there can be in all, when no node takes two copies of one: the largest t for which
// the nodes, none counted with more than t, have room for t times the replicas.
func available(rooms []room, replicas int) int64 {
	fits := func(t int64) bool {
		var sum int64
		for _, r := range rooms {
			sum += min(r.sum, t)
		}
		return sum/int64(replicas) >= t
	}
	var low, high int64 = 0, 1 << 60
	for low < high {
		mid := low + (high-low+1)/2
		if fits(mid) {
			low = mid
		} else {
			high = mid - 1
		}
	}
	return low &^ 4095
}
