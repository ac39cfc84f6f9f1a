package api

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// DefaultAPITokenTTL is how long an API token lives if nothing else is said.
const DefaultAPITokenTTL = 30 * 24 * time.Hour

type accessService struct{ s *Server }

func (a accessService) CreateAPIToken(ctx context.Context, r *pb.CreateAPITokenRequest) (*pb.CreateAPITokenResponse, error) {
	role, err := spec.ParseAPIRole(r.Role)
	if err != nil {
		return nil, err
	}
	if err := spec.CheckName("name", r.Name); err != nil {
		return nil, err
	}
	ttl := DefaultAPITokenTTL
	if r.Ttl != nil {
		ttl = r.Ttl.AsDuration()
	}
	if ttl <= 0 || ttl > maxTokenTTL {
		return nil, errorf(errInvalid, "a token's life of %s is not between 0 and %s", ttl, maxTokenTTL)
	}
	ca, err := a.s.cfg.CA()
	if err != nil {
		return nil, err
	}
	text, t := pki.NewAPIToken(ca.Cert, r.Name, role, ttl, a.s.cfg.Now())
	if _, err := a.s.cfg.Store.PutAPIToken(ctx, t, 0); err != nil {
		return nil, err
	}
	return &pb.CreateAPITokenResponse{Token: text.String(), Info: apiTokenProto(t)}, nil
}

func (a accessService) ListAPITokens(ctx context.Context, _ *pb.ListAPITokensRequest) (*pb.ListAPITokensResponse, error) {
	ts, err := a.s.cfg.Store.APITokens(ctx)
	r := &pb.ListAPITokensResponse{}
	for _, t := range ts {
		r.Tokens = append(r.Tokens, apiTokenProto(t.Value))
	}
	return r, err
}

// RevokeAPIToken has the token refused from now on, by every node.
func (a accessService) RevokeAPIToken(ctx context.Context, r *pb.RevokeAPITokenRequest) (*pb.RevokeAPITokenResponse, error) {
	t, err := a.s.cfg.Store.APIToken(ctx, r.Id)
	if errors.Is(err, meta.ErrNotFound) {
		return nil, errorf(errMissing, "there is no API token %q; `keelson api-token list` shows them", r.Id)
	}
	if err != nil {
		return nil, err
	}
	return &pb.RevokeAPITokenResponse{}, a.s.cfg.Store.DeleteAPIToken(ctx, r.Id, t.Rev)
}

func apiTokenProto(t spec.APIToken) *pb.APIToken {
	return &pb.APIToken{
		Id: t.ID, Name: t.Name, Role: string(t.Role), Created: timestamppb.New(t.Created), Expires: timestamppb.New(t.Expires),
	}
}

// defaultAuditLimit and maxAuditLimit bound how many entries one call returns.
const (
	defaultAuditLimit = 1000
	maxAuditLimit     = 10000
)

func (a accessService) ListAudit(ctx context.Context, r *pb.ListAuditRequest) (*pb.ListAuditResponse, error) {
	limit := int(r.Limit)
	if limit == 0 {
		limit = defaultAuditLimit
	}
	if limit < 0 || limit > maxAuditLimit {
		return nil, errorf(errInvalid, "limit %d is not between 1 and %d", limit, maxAuditLimit)
	}
	if r.Node != "" && r.Node != a.s.cfg.Node {
		c, err := a.s.other(ctx, r.Node)
		if err != nil {
			return nil, err
		}
		return c.Access.ListAudit(ctx, r)
	}
	if a.s.cfg.Audit == nil {
		return nil, errorf(errRefused, "node %s keeps no audit log", a.s.cfg.Node)
	}
	var since time.Time
	if r.Since != nil {
		since = r.Since.AsTime()
	}
	es, err := a.s.cfg.Audit.Entries(since, limit)
	return &pb.ListAuditResponse{Entries: es}, err
}
