package api

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// removedFor is how long what is known of removed nodes is used before the metadata is asked again.
const removedFor = 5 * time.Second

// removed is what is known of the nodes that were removed. While the metadata can't be asked, what was known counts.
type removed struct {
	mu      sync.Mutex
	asked   time.Time
	cluster spec.Cluster
}

// removedText is what every refusal of a removed node says.
const removedText = "was removed from the cluster"

// IsRemoved reports whether the error of a call says that the node that made it was removed from the cluster.
func IsRemoved(err error) bool {
	return connect.CodeOf(err) == connect.CodeUnauthenticated && strings.Contains(err.Error(), removedText)
}

// refuses returns an error for the certificate of a node that was removed.
func (s *Server) refuses(ctx context.Context, node string, cert *x509.Certificate) error {
	r := &s.removed
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := s.cfg.Now(); now.Sub(r.asked) > removedFor || now.Before(r.asked) {
		if c, err := s.cfg.Store.Cluster(ctx); err == nil {
			r.cluster, r.asked = c.Value, now
		}
	}
	if r.cluster.Refuses(node, pki.Issued(cert)) {
		return fmt.Errorf("%w: node %s %s; to take it in again, wipe it and join with a new token", errUnauthenticated, node, removedText)
	}
	return nil
}

// forgetNode records that a node is removed, before its record goes: its certificate is refused from then on.
func (s *Server) forgetNode(ctx context.Context, node string) error {
	return retry(ctx, func() error {
		c, err := s.cfg.Store.Cluster(ctx)
		if err != nil {
			return err
		}
		c.Value.Forget(node, s.cfg.Now().UTC(), pki.Valid)
		_, err = s.cfg.Store.PutCluster(ctx, c.Value, c.Rev)
		s.removed.mu.Lock()
		s.removed.asked = time.Time{}
		s.removed.mu.Unlock()
		return err
	})
}
