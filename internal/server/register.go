package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/meta/etcd"
	"keelson.io/keelson/internal/spec"
)

// Version is what this binary calls itself in the metadata; set by main.
var Version = "dev"

// openStore opens the metadata.
func openStore(cfg Config, st State, log *slog.Logger) (*etcd.Store, error) {
	if st.External {
		t, err := cfg.Metadata.tls()
		if err != nil {
			return nil, err
		}
		return etcd.New(etcd.Config{Endpoints: cfg.Metadata.Endpoints, TLS: t})
	}
	id, err := loadIdentity(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	endpoints := slices.Clone(st.Endpoints)
	if own := cfg.etcdClientURL(); cfg.OwnEtcd() && (st.Founder || st.Promoted) && !slices.Contains(endpoints, own) {
		endpoints = append(endpoints, own)
	}
	log.Debug("metadata", "endpoints", endpoints)
	t, err := id.client("")
	if err != nil {
		return nil, err
	}
	return etcd.New(etcd.Config{Endpoints: endpoints, TLS: t})
}

func (m MetadataConfig) tls() (*tls.Config, error) {
	if m.CAFile == "" && m.CertFile == "" {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if m.CAFile != "" {
		pem, err := os.ReadFile(m.CAFile)
		if err != nil {
			return nil, fmt.Errorf("metadata.caFile: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("metadata.caFile: %s has no certificate", m.CAFile)
		}
	}
	if m.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(m.CertFile, m.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("metadata.certFile: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// registerRetry is the pause before the metadata is asked again.
const registerRetry = 500 * time.Millisecond

// removedAsked is after how many tries in vain the other nodes are asked whether this one was removed.
const removedAsked = 8

// register makes sure that the records of the cluster and of this node are in the metadata and say
// what the configuration says. It waits until the metadata answers. Every child that needs the
// records calls it.
func register(ctx context.Context, cfg Config, st State, store meta.Store, log *slog.Logger) error {
	said := false
	for try := 0; ; try++ {
		err := registerOnce(ctx, cfg, st, store)
		if errors.Is(err, meta.ErrUnavailable) && try%removedAsked == 0 {
			err = cmp.Or(toldRemoved(ctx, cfg, st), err)
		}
		if err == nil || errors.Is(err, ErrPermanent) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !said && !errors.Is(err, meta.ErrConflict) {
			log.Info("waiting for the metadata", "err", err)
			said = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(registerRetry):
		}
	}
}

func registerOnce(ctx context.Context, cfg Config, st State, store meta.Store) error {
	now := time.Now().UTC().Truncate(time.Second)
	c, err := store.Cluster(ctx)
	switch {
	case errors.Is(err, meta.ErrNotFound) && st.Founder:
		rec := spec.Cluster{ID: st.ClusterID, Name: st.ClusterName, Created: now, Settings: spec.DefaultSettings()}
		if _, err := store.PutCluster(ctx, rec, 0); err != nil {
			return err
		}
	case err != nil:
		return err
	case c.Value.ID != st.ClusterID:
		return permanent(fmt.Errorf("the metadata is that of cluster %s, but the data directory belongs to %s", c.Value.ID, st.ClusterID))
	}
	if err := stillWelcome(cfg, st, c.Value); err != nil {
		return err
	}
	want := spec.Node{
		Name: st.Node, ID: st.NodeID, Roles: cfg.Roles, Zone: cfg.Zone, Labels: cfg.Labels,
		APIAddr: cfg.APIAddr(), EngineAddr: cfg.EngineAddr(), Shards: cfg.Engine.Shards, Joined: now, Version: Version,
	}
	have, err := store.Node(ctx, st.Node)
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		return err
	}
	if err == nil {
		if have.Value.ID != st.NodeID {
			return permanent(fmt.Errorf("there is another node named %s (id %s) in the cluster; give this one another name", st.Node, have.Value.ID))
		}
		want.Member, want.CA = have.Value.Member, have.Value.CA
		want.Cordoned, want.Unschedulable = have.Value.Cordoned, have.Value.Unschedulable
		want.Upkeep, want.Joined = have.Value.Upkeep, have.Value.Joined
		if nodesEqual(have.Value, want) {
			return nil
		}
	}
	_, err = store.PutNode(ctx, want, have.Rev)
	return err
}

func nodesEqual(a, b spec.Node) bool {
	if !slices.Equal(a.Roles, b.Roles) || len(a.Labels) != len(b.Labels) {
		return false
	}
	for k, v := range a.Labels {
		if b.Labels[k] != v {
			return false
		}
	}
	return a.Zone == b.Zone && a.APIAddr == b.APIAddr && a.EngineAddr == b.EngineAddr && a.Shards == b.Shards && a.Version == b.Version
}

// How often the members of the metadata are asked for: often at first, as a new node's own is
// added just then. And how long an answer may take.
const (
	followFirst = time.Second
	followEvery = 5 * time.Second
	followWait  = 2 * time.Second
)

// followMembers keeps the store's endpoints those of the voting members until ctx ends. A process that
// knew only one member would lose the metadata with it.
func followMembers(ctx context.Context, cfg Config, st State, store *etcd.Store) {
	if st.External {
		return
	}
	began := time.Now()
	for {
		have := store.Client().Endpoints()
		if want := memberURLs(ctx, cfg, store, have); !slices.Equal(have, want) {
			store.SetEndpoints(want)
		}
		pause := followEvery
		if time.Since(began) < time.Minute {
			pause = followFirst
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// memberURLs asks any member for all, without a quorum. When none answers, a metadata node adds its own; and the other nodes are asked, as
// all members that this one knows may have been replaced while it was away.
func memberURLs(ctx context.Context, cfg Config, store *etcd.Store, have []string) []string {
	asking, cancel := context.WithTimeout(ctx, followWait)
	defer cancel()
	r, err := store.Client().MemberList(asking, clientv3.WithSerializable())
	if err != nil {
		want := slices.Clone(have)
		if own := cfg.etcdClientURL(); cfg.OwnEtcd() {
			want = append(want, own)
		}
		if st, err := ReadState(cfg.DataDir); err == nil {
			want = append(want, peersEndpoints(ctx, cfg.DataDir, st)...)
		}
		slices.Sort(want)
		return slices.Compact(want)
	}
	var want []string
	for _, m := range r.Members {
		if !m.IsLearner {
			want = append(want, m.ClientURLs...)
		}
	}
	if len(want) == 0 {
		return have
	}
	slices.Sort(want)
	return want
}
