package member

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"keelson.io/keelson/internal/spec"
)

// Cluster is what Keep needs of Keelson.
type Cluster interface {
	ID() string
	// CA is the cluster's CA certificate, PEM.
	CA() (string, error)
	Nodes(ctx context.Context) ([]Node, error)
	// Token returns the join token text if it can still be used for long enough, and otherwise a new one.
	Token(ctx context.Context, text string) (string, error)
	// ViewerToken is the same for a token that lets see the metrics.
	ViewerToken(ctx context.Context, text string) (string, error)
	// Forget removes a node that is gone and holds nothing; it is refused for all others.
	Forget(ctx context.Context, node string) error
}

// Node is a node of the cluster.
type Node struct {
	Name, ID, APIAddr string
	Roles             []spec.Role
	Alive             bool
}

// Keep brings the record and the Secrets up to date, once. Only the cluster's leader calls it. A node that comes without its data
// directory is forgotten as what it was, as soon as nothing depends on that.
func (b *Board) Keep(ctx context.Context, c Cluster) error {
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	data, version, err := b.API.Record(ctx)
	if err != nil {
		return err
	}
	r := parse(data)
	if r.cluster != "" && r.cluster != c.ID() {
		return fmt.Errorf("the record in Kubernetes is that of cluster %s, and this is %s: nodes that are new join that one; delete the ConfigMap keelson to have them join this one", r.cluster, c.ID())
	}
	if err := b.keepRecord(ctx, c, r, version, nodes); err != nil {
		return err
	}
	if err := b.keepInvitation(ctx, c, nodes); err != nil {
		return err
	}
	if err := b.keepViewer(ctx, c); err != nil {
		return err
	}
	return b.replaced(ctx, c, r, nodes)
}

// keepRecord has the record name the cluster, its metadata nodes, and no node that is neither here nor asks.
func (b *Board) keepRecord(ctx context.Context, c Cluster, r record, version string, nodes []Node) error {
	before := r.fields()
	r.cluster = c.ID()
	asking, there := r.newIDs(), map[string]bool{}
	var metadata []string
	for _, n := range nodes {
		there[n.Name] = true
		if slices.Contains(n.Roles, spec.RoleMetadata) {
			metadata = append(metadata, n.Name)
		}
	}
	for _, name := range r.metadata {
		if asking[name] != "" && !slices.Contains(metadata, name) {
			metadata = append(metadata, name)
		}
	}
	slices.Sort(metadata)
	r.metadata = metadata
	for name := range r.nodes {
		if !there[name] && asking[name] == "" {
			delete(r.nodes, name)
		}
	}
	if after := r.fields(); !maps.Equal(before, after) {
		return b.API.PutRecord(ctx, after, version)
	}
	return nil
}

func (b *Board) keepInvitation(ctx context.Context, c Cluster, nodes []Node) error {
	have, err := b.API.Secret(ctx, SecretJoin)
	if err != nil {
		return err
	}
	old := ""
	if have[fieldCluster] == c.ID() {
		old = have[fieldToken]
	}
	token, err := c.Token(ctx, old)
	if err != nil {
		return err
	}
	var urls []string
	for _, n := range nodes {
		urls = append(urls, "https://"+n.APIAddr)
	}
	slices.Sort(urls)
	return b.putSecret(ctx, SecretJoin, have, map[string]string{fieldCluster: c.ID(), fieldToken: token, fieldURLs: strings.Join(urls, " ")})
}

func (b *Board) keepViewer(ctx context.Context, c Cluster) error {
	have, err := b.API.Secret(ctx, SecretViewer)
	if err != nil {
		return err
	}
	token, err := c.ViewerToken(ctx, have[fieldToken])
	if err != nil {
		return err
	}
	ca, err := c.CA()
	if err != nil {
		return err
	}
	return b.putSecret(ctx, SecretViewer, have, map[string]string{fieldToken: token, "ca.crt": ca})
}

func (b *Board) putSecret(ctx context.Context, name string, have, want map[string]string) error {
	if maps.Equal(have, want) {
		return nil
	}
	return b.API.PutSecret(ctx, name, want)
}

// replaced forgets nodes whose place a node of the same name, but with another id, wants.
func (b *Board) replaced(ctx context.Context, c Cluster, r record, nodes []Node) error {
	var errs []error
	asking := r.newIDs()
	for _, n := range nodes {
		id := asking[n.Name]
		if id == "" || id == n.ID || n.Alive {
			continue
		}
		if err := c.Forget(ctx, n.Name); err != nil {
			errs = append(errs, fmt.Errorf("node %s came back without its data directory, and waits: %w", n.Name, err))
			continue
		}
		b.Log.Info("node came back without its data directory; what it was is forgotten, and it joins anew", "node", n.Name)
	}
	return errors.Join(errs...)
}
