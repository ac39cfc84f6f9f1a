// Package member is how the nodes of a Kubernetes cluster become one Keelson cluster without a person: which node makes the
// cluster, which nodes hold its metadata, and with what the others join.
//
// What they agree on is kept in the release's namespace: a ConfigMap, the record, and a Secret with a join token. Nobody but
// the nodes writes them, so they stay when the release is uninstalled, as what is on the nodes does.
//
// Invariants: at most one node is ever told to make a cluster, and none once the record names one; every change of the
// record compares the version that it was decided on; every step can be repeated after a crash.
//
// The package owns no goroutine. Decide, Joined and Keep block on Kubernetes' API.
package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.io/keelson/internal/spec"
)

// API is what this package asks of Kubernetes. Its errors are those of k8s.io/apimachinery/pkg/api/errors.
type API interface {
	// Record returns the record's fields and their version; both are empty if there is none.
	Record(ctx context.Context) (data map[string]string, version string, err error)
	// PutRecord makes the record if version is "", and otherwise replaces that version of it.
	PutRecord(ctx context.Context, data map[string]string, version string) error
	// Secret returns a secret's fields, nil if there is none; PutSecret makes or replaces it.
	Secret(ctx context.Context, name string) (map[string]string, error)
	PutSecret(ctx context.Context, name string, data map[string]string) error
	// Desired is on how many nodes Keelson is to run.
	Desired(ctx context.Context) (int, error)
}

// Fields of the record. A node's own begins with nodePrefix: "new ID" until it is a member, then "in CLUSTER ID".
const (
	fieldCluster  = "cluster"
	fieldFounder  = "founder"
	fieldMetadata = "metadata"
	fieldSince    = "since" // when the first node asked
	nodePrefix    = "node."
)

// Fields of the Secret.
const (
	fieldToken = "token"
	fieldURLs  = "urls"
)

// Self is a node that asks what it is to do.
type Self struct {
	Node string
	ID   string // of the node, made before it asks
	// Cluster is the cluster that its data directory belongs to, "" for none, and Roles are those that it has there.
	Cluster string
	Roles   []spec.Role
}

// Decision is what a node does.
type Decision struct {
	Roles []spec.Role
	// URLs and Token are with what it joins; empty for the node that makes the cluster.
	URLs  []string
	Token string
}

// Found reports whether the node makes the cluster.
func (d Decision) Found() bool { return d.Token == "" }

// Board is the record and the Secret, as one node sees them.
type Board struct {
	API     API
	Members int // how many nodes hold the metadata
	Log     *slog.Logger
	// Patience is how long nodes that haven't asked are waited for before one of those that have makes the cluster;
	// Pause is how often it is looked. 0 is a minute, and a second.
	Patience, Pause time.Duration
}

func (b *Board) patience() time.Duration {
	if b.Patience == 0 {
		return time.Minute
	}
	return b.Patience
}

func (b *Board) pause() time.Duration {
	if b.Pause == 0 {
		return time.Second
	}
	return b.Pause
}

// Retry is the pause before joining itself is tried again.
func (b *Board) Retry() time.Duration { return 3 * b.pause() }

// errWait is why a node can't be told yet.
type errWait struct{ why string }

func (e errWait) Error() string { return e.why }

// Decide tells a node what to do, once that is known. A node that belongs to a cluster needn't wait for anything: without
// Kubernetes' API, or the Secret, it goes on with what it has.
func (b *Board) Decide(ctx context.Context, self Self) (Decision, error) {
	said := ""
	for {
		d, err := b.decideOnce(ctx, self)
		var wait errWait
		switch {
		case err == nil:
			return d, nil
		case self.Cluster != "" && !lost(err):
			b.Log.Warn("nothing can be learnt from Kubernetes; going on as a member of the cluster", "cluster", self.Cluster, "err", err)
			return Decision{Roles: self.Roles}, nil
		case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
			return Decision{}, fmt.Errorf("kubernetes doesn't let this pod see how nodes join: %w; are the roles of the chart there?", err)
		case errors.As(err, &wait), retriable(err):
			if err.Error() != said {
				said = err.Error()
				b.Log.Info("waiting", "for", said)
			}
		default:
			return Decision{}, err
		}
		select {
		case <-ctx.Done():
			return Decision{}, fmt.Errorf("%w while waiting: %s", ctx.Err(), said)
		case <-time.After(b.pause()):
		}
	}
}

// lost reports whether another node changed the record first.
func lost(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }

