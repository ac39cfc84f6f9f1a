package server

import (
	"context"
	"errors"
	"time"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// needsRenewal reports whether a certificate is near its end, or of another CA than the one that signs now.
func needsRenewal(cfg Config, ca *pki.CA, p *pki.Pair) bool {
	return pki.NeedsRenewal(p.Cert, time.Now(), cfg.Certificates.RenewBefore) || ca.Issuer(p.Cert) != pki.Hash(ca.Cert)
}

// renewOwn gives a node that has the CA's key a new certificate when it needs one, or when the old one
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
	if !needsRenewal(cfg, ca, p) && p.Cert.VerifyHostname(cfg.Address) == nil {
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

// renew replaces this node's certificate when it needs another one.
func (c *control) renew(ctx context.Context) error {
	dir := pkiDir(c.cfg.DataDir)
	p, err := dir.LoadPair(pki.NodePair)
	if err != nil {
		return err
	}
	ca, err := dir.LoadCA()
	if err != nil || !needsRenewal(c.cfg, ca, p) {
		return err
	}
	if c.cfg.HasRole(spec.RoleMetadata) && ca.Key != nil {
		err = renewOwn(c.cfg, c.st)
	} else {
		err = c.renewThere(ctx, ca, p)
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
func (c *control) renewThere(ctx context.Context, ca *pki.CA, p *pki.Pair) error {
	return c.renewalFor(ctx, p, func(r *pb.RenewCertificateResponse) error {
		cert, err := pki.ParseCert(r.CertPem)
		if err != nil {
			return err
		}
		if ca.Issuer(cert) != pki.Hash(ca.Cert) {
			return errors.New("the metadata node that was asked signs by another CA yet")
		}
		return pkiDir(c.cfg.DataDir).SaveCert(pki.NodePair, cert)
	})
}
