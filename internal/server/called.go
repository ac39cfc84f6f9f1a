package server

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// called gives the configuration the role metadata if the cluster has called the node to it.
func (c *Config) called(st State) {
	if st.Called && !slices.Contains(c.Roles, spec.RoleMetadata) {
		c.Roles = append(slices.Clone(c.Roles), spec.RoleMetadata)
	}
}

// callLook is how often a node looks whether it is called although it has heard nothing.
const callLook = 5 * time.Minute

// awaitCall has this node hold the metadata when the cluster calls it, until ctx ends.
func (c *control) awaitCall(ctx context.Context) {
	if c.st.External || c.cfg.HasRole(spec.RoleMetadata) {
		return
	}
	look := func() {
		if err := c.answerCall(ctx); err != nil && ctx.Err() == nil {
			c.answered = time.Now() // this process ends soon
			c.log.Warn("this node is called to hold the metadata, and can't yet; trying again", "err", err)
		}
	}
	for ctx.Err() == nil {
		look()
		once, cancel := context.WithTimeout(ctx, callLook)
		c.store.FollowNode(once, c.st.Node, look)
		cancel()
	}
}

// answerCall takes what a metadata node needs, if this node is called, and has the supervisor start its children anew, the child etcd
// among them. It can be repeated.
func (c *control) answerCall(ctx context.Context) error {
	n, err := c.store.Node(ctx, c.st.Node)
	if err != nil || n.Value.Member != spec.Called || time.Since(c.answered) < callLook {
		return err
	}
	dir := pkiDir(c.cfg.DataDir)
	p, err := dir.LoadPair(pki.NodePair)
	if err != nil {
		return err
	}
	ca, err := dir.LoadCA()
	if err != nil {
		return err
	}
	if ca.Key == nil {
		err := c.renewalFor(ctx, p, func(r *pb.RenewCertificateResponse) (err error) {
			if ca.Key = keyFor(ca.Cert, r); ca.Key == nil {
				return errors.New("the metadata node that was asked doesn't have the key of the CA that signs")
			}
			return dir.SaveCA(ca)
		})
		if err != nil {
			return err
		}
	}
	st, err := ReadState(c.cfg.DataDir)
	if err != nil {
		return err
	}
	st.Called, st.Roles, st.Served = true, append(slices.Clone(st.Roles), spec.RoleMetadata), true
	st.Roles = slices.Compact(sorted(st.Roles))
	if err := st.write(c.cfg.DataDir); err != nil {
		return err
	}
	c.log.Warn("this node is called to hold the metadata, in the place of one that is gone; its processes are started anew, and its volumes wait for a moment")
	return renewSelf(c.cfg.DataDir)
}

// renewalFor asks the metadata nodes for a renewal until take accepts what one answers.
func (c *control) renewalFor(ctx context.Context, p *pki.Pair, take func(*pb.RenewCertificateResponse) error) error {
	nodes, err := c.store.Nodes(ctx)
	if err != nil {
		return err
	}
	csr, err := pki.RequestFor(p.Key, c.st.Node, c.cfg.hosts())
	if err != nil {
		return err
	}
	err = errors.New("no node with the role metadata is known")
	for _, n := range nodes {
		if !slices.Contains(n.Value.Roles, spec.RoleMetadata) || n.Value.Name == c.st.Node {
			continue
		}
		var r *pb.RenewCertificateResponse
		if r, err = c.dialer.dial(n.Value).Cluster.RenewCertificate(ctx, &pb.RenewCertificateRequest{Csr: csr}); err == nil {
			err = take(r)
		}
		if err == nil {
			return nil
		}
	}
	return err
}

// keyFor is the key of a CA among those that came with a renewal; nil if it isn't.
func keyFor(ca *x509.Certificate, r *pb.RenewCertificateResponse) crypto.Signer {
	for _, b := range append(r.CaKeysPem, r.CaKeyPem) {
		if k, err := pki.ParseKey(b); err == nil && pki.Belongs(ca, k) {
			return k
		}
	}
	return nil
}

// renewSelf has this node's supervisor replace itself and its children, as for an upgrade.
func renewSelf(dataDir string) error {
	b, err := os.ReadFile(filepath.Join(dataDir, "server.lock"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 2 {
		return errors.New("the supervisor of this node isn't known; start keelson server again")
	}
	return syscall.Kill(pid, syscall.SIGHUP)
}
