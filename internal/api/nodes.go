package api

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

type nodeService struct{ s *Server }

func (n nodeService) ListNodes(ctx context.Context, _ *pb.ListNodesRequest) (*pb.ListNodesResponse, error) {
	v, err := n.s.readLive(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.ListNodesResponse{Nodes: v.nodeProtos()}, nil
}

func (v *view) nodeProtos() []*pb.Node {
	out := make([]*pb.Node, 0, len(v.nodes))
	for _, x := range v.nodes {
		out = append(out, v.nodeProto(x))
	}
	return out
}

func (n nodeService) GetNode(ctx context.Context, r *pb.GetNodeRequest) (*pb.Node, error) {
	v, err := n.s.readLive(ctx)
	if err != nil {
		return nil, err
	}
	x, ok := v.node(r.Name)
	if !ok {
		return nil, noNode(r.Name)
	}
	return v.nodeProto(x), nil
}

func noNode(name string) error {
	return errorf(errMissing, "there is no node %q; `keelson node list` shows them", name)
}

func (n nodeService) CordonNode(ctx context.Context, r *pb.CordonNodeRequest) (*pb.Node, error) {
	st := n.s.cfg.Store
	err := retry(ctx, func() error {
		x, err := st.Node(ctx, r.Name)
		if errors.Is(err, meta.ErrNotFound) {
			return noNode(r.Name)
		}
		if err != nil || x.Value.Cordoned == r.Cordoned && (r.Cordoned || !x.Value.Unschedulable) {
			return err
		}
		x.Value.Cordoned = r.Cordoned
		if !r.Cordoned {
			// If it is still cordoned in Kubernetes, the leader says so again; if Keelson doesn't run there any more, nobody else takes it back.
			x.Value.Unschedulable = false
		}
		_, err = st.PutNode(ctx, x.Value, x.Rev)
		return err
	})
	if err != nil {
		return nil, err
	}
	return n.GetNode(ctx, &pb.GetNodeRequest{Name: r.Name})
}

// RemoveNode forgets a node that is gone and holds nothing any more.
func (n nodeService) RemoveNode(ctx context.Context, r *pb.RemoveNodeRequest) (*pb.RemoveNodeResponse, error) {
	v, err := n.s.read(ctx)
	if err != nil {
		return nil, err
	}
	x, ok := v.node(r.Name)
	if !ok {
		return nil, noNode(r.Name)
	}
	if v.alive[r.Name] {
		return nil, errorf(errRefused, "node %s is alive; stop keelson server on it first", r.Name)
	}
	if names := v.volumesOn(r.Name); len(names) > 0 {
		return nil, errorf(errRefused, "node %s still has copies of, or attached, the volumes %s; they are rebuilt elsewhere after the setting rebuild-after, or delete them",
			r.Name, strings.Join(names, ", "))
	}
	if err := n.s.forgetNode(ctx, r.Name); err != nil {
		return nil, err
	}
	if hasRole(x.Roles, spec.RoleMetadata) && !n.s.cfg.External {
		if err := n.s.cfg.Members.Remove(ctx, r.Name); err != nil && !errors.Is(err, meta.ErrNotFound) {
			return nil, err
		}
	}
	for _, p := range v.pools {
		if p.Node != r.Name {
			continue
		}
		if err := n.s.deletePool(ctx, p.ID); err != nil {
			return nil, err
		}
	}
	cur, err := n.s.cfg.Store.Node(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	return &pb.RemoveNodeResponse{}, n.s.cfg.Store.DeleteNode(ctx, r.Name, cur.Rev)
}

func (s *Server) deletePool(ctx context.Context, id string) error {
	p, err := s.cfg.Store.Pool(ctx, id)
	if errors.Is(err, meta.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.cfg.Store.DeletePool(ctx, id, p.Rev)
}

// volumesOn names the volumes that have a replica on the node or are attached there.
func (v *view) volumesOn(node string) []string {
	var out []string
	for _, x := range v.volumes {
		on := x.State.Node == node
		for _, c := range x.State.Columns {
			for _, m := range c.Members {
				on = on || m.Node == node
			}
		}
		if on {
			out = append(out, x.Name)
		}
	}
	return out
}

func (n nodeService) NodeStatus(ctx context.Context, _ *pb.NodeStatusRequest) (*pb.NodeStatusResponse, error) {
	return n.s.OwnStatus(ctx), nil
}

// OwnStatus asks this node's engine. An engine that doesn't answer is a problem to be shown, no error.
func (s *Server) OwnStatus(ctx context.Context) *pb.NodeStatusResponse {
	r := &pb.NodeStatusResponse{}
	if s.cfg.Engine != nil {
		got, err := s.cfg.Engine.Status(ctx, &pb.EngineStatusRequest{})
		if err != nil {
			r.Problem = "its engine doesn't answer; see its log"
		} else {
			r = got
		}
	}
	r.Name, r.Version, r.Now = s.cfg.Node, s.cfg.Version, timestamppb.New(s.cfg.Now())
	return r
}

// retry repeats a read-decide-write that lost against another one.
func retry(ctx context.Context, fn func() error) error {
	for {
		err := fn()
		if !errors.Is(err, meta.ErrConflict) || ctx.Err() != nil {
			return err
		}
	}
}

// ServeVolume has this node's engine attach a volume without a frontend.
func (n nodeService) ServeVolume(ctx context.Context, r *pb.ServeVolumeRequest) (*pb.ServeVolumeResponse, error) {
	return &pb.ServeVolumeResponse{}, n.s.ServeDetached(ctx, r.VolumeId, n.s.cfg.Node)
}

// ServeDetached has a node's engine bring the members of a detached volume into sync.
func (s *Server) ServeDetached(ctx context.Context, volumeID, node string) error {
	if node == s.cfg.Node {
		if s.cfg.Engine == nil {
			return errorf(errRefused, "node %s has no storage role", node)
		}
		_, err := s.cfg.Engine.Attach(ctx, &pb.EngineAttachRequest{VolumeId: volumeID, Frontend: spec.FrontendNone})
		return err
	}
	c, err := s.other(ctx, node)
	if err != nil {
		return err
	}
	_, err = c.Nodes.ServeVolume(ctx, &pb.ServeVolumeRequest{VolumeId: volumeID})
	return err
}