// retriable reports whether asking again may help: it lost against another node, or the API is away.
func retriable(err error) bool {
	var status apierrors.APIStatus
	return lost(err) || apierrors.IsServerTimeout(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsInternalError(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsTimeout(err) || !errors.As(err, &status)
}

func (b *Board) decideOnce(ctx context.Context, self Self) (Decision, error) {
	data, version, err := b.API.Record(ctx)
	if err != nil {
		return Decision{}, err
	}
	r := parse(data)
	if self.Cluster != "" {
		return b.member(ctx, self, r, version)
	}
	changed := r.ask(self)
	if r.cluster == "" {
		return b.newcomer(ctx, self, r, version, changed)
	}
	// The role is the node's from here on: nobody else counts on that place.
	if !slices.Contains(r.metadata, self.Node) && len(r.metadata) < b.Members {
		r.metadata = append(r.metadata, self.Node)
		changed = true
	}
	if changed {
		if err := b.API.PutRecord(ctx, r.fields(), version); err != nil {
			return Decision{}, err
		}
	}
	d := Decision{Roles: []spec.Role{spec.RoleStorage}}
	if slices.Contains(r.metadata, self.Node) {
		d.Roles = []spec.Role{spec.RoleMetadata, spec.RoleStorage}
	}
	if d.URLs, d.Token, err = b.invitation(ctx, r.cluster); err != nil {
		return Decision{}, err
	}
	if d.Token == "" {
		return Decision{}, errWait{"the cluster's invitation, which its leader writes once the metadata is up"}
	}
	return d, nil
}

// newcomer is a node without a cluster while the record names none: one of them makes it, once all had the time to say what they are.
func (b *Board) newcomer(ctx context.Context, self Self, r record, version string, changed bool) (Decision, error) {
	found := Decision{Roles: []spec.Role{spec.RoleMetadata, spec.RoleStorage}}
	if r.founder == self.Node {
		return found, nil
	}
	if r.founder != "" {
		if changed {
			if err := b.API.PutRecord(ctx, r.fields(), version); err != nil {
				return Decision{}, err
			}
		}
		return Decision{}, errWait{fmt.Sprintf("node %s, which makes the cluster; if it is gone for good and no node has data, delete the record, and another one does", r.founder)}
	}
	desired, err := b.API.Desired(ctx)
	if err != nil {
		return Decision{}, err
	}
	if r.since.IsZero() {
		r.since, changed = time.Now(), true
	}
	all := desired > 0 && len(r.nodes) >= desired
	if all || time.Since(r.since) >= b.patience() {
		r.founder = slices.Min(r.names())
		r.metadata, changed = []string{r.founder}, true
	}
	if changed {
		if err := b.API.PutRecord(ctx, r.fields(), version); err != nil {
			return Decision{}, err
		}
	}
	if r.founder == self.Node {
		return found, nil
	}
	if r.founder != "" {
		return Decision{}, errWait{fmt.Sprintf("node %s, which makes the cluster", r.founder)}
	}
	return Decision{}, errWait{fmt.Sprintf("the other nodes, in case one of them has a cluster already: %d of %d have come; no longer than %s", len(r.nodes), desired, b.patience())}
}

// member is a node that has a cluster: it makes the record say so, if that says nothing else.
func (b *Board) member(ctx context.Context, self Self, r record, version string) (Decision, error) {
	d := Decision{Roles: self.Roles}
	if r.cluster != "" && r.cluster != self.Cluster {
		b.Log.Error("this node belongs to another cluster than the record names; it stays in its own. Remove its data directory to have it join the recorded one",
			"own", self.Cluster, "recorded", r.cluster)
		return d, nil
	}
	if err := b.say(ctx, self, r, version); err != nil {
		return d, err
	}
	var err error
	d.URLs, d.Token, err = b.invitation(ctx, self.Cluster)
	return d, err
}

// Joined writes into the record that the node is a member of its cluster now.
func (b *Board) Joined(ctx context.Context, self Self) error {
	for {
		data, version, err := b.API.Record(ctx)
		if err == nil {
			err = b.say(ctx, self, parse(data), version)
		}
		if err == nil || !retriable(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(b.pause()):
		}
	}
}

func (b *Board) say(ctx context.Context, self Self, r record, version string) error {
	if r.cluster != "" && r.cluster != self.Cluster {
		return nil // Decide tells people
	}
	mine := "in " + self.Cluster + " " + self.ID
	meta := slices.Contains(self.Roles, spec.RoleMetadata)
	if r.cluster == self.Cluster && r.nodes[self.Node] == mine && meta == slices.Contains(r.metadata, self.Node) {
		return nil
	}
	r.cluster, r.nodes[self.Node] = self.Cluster, mine
	r.metadata = slices.DeleteFunc(r.metadata, func(n string) bool { return n == self.Node })
	if meta {
		r.metadata = append(r.metadata, self.Node)
	}
	return b.API.PutRecord(ctx, r.fields(), version)
}

// Names of the Secrets: with the invitation, and with what lets others see the metrics.
const (
	SecretJoin   = "keelson"
	SecretViewer = "keelson-viewer"
)

// invitation returns with what nodes join a cluster, nothing if it isn't there yet.
func (b *Board) invitation(ctx context.Context, cluster string) (urls []string, token string, err error) {
	s, err := b.API.Secret(ctx, SecretJoin)
	if err != nil || s[fieldCluster] != cluster {
		return nil, "", err
	}
	return strings.Fields(s[fieldURLs]), s[fieldToken], nil
}
