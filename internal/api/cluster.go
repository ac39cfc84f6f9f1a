package api

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// Bounds of a token's life.
const (
	DefaultTokenTTL = 24 * time.Hour
	maxTokenTTL     = 365 * 24 * time.Hour
)

type clusterService struct{ s *Server }

// Status shows everything at a glance. It answers, as well as it can, also without the metadata.
func (c clusterService) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	r := &pb.StatusResponse{Health: Healthy, Now: timestamppb.New(c.s.cfg.Now())}
	worse := func(h, format string, args ...any) {
		if h == Unavailable || r.Health == Healthy {
			r.Health = h
		}
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
	mctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	v, err := c.s.readLive(mctx)
	if err != nil {
		worse(Unavailable, "the metadata doesn't answer: attached volumes go on, but nothing can be changed; are most of the metadata nodes up, and is the network?")
		r.Volumes = c.s.ownVolumes(ctx)
		for _, x := range r.Volumes {
			if x.Condition != "" {
				worse(Unavailable, "volume %s: %s", x.Name, x.Condition)
			}
		}
		return r, nil
	}
	r.ClusterId, r.ClusterName, r.Leader = v.cluster.ID, v.cluster.Name, v.leader
	r.Nodes, r.Pools, r.Volumes = v.nodeProtos(), v.poolProtos(), v.volumeProtos()
	if c.s.cfg.Members != nil {
		if r.Metadata, err = c.s.cfg.Members.List(mctx); err != nil {
			worse(Degraded, "the members of the metadata can't be listed: %v", err)
		}
	}
	for _, n := range r.Nodes {
		if n.Problem != "" {
			worse(Degraded, "node %s: %s", n.Name, n.Problem)
		}
	}
	for _, text := range v.unprovenProblems() {
		worse(Degraded, "%s", text)
	}
	voters := map[string]bool{}
	for _, m := range r.Metadata {
		voters[m.Name] = !m.Learner
		if !m.Healthy {
			worse(Degraded, "metadata member %s doesn't answer", m.Name)
		}
	}
	for _, n := range v.nodes {
		if len(r.Metadata) > 0 && hasRole(n.Roles, spec.RoleMetadata) && !voters[n.Name] && n.Member != spec.Resting {
			worse(Degraded, "node %s is no voting member of the metadata yet", n.Name)
		}
	}
	for _, p := range r.Pools {
		if p.Problem != "" && v.alive[p.Node] {
			worse(Degraded, "pool %s on %s: %s", p.Id, p.Node, p.Problem)
		} else if p.Live && p.Capacity-p.Used < p.Reserve {
			worse(Degraded, "pool %s on %s is full: %s of %s are used", p.Id, p.Node, spec.FormatSize(p.Used), spec.FormatSize(p.Capacity))
		}
	}
	for _, x := range r.Volumes {
		switch x.Health {
		case Unavailable:
			worse(Unavailable, "volume %s: %s", x.Name, x.Condition)
		case Degraded:
			worse(Degraded, "volume %s: %s", x.Name, x.Condition)
		}
	}
	return r, nil
}

// ownVolumes is what this node's engine can say of its volumes when the metadata doesn't answer.
func (s *Server) ownVolumes(ctx context.Context) []*pb.Volume {
	var out []*pb.Volume
	for _, v := range s.OwnStatus(ctx).Volumes {
		out = append(out, &pb.Volume{
			Id: v.Id, Name: v.Name, Term: v.Term, Node: s.cfg.Node, Frontend: v.Frontend, Device: v.Device,
			Health: "?", Condition: v.Condition,
		})
	}
	return out
}

func (c clusterService) GetSettings(ctx context.Context, _ *pb.GetSettingsRequest) (*pb.Settings, error) {
	cl, err := c.s.cfg.Store.Cluster(ctx)
	return settingsProto(cl.Value.Settings), err
}

