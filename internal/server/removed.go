package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// errRemoved: the node was removed from the cluster.
var errRemoved = errors.New("this node was removed from the cluster")

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
		return permanent(fmt.Errorf("%w; to take it in again, wipe it with `keelson node wipe`, and join with a new token", errRemoved))
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
