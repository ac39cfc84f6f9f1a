package server

import (
	"context"
	"time"

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
	if !pki.NeedsRenewal(p.Cert, time.Now(), cfg.Certificates.RenewBefore) && p.Cert.VerifyHostname(cfg.Address) == nil {
		return nil
	}
	ca.NodeValid = cfg.Certificates.Valid
	p, err = ca.Renew(pki.Identity{Cluster: st.ClusterID, Role: pki.RoleNode, Node: st.Node}, cfg.hosts(), p.Key)
	if err != nil {
		return err
	}
	return dir.SaveCert(pki.NodePair, p.Cert)
}

// keepRenewed replaces this node's certificate each time it comes near its end, until ctx ends. Every process of the node
// reads it anew for its next connection.
func (c *control) keepRenewed(ctx context.Context) {
	for {
		if err := c.renew(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("this node's certificate can't be renewed; trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(c.cfg.Certificates.checkEvery()):
		}
	}
}

// renew replaces this node's certificate when it is near its end.
func (c *control) renew(ctx context.Context) error {
	dir := pkiDir(c.cfg.DataDir)
	p, err := dir.LoadPair(pki.NodePair)
	if err != nil || !pki.NeedsRenewal(p.Cert, time.Now(), c.cfg.Certificates.RenewBefore) {
		return err
	}
	if c.cfg.HasRole(spec.RoleMetadata) {
		err = renewOwn(c.cfg, c.st)
	} else {
		err = c.renewThere(ctx, p)
	}
	if err != nil {
		return err
	}
	if p, err = dir.LoadPair(pki.NodePair); err == nil {
		c.log.Info("certificate renewed", "serial", p.Cert.SerialNumber.Text(16), "until", p.Cert.NotAfter.Format(time.RFC3339))
	}
	return err
}

// renewThere has a metadata node sign a new certificate for this node's key.
func (c *control) renewThere(ctx context.Context, p *pki.Pair) error {
	r, err := c.renewalFor(ctx, p)
	if err != nil {
		return err
	}
	cert, err := pki.ParseCert(r.CertPem)
	if err != nil {
		return err
	}
	return pkiDir(c.cfg.DataDir).SaveCert(pki.NodePair, cert)
}
