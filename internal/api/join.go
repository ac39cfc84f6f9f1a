package api

import (
	"context"
	"crypto/x509"
	"errors"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

type joinService struct{ s *Server }

// Join gives a new node its certificate. Repeating it for the same node id is allowed, so
// that a node that died in between can go on.
func (j joinService) Join(ctx context.Context, r *pb.JoinRequest) (*pb.JoinResponse, error) {
	t, err := j.token(ctx, r.Token)
	if err != nil {
		return nil, err
	}
	roles, err := j.check(ctx, r, t)
	if err != nil {
		return nil, err
	}
	ca, err := j.s.cfg.CA()
	if err != nil {
		return nil, err
	}
	if ca.Key == nil {
		return j.forward(ctx, r)
	}
	v, err := j.s.read(ctx)
	if err != nil {
		return nil, err
	}
	cert, err := j.s.sign(v.cluster.ID, r.Name, r.Csr)
	if err != nil {
		return nil, err
	}
	resp := &pb.JoinResponse{CaPem: ca.Encode(), CertPem: cert, Endpoints: j.s.cfg.Endpoints(), External: j.s.cfg.External}
	if hasRole(roles, spec.RoleMetadata) {
		if resp.CaKeyPem, err = pki.EncodeKey(ca.Key); err != nil {
			return nil, err
		}
	}
	resp.ClusterId, resp.ClusterName = v.cluster.ID, v.cluster.Name
	for _, n := range v.nodes {
		resp.Peers = append(resp.Peers, n.APIAddr)
	}
	j.s.cfg.Log.Info("node joins", "joining", r.Name, "id", r.NodeId, "roles", r.Roles, "token", t.ID)
	return resp, nil
}

// token checks a token against its record.
func (j joinService) token(ctx context.Context, text string) (spec.Token, error) {
	t, err := pki.ParseToken(text)
	if err != nil {
		return spec.Token{}, err
	}
	ca, err := j.s.cfg.CA()
	if err != nil {
		return spec.Token{}, err
	}
	if err := t.CheckCA(ca); err != nil {
		return spec.Token{}, err
	}
	rec, err := j.s.cfg.Store.Token(ctx, t.ID)
	if errors.Is(err, meta.ErrNotFound) {
		return spec.Token{}, pki.ErrTokenUnknown
	}
	if err != nil {
		return spec.Token{}, err
	}
	return rec.Value, t.Check(rec.Value, j.s.cfg.Now())
}

// check verifies what the node says about itself.
func (j joinService) check(ctx context.Context, r *pb.JoinRequest, t spec.Token) ([]spec.Role, error) {
	roles, err := parseRoles(r.Roles)
	if err != nil {
		return nil, err
	}
	if err := spec.ValidateID("node id", r.NodeId); err != nil {
		return nil, err
	}
	if err := spec.CheckName("node name", r.Name); err != nil {
		return nil, err
	}
	for _, role := range roles {
		if !hasRole(t.Roles, role) {
			return nil, errorf(errDenied, "the token doesn't give the role %s; make one with `keelson token create --role %s`", role, role)
		}
	}
	have, err := j.s.cfg.Store.Node(ctx, r.Name)
	switch {
	case errors.Is(err, meta.ErrNotFound):
		return roles, nil
	case err != nil:
		return nil, err
	case have.Value.ID != r.NodeId:
		return nil, errorf(meta.ErrExists, "there is a node named %s already; choose another name, or remove that one with `keelson node remove %s` when it is gone for good", r.Name, r.Name)
	}
	return roles, nil
}

// forward asks a node that has the CA's key.
func (j joinService) forward(ctx context.Context, r *pb.JoinRequest) (*pb.JoinResponse, error) {
	v, err := j.s.read(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range v.nodes {
		if n.Name != j.s.cfg.Node && v.alive[n.Name] && hasRole(n.Roles, spec.RoleMetadata) {
			return j.s.cfg.Dial(n).Join.Join(ctx, r)
		}
	}
	return nil, errorf(errGone, "no node that has the CA's key is alive; start one with the role metadata")
}

// sign signs a node's certificate request, which must be for that node.
func (s *Server) sign(cluster, node string, csr []byte) ([]byte, error) {
	ca, err := s.cfg.CA()
	if err != nil {
		return nil, err
	}
	if ca.Key == nil {
		return nil, errNoCAKey
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, errorf(errInvalid, "the certificate request can't be read: %v", err)
	}
	if req.Subject.CommonName != node {
		return nil, errorf(errInvalid, "the certificate request is for %q, not for node %s", req.Subject.CommonName, node)
	}
	cert, err := ca.SignRequest(cluster, csr)
	if err != nil {
		return nil, err
	}
	return pki.EncodeCert(cert), nil
}

// RenewCertificate signs a new certificate for the node that asks, with the name that its present one has.
func (c clusterService) RenewCertificate(ctx context.Context, r *pb.RenewCertificateRequest) (*pb.RenewCertificateResponse, error) {
	who, ok := ctx.Value(identityKey{}).(pki.Identity)
	if !ok {
		return nil, errorf(errDenied, "only a node can renew its certificate")
	}
	cert, err := c.s.sign(who.Cluster, who.Node, r.Csr)
	if err != nil {
		return nil, err
	}
	resp := &pb.RenewCertificateResponse{CertPem: cert}
	n, err := c.s.cfg.Store.Node(ctx, who.Node)
	if err != nil || n.Value.Member != spec.Called && !hasRole(n.Value.Roles, spec.RoleMetadata) {
		return resp, nil
	}
	if c.s.cfg.Rotation != nil {
		if resp.CaKeysPem, err = c.s.cfg.Rotation.Keys(); err != nil {
			return nil, err
		}
	}
	ca, err := c.s.cfg.CA()
	if err != nil {
		return nil, err
	}
	resp.CaKeyPem, err = pki.EncodeKey(ca.Key)
	return resp, err
}
