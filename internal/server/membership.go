package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/install/member"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// MembershipConfig says where in Kubernetes the nodes keep how they become one cluster. Without a name they don't.
type MembershipConfig struct {
	Namespace string `yaml:"namespace"`
	Name      string `yaml:"name"` // of the ConfigMap
	// MetadataMembers is how many nodes hold the metadata: the first ones that come.
	MetadataMembers int `yaml:"metadataMembers"`
}

func (m *MembershipConfig) validate() error {
	if m.Name == "" && m.Namespace == "" {
		return nil
	}
	for key, v := range map[string]string{"membership.name": m.Name, "membership.namespace": m.Namespace} {
		if err := spec.CheckName(key, v); err != nil {
			return err
		}
	}
	if m.MetadataMembers != 1 && m.MetadataMembers != 3 && m.MetadataMembers != 5 {
		return fmt.Errorf("membership.metadataMembers: %d is none of 1, 3 and 5", m.MetadataMembers)
	}
	return nil
}

// How often the leader looks after the membership, and how long the tokens live that it makes: they are replaced in the second
// half of that.
const (
	membershipEvery = 15 * time.Second
	membershipTTL   = 30 * 24 * time.Hour
	membershipName  = "kubernetes"
)

// keepMembership keeps what nodes join with, until ctx ends. Only the leader calls it.
func (c *control) keepMembership(ctx context.Context) {
	m := c.cfg.Membership
	if m.Name == "" {
		return
	}
	k, err := member.InCluster(m.Namespace, m.Name)
	if err != nil {
		c.log.Error("how nodes join can't be kept in Kubernetes", "err", err)
		return
	}
	b := &member.Board{API: k, Members: m.MetadataMembers, Log: c.log}
	said := ""
	for {
		err := b.Keep(ctx, &keptCluster{c: c})
		if ctx.Err() != nil {
			return
		}
		if text := fmt.Sprint(err); err != nil && text != said {
			said = text
			c.log.Warn("how nodes join is not up to date in Kubernetes; trying again", "err", err)
		} else if err == nil {
			said = ""
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(membershipEvery):
		}
	}
}

// keptCluster is member.Cluster by this node's API.
type keptCluster struct{ c *control }

func (k *keptCluster) api() *api.Client {
	return k.c.dialer.dial(spec.Node{Name: k.c.st.Node, APIAddr: k.c.cfg.APIAddr()})
}

func (k *keptCluster) ID() string { return k.c.st.ClusterID }

func (k *keptCluster) CA() (string, error) {
	ca, err := pkiDir(k.c.cfg.DataDir).LoadCA()
	if err != nil {
		return "", err
	}
	return string(ca.EncodeRoots()), nil
}

func (k *keptCluster) Nodes(ctx context.Context) ([]member.Node, error) {
	got, err := k.api().Nodes.ListNodes(ctx, &pb.ListNodesRequest{})
	if err != nil {
		return nil, err
	}
	out := make([]member.Node, 0, len(got.Nodes))
	for _, n := range got.Nodes {
		x := member.Node{Name: n.Name, ID: n.Id, APIAddr: n.ApiAddr, Alive: n.Alive}
		for _, r := range n.Roles {
			x.Roles = append(x.Roles, spec.Role(r))
		}
		out = append(out, x)
	}
	return out, nil
}

// usable reports whether a token lives for another half of its time.
func usable(expires *timestamppb.Timestamp) bool {
	return time.Until(expires.AsTime()) > membershipTTL/2
}

// signs reports whether the CA of that hash is the one that signs: tokens of another one won't be good for long.
func (k *keptCluster) signs(hash string) bool {
	ca, err := pkiDir(k.c.cfg.DataDir).LoadCA()
	return err == nil && pki.Hash(ca.Cert) == hash
}

func (k *keptCluster) Token(ctx context.Context, text string) (string, error) {
	cl := k.api().Cluster
	if t, err := pki.ParseToken(text); err == nil && k.signs(t.CAHash) {
		have, err := cl.ListTokens(ctx, &pb.ListTokensRequest{})
		if err != nil {
			return "", err
		}
		if slices.ContainsFunc(have.Tokens, func(x *pb.Token) bool { return x.Id == t.ID && usable(x.Expires) }) {
			return text, nil
		}
	}
	r, err := cl.CreateToken(ctx, &pb.CreateTokenRequest{Ttl: durationpb.New(membershipTTL)})
	return r.GetToken(), err
}

