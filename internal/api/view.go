package api

import (
	"context"
	"sync"
	"time"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/place"
	"keelson.io/keelson/internal/spec"
)

// askTimeout bounds how long another node is waited for when it is asked about itself.
const askTimeout = 1500 * time.Millisecond

// maxSkew is how far the nodes' clocks may lie apart before it is said.
const maxSkew = 5 * time.Second

// view is the cluster as read for one call: the metadata, and what the nodes say.
type view struct {
	nodes   []spec.Node
	pools   []spec.Pool
	volumes []spec.Volume
	cluster spec.Cluster
	alive   map[string]bool
	leader  string

	self        string
	live        map[string]*pb.NodeStatusResponse // by node; nil value: it didn't answer
	skew        map[string]time.Duration
	clusterView *place.Cluster // what placeable returned, if it was kept
	livePools   map[string]*pb.LivePool
	liveVolumes map[string]*pb.LiveVolume
}

// read reads the metadata.
func (s *Server) read(ctx context.Context) (*view, error) {
	v := &view{self: s.cfg.Node}
	st := s.cfg.Store
	c, err := st.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	v.cluster = c.Value
	nodes, err := st.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		v.nodes = append(v.nodes, n.Value)
	}
	pools, err := st.Pools(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range pools {
		v.pools = append(v.pools, p.Value)
	}
	vols, err := st.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	for _, x := range vols {
		v.volumes = append(v.volumes, x.Value)
	}
	if v.alive, err = st.Alive(ctx); err != nil {
		return nil, err
	}
	v.leader, err = st.Leader(ctx)
	return v, err
}

// readLive reads the metadata and asks every living node about itself, all at once.
func (s *Server) readLive(ctx context.Context) (*view, error) {
	v, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	v.live = map[string]*pb.NodeStatusResponse{}
	v.skew = map[string]time.Duration{}
	v.livePools = map[string]*pb.LivePool{}
	v.liveVolumes = map[string]*pb.LiveVolume{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, n := range v.nodes {
		if !v.alive[n.Name] {
			continue
		}
		wg.Go(func() {
			r, skew, err := s.ask(ctx, n)
			if err != nil {
				r = nil
			}
			mu.Lock()
			defer mu.Unlock()
			v.live[n.Name], v.skew[n.Name] = r, skew
		})
	}
	wg.Wait()
	for _, r := range v.live {
		for _, p := range r.GetPools() {
			v.livePools[p.Id] = p
		}
		for _, x := range r.GetVolumes() {
			if have := v.liveVolumes[x.Id]; have == nil || have.Term < x.Term {
				v.liveVolumes[x.Id] = x
			}
		}
	}
	return v, nil
}

// ask asks a node about itself, and says how far its clock is ahead of this one's.
func (s *Server) ask(ctx context.Context, n spec.Node) (*pb.NodeStatusResponse, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if n.Name == s.cfg.Node {
		return s.OwnStatus(ctx), 0, nil
	}
	sent := s.cfg.Now()
	r, err := s.cfg.Dial(n).Nodes.NodeStatus(ctx, &pb.NodeStatusRequest{})
	if err != nil {
		return nil, 0, err
	}
	mid := sent.Add(s.cfg.Now().Sub(sent) / 2)
	return r, r.Now.AsTime().Sub(mid), nil
}

func (v *view) node(name string) (spec.Node, bool) {
	for _, n := range v.nodes {
		if n.Name == name {
			return n, true
		}
	}
	return spec.Node{}, false
}

// nodeLive says whether the node was asked and answered.
func (v *view) nodeLive(name string) bool { return v.live[name] != nil }

// absence says in which way a node is not there.
func (v *view) absence(name string) string {
	if v.alive[name] {
		return "not answering"
	}
	return "gone"
}

func (v *view) nodeProblem(n spec.Node) string {
	switch r, asked := v.live[n.Name]; {
	case !v.alive[n.Name]:
		return "gone: it holds no lease; is keelson server running there, and the network up?"
	case v.live == nil:
		return ""
	case asked && r == nil:
		return "its API doesn't answer"
	case r.GetProblem() != "":
		return r.Problem
	case v.skew[n.Name].Abs() > maxSkew:
		return "its clock is off by " + v.skew[n.Name].Round(time.Second).String() + " against node " + v.self
	}
	return ""
}