func (c clusterService) SetSettings(ctx context.Context, r *pb.SetSettingsRequest) (*pb.Settings, error) {
	switch {
	case r.RebuildAfter != nil && r.RebuildAfter.AsDuration() < 0:
		return nil, errorf(errInvalid, "rebuild-after %s is negative", r.RebuildAfter.AsDuration())
	case r.RebuildBandwidth != nil && *r.RebuildBandwidth < 1<<20:
		return nil, errorf(errInvalid, "rebuild-bandwidth %d is below 1 MiB a second", *r.RebuildBandwidth)
	case r.ScrubInterval != nil && r.ScrubInterval.AsDuration() != 0 &&
		(r.ScrubInterval.AsDuration() < spec.MinScrubInterval || r.ScrubInterval.AsDuration() > spec.MaxScrubInterval):
		return nil, errorf(errInvalid, "scrub-interval %s is neither 0 nor between %s and %s", r.ScrubInterval.AsDuration(), spec.MinScrubInterval, spec.MaxScrubInterval)
	case r.MaxSnapshots != nil && (*r.MaxSnapshots < 1 || *r.MaxSnapshots > spec.MaxMaxSnapshots):
		return nil, &spec.InvalidError{Field: "snapshots-max", Value: fmt.Sprint(*r.MaxSnapshots), Legal: fmt.Sprintf("from 1 to %d", spec.MaxMaxSnapshots)}
	case r.ScrubBandwidth != nil && *r.ScrubBandwidth < spec.MinScrubBandwidth:
		return nil, errorf(errInvalid, "scrub-bandwidth %d is below 1 MiB a second", *r.ScrubBandwidth)
	case r.AnswerLimit != nil && (r.AnswerLimit.AsDuration() < spec.MinAnswerLimit || r.AnswerLimit.AsDuration() > spec.MaxAnswerLimit):
		return nil, errorf(errInvalid, "answer-limit %s is not between %s and %s", r.AnswerLimit.AsDuration(), spec.MinAnswerLimit, spec.MaxAnswerLimit)
	case r.Overcommit != nil && (*r.Overcommit < 1 || *r.Overcommit > 1000):
		return nil, errorf(errInvalid, "overcommit %g is not between 1 and 1000", *r.Overcommit)
	}
	if err := checkRebalance(r); err != nil {
		return nil, err
	}
	var out *pb.Settings
	err := retry(ctx, func() error {
		cl, err := c.s.cfg.Store.Cluster(ctx)
		if err != nil {
			return err
		}
		s := &cl.Value.Settings
		if r.RebuildAfter != nil {
			s.RebuildAfter = r.RebuildAfter.AsDuration()
		}
		if r.RebuildBandwidth != nil {
			s.RebuildBandwidth = *r.RebuildBandwidth
		}
		if r.AnswerLimit != nil {
			s.AnswerLimit = r.AnswerLimit.AsDuration()
		}
		if r.Overcommit != nil {
			s.Overcommit = *r.Overcommit
		}
		if r.ScrubInterval != nil {
			s.ScrubInterval = r.ScrubInterval.AsDuration()
		}
		if r.MaxSnapshots != nil {
			s.MaxSnapshots = int(*r.MaxSnapshots)
		}
		if r.ScrubBandwidth != nil {
			s.ScrubBandwidth = *r.ScrubBandwidth
		}
		if r.Rebalance != nil {
			s.Rebalance = int(*r.Rebalance)
		}
		if r.RebalanceMoves != nil {
			s.RebalanceMoves = int(*r.RebalanceMoves)
		}
		out = settingsProto(*s)
		_, err = c.s.cfg.Store.PutCluster(ctx, cl.Value, cl.Rev)
		return err
	})
	return out, err
}

func (c clusterService) CreateToken(ctx context.Context, r *pb.CreateTokenRequest) (*pb.CreateTokenResponse, error) {
	if len(r.Roles) == 0 {
		r.Roles = roleNames([]spec.Role{spec.RoleMetadata, spec.RoleStorage})
	}
	roles, err := parseRoles(r.Roles)
	if err != nil {
		return nil, err
	}
	ttl := DefaultTokenTTL
	if r.Ttl != nil {
		ttl = r.Ttl.AsDuration()
	}
	if ttl <= 0 || ttl > maxTokenTTL {
		return nil, errorf(errInvalid, "a token's life of %s is not between 0 and %s", ttl, maxTokenTTL)
	}
	ca, err := c.s.cfg.CA()
	if err != nil {
		return nil, err
	}
	text, t := pki.NewToken(ca.Cert, roles, ttl, c.s.cfg.Now())
	if _, err := c.s.cfg.Store.PutToken(ctx, t, 0); err != nil {
		return nil, err
	}
	return &pb.CreateTokenResponse{Token: text.String(), Info: tokenProto(t)}, nil
}

func (c clusterService) ListTokens(ctx context.Context, _ *pb.ListTokensRequest) (*pb.ListTokensResponse, error) {
	ts, err := c.s.cfg.Store.Tokens(ctx)
	r := &pb.ListTokensResponse{}
	for _, t := range ts {
		r.Tokens = append(r.Tokens, tokenProto(t.Value))
	}
	return r, err
}

func (c clusterService) DeleteToken(ctx context.Context, r *pb.DeleteTokenRequest) (*pb.DeleteTokenResponse, error) {
	t, err := c.s.cfg.Store.Token(ctx, r.Id)
	if errors.Is(err, meta.ErrNotFound) {
		return nil, errorf(errMissing, "there is no token %q; `keelson token list` shows them", r.Id)
	}
	if err != nil {
		return nil, err
	}
	return &pb.DeleteTokenResponse{}, c.s.cfg.Store.DeleteToken(ctx, r.Id, t.Rev)
}

func (c clusterService) AddMember(ctx context.Context, r *pb.AddMemberRequest) (*pb.AddMemberResponse, error) {
	if c.s.cfg.External {
		return nil, errorf(errRefused, "this cluster's metadata is an etcd of its own; it takes no members from here")
	}
	if who, ok := ctx.Value(identityKey{}).(pki.Identity); !ok || who.Node != r.Name {
		return nil, errorf(errDenied, "a node can make itself a metadata member, and no other")
	}
	if n, err := c.s.cfg.Store.Node(ctx, r.Name); err == nil && n.Value.Member == spec.Resting {
		return nil, fmt.Errorf("%w: another node holds the metadata in the place of %s, which waits until it is needed", ErrNotCaughtUp, r.Name)
	}
	id, initial, err := c.s.cfg.Members.Add(ctx, r.Name, r.PeerUrl)
	return &pb.AddMemberResponse{Id: id, InitialCluster: initial}, err
}

func (c clusterService) PromoteMember(ctx context.Context, r *pb.PromoteMemberRequest) (*pb.PromoteMemberResponse, error) {
	if c.s.cfg.External {
		return nil, errorf(errRefused, "this cluster's metadata is an etcd of its own")
	}
	return &pb.PromoteMemberResponse{}, c.s.cfg.Members.Promote(ctx, r.Name)
}
