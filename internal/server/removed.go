package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// errRemoved: the node was removed from the cluster.
var errRemoved = errors.New("this node was removed from the cluster; to take it in again, wipe it with `keelson node wipe`, and join with a new token")

// removedWait bounds how long one node is asked whether this one was removed.
const removedWait = 3 * time.Second

// stillWelcome refuses to register a node that was removed: it would come back by merely being started.
func stillWelcome(cfg Config, st State, c spec.Cluster) error {
	if len(c.Removed) == 0 || st.External {
		return nil
	}
	id, err := loadIdentity(cfg.DataDir)
	if err != nil {
		return err
	}
	p, err := id.pair()
	if err != nil {
		return err
	}
	if c.Refuses(st.Node, pki.Issued(p.Cert)) {
		return permanent(errRemoved)
	}
	return nil
}

// toldRemoved asks the other nodes whether this one was removed: the metadata's ports are shut to one that was, and say nothing. The error
// is nil if nobody says so.
func toldRemoved(ctx context.Context, cfg Config, st State) error {
	for _, peer := range st.Peers {
		c, err := peerClient(cfg.DataDir, peer)
		if err != nil {
			return nil
		}
		asking, cancel := context.WithTimeout(ctx, removedWait)
		_, err = c.Nodes.ListNodes(asking, &pb.ListNodesRequest{})
		cancel()
		if err == nil {
			return nil
		}
		if api.IsRemoved(err) {
			return permanent(errRemoved)
		}
	}
	return nil
}

// refusing adds to a server's configuration that the certificates of nodes that refused says were removed are refused.
func refusing(c *tls.Config, refused func(node string, issued time.Time) bool) *tls.Config {
	c = c.Clone()
	verify := c.VerifyConnection
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if err := verify(s); err != nil || len(s.PeerCertificates) == 0 {
			return err
		}
		id, ok := pki.PeerIdentity(s)
		if ok && refused(id.Node, pki.Issued(s.PeerCertificates[0])) {
			return fmt.Errorf("node %s was removed from the cluster", id.Node)
		}
		return nil
	}
	return c
}

// doorkeeper tells which nodes were removed: those that this node has written down, and, as soon as there is somebody to ask, all.
// Safe for concurrent use.
type doorkeeper struct {
	known spec.Cluster
	ask   atomic.Pointer[func(node string, issued time.Time) bool]
}

func (d *doorkeeper) asks(fn func(node string, issued time.Time) bool) { d.ask.Store(&fn) }

func (d *doorkeeper) refused(node string, issued time.Time) bool {
	fn := d.ask.Load()
	return d.known.Refuses(node, issued) || fn != nil && (*fn)(node, issued)
}