func (k *keptCluster) ViewerToken(ctx context.Context, text string) (string, error) {
	ac := k.api().Access
	if t, err := pki.ParseAPIToken(text); err == nil && k.signs(t.CAHash) {
		have, err := ac.ListAPITokens(ctx, &pb.ListAPITokensRequest{})
		if err != nil {
			return "", err
		}
		if slices.ContainsFunc(have.Tokens, func(x *pb.APIToken) bool { return x.Id == t.ID && usable(x.Expires) }) {
			return text, nil
		}
	}
	r, err := ac.CreateAPIToken(ctx, &pb.CreateAPITokenRequest{Name: membershipName, Role: string(spec.RoleViewer), Ttl: durationpb.New(membershipTTL)})
	return r.GetToken(), err
}

func (k *keptCluster) Forget(ctx context.Context, node string) error {
	_, err := k.api().Nodes.RemoveNode(ctx, &pb.RemoveNodeRequest{Name: node})
	return err
}

// JoinAs makes the data directory one of a cluster, as Kubernetes' record has it: it takes the node's place there, waits until it is
// known what to do, and joins, or makes the cluster. It returns the configuration that keelson server is to run with. reach says
// whether a node's API can be reached.
func JoinAs(ctx context.Context, cfg Config, b *member.Board, reach func(ctx context.Context, url string) bool, log *slog.Logger) (Config, error) {
	st, err := place(cfg)
	if err != nil {
		return cfg, err
	}
	self := member.Self{Node: st.Node, ID: st.NodeID, Cluster: st.ClusterID, Roles: st.Roles}
	for {
		d, err := b.Decide(ctx, self)
		if err != nil {
			return cfg, err
		}
		cfg.Roles, cfg.Join = d.Roles, JoinConfig{}
		if !d.Found() {
			if cfg.Join.URL = firstReached(ctx, d.URLs, reach); cfg.Join.URL != "" {
				cfg.Join.Token = d.Token
			}
		}
		switch {
		case self.Cluster != "":
			return cfg, nil
		case !d.Found() && cfg.Join.URL == "":
			log.Warn("none of the cluster's nodes can be reached; trying again", "apis", d.URLs)
		default:
			if st.Roles = d.Roles; !slices.Equal(st.Roles, self.Roles) {
				if err := st.write(cfg.DataDir); err != nil {
					return cfg, err
				}
				self.Roles = st.Roles
			}
			err := Prepare(ctx, cfg)
			if err == nil {
				return cfg, joined(ctx, cfg, b, self)
			}
			// Also what is permanent for one who joins by hand may pass: a node that has lost its data directory waits until what
			// it was is forgotten.
			log.Warn("this node can't join yet; trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return cfg, ctx.Err()
		case <-time.After(b.Retry()):
		}
	}
}

func joined(ctx context.Context, cfg Config, b *member.Board, self member.Self) error {
	st, err := cfg.ownState()
	if err != nil {
		return err
	}
	self.Cluster = st.ClusterID
	return b.Joined(ctx, self)
}

// place reads the state of the data directory, or begins it: a node has an id before anybody hears of it.
func place(cfg Config) (State, error) {
	st, err := ReadState(cfg.DataDir)
	if errors.Is(err, ErrNoState) {
		st = State{Node: cfg.Node, NodeID: spec.NewID(), Roles: cfg.Roles, APIAddr: cfg.APIAddr()}
		err = st.write(cfg.DataDir)
	}
	if err == nil && st.Node != cfg.Node {
		err = permanent(fmt.Errorf("data directory %s is that of node %s, and this is node %s; set the name back, or use another data directory", cfg.DataDir, st.Node, cfg.Node))
	}
	return st, err
}

func firstReached(ctx context.Context, urls []string, reach func(context.Context, string) bool) string {
	for _, u := range urls {
		if reach(ctx, u) {
			return u
		}
	}
	return ""
}
