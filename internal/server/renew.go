package server

import (
	"context"
	"errors"
	"slices"
	"time"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// renewOwn gives a node that has the CA's key a new certificate when the old one is near its end, or
// isn't for the node's address.
func renewOwn(cfg Config, st State) error {
	dir := pkiDir(cfg.DataDir)
	ca, err := dir.LoadCA()
	if err != nil || ca.Key == nil {
		return err
	}
	p, err := dir.LoadPair(pki.NodePair)
	if err != nil {
		return err
	}
	if !pki.NeedsRenewal(p.Cert, time.Now()) && p.Cert.VerifyHostname(cfg.Address) == nil {
		return nil
	}
	p, err = ca.NewPair(pki.Identity{Cluster: st.ClusterID, Role: pki.RoleNode, Node: st.Node}, cfg.hosts())
	if err != nil {
		return err
	}
	return dir.SavePair(pki.NodePair, p)
}

// renew replaces this node's certificate when it is near its end.
func (c *control) renew(ctx context.Context) error {
	dir := pkiDir(c.cfg.DataDir)
	p, err := dir.LoadPair(pki.NodePair)
	if err != nil || !pki.NeedsRenewal(p.Cert, time.Now()) {
		return err
	}
	if c.cfg.HasRole(spec.RoleMetadata) {
		return renewOwn(c.cfg, c.st)
	}
	nodes, err := c.store.Nodes(ctx)
	if err != nil {
		return err
	}
	key, csr, err := pki.NewRequest(c.st.Node, c.cfg.hosts())
	if err != nil {
		return err
	}
	err = errors.New("no node with the role metadata is known")
	for _, n := range nodes {
		if !slices.Contains(n.Value.Roles, spec.RoleMetadata) {
			continue
		}
		var r *pb.RenewCertificateResponse
		if r, err = c.dialer.dial(n.Value).Cluster.RenewCertificate(ctx, &pb.RenewCertificateRequest{Csr: csr}); err != nil {
			continue
		}
		cert, err := pki.ParseCert(r.CertPem)
		if err != nil {
			return err
		}
		return dir.SavePair(pki.NodePair, &pki.Pair{Cert: cert, Key: key})
	}
	return err
}
