package api

import (
	"context"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

type poolService struct{ s *Server }

func (p poolService) ListPools(ctx context.Context, _ *pb.ListPoolsRequest) (*pb.ListPoolsResponse, error) {
	v, err := p.s.readLive(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.ListPoolsResponse{Pools: v.poolProtos()}, nil
}

func (v *view) poolProtos() []*pb.Pool {
	out := make([]*pb.Pool, 0, len(v.pools))
	for _, x := range v.pools {
		out = append(out, v.poolProto(x))
	}
	return out
}

func (p poolService) GetPool(ctx context.Context, r *pb.GetPoolRequest) (*pb.Pool, error) {
	v, err := p.s.readLive(ctx)
	if err != nil {
		return nil, err
	}
	for _, x := range v.pools {
		if x.ID == r.Id {
			return v.poolProto(x), nil
		}
	}
	return nil, errorf(errMissing, "there is no pool %q; `keelson pool list` shows them", r.Id)
}

func (p poolService) AddPool(ctx context.Context, r *pb.AddPoolRequest) (*pb.Pool, error) {
	if r.Node != "" && r.Node != p.s.cfg.Node {
		c, err := p.s.other(ctx, r.Node)
		if err != nil {
			return nil, err
		}
		return c.Pools.AddPool(ctx, r)
	}
	if p.s.cfg.Engine == nil {
		return nil, errorf(errRefused, "node %s has no storage role, so it takes no pool", p.s.cfg.Node)
	}
	return p.s.cfg.Engine.AddPool(ctx, r)
}

// other returns the client of another node that is alive.
func (s *Server) other(ctx context.Context, name string) (*Client, error) {
	n, err := s.aliveNode(ctx, name)
	if err != nil {
		return nil, err
	}
	return s.cfg.Dial(n), nil
}

func (s *Server) aliveNode(ctx context.Context, name string) (spec.Node, error) {
	v, err := s.read(ctx)
	if err != nil {
		return spec.Node{}, err
	}
	n, ok := v.node(name)
	if !ok {
		return n, noNode(name)
	}
	if !v.alive[name] {
		return n, errorf(errGone, "node %s is gone: it holds no lease; start keelson server there, or choose another node", name)
	}
	return n, nil
}
