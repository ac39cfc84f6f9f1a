package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// Prepare is the one-shot child: it makes the data directory one of a new cluster, or of the one to
// join, or makes sure that it is this node's. What a person has to mend is ErrPermanent. Every step can be
// repeated after a crash.
func Prepare(ctx context.Context, cfg Config) error {
	log := cfg.Logger("prepare")
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.RunDir, 0o700); err != nil {
		return err
	}
	st, err := ReadState(cfg.DataDir)
	switch {
	case errors.Is(err, ErrNoState):
		st = State{Node: cfg.Node, NodeID: spec.NewID(), Roles: cfg.Roles, APIAddr: cfg.APIAddr()}
		// Written before anything is asked of a cluster: it knows this node by its id.
		if err := st.write(cfg.DataDir); err != nil {
			return err
		}
	case err != nil:
		return permanent(err)
	}
	if err := cfg.checkState(st); err != nil {
		return err
	}
	switch {
	case st.ClusterID != "" && cfg.Join.URL != "" && cfg.lostCertificate():
		// Nobody else can tell that this node is still of the cluster: the token does.
		log.Warn("this node's certificate has ended; joining again")
		err = join(ctx, cfg, &st, log)
	case st.ClusterID != "":
		err = cfg.checkToken(ctx, &st, log)
	case cfg.Join.URL != "":
		err = join(ctx, cfg, &st, log)
	default:
		err = found(cfg, &st, log)
	}
	if err != nil {
		return err
	}
	if st.APIAddr != cfg.APIAddr() {
		st.APIAddr = cfg.APIAddr()
	}
	if err := st.write(cfg.DataDir); err != nil {
		return err
	}
	return renewOwn(cfg, st)
}

// lostCertificate reports whether this node's certificate has ended, or can't be read, and it can't sign one itself.
func (c *Config) lostCertificate() bool {
	dir := pkiDir(c.DataDir)
	if ca, err := dir.LoadCA(); err == nil && ca.Key != nil {
		return false
	}
	p, err := dir.LoadPair(pki.NodePair)
	return err != nil || time.Now().After(p.Cert.NotAfter)
}

// checkState refuses a data directory of another node, or one that can't do what is configured.
func (c *Config) checkState(st State) error {
	if st.Node != c.Node {
		return permanent(fmt.Errorf("data directory %s is that of node %s, and this is node %s; set the name back, or use another data directory", c.DataDir, st.Node, c.Node))
	}
	if st.ClusterID == "" {
		return nil
	}
	if ext := len(c.Metadata.Endpoints) > 0; ext != st.External {
		return permanent(fmt.Errorf("data directory %s was made with metadata.endpoints %s, and now they are %s; a cluster can't change that", c.DataDir, set(st.External), set(ext)))
	}
	c.called(st)
	if !slices.Equal(sorted(st.Roles), sorted(c.Roles)) {
		return permanent(fmt.Errorf("node %s has the roles %v, and the configuration says %v; the roles of a node can't be changed: remove the node and join again with an empty data directory", st.Node, st.Roles, c.Roles))
	}
	return nil
}

func set(b bool) string {
	if b {
		return "set"
	}
	return "not set"
}

func sorted(rs []spec.Role) []spec.Role {
	rs = slices.Clone(rs)
	slices.Sort(rs)
	return slices.Compact(rs)
}

// ownState reads the state of a data directory that was prepared.
func (c *Config) ownState() (State, error) {
	st, err := ReadState(c.DataDir)
	if err != nil {
		return st, err
	}
	if st.ClusterID == "" {
		return st, fmt.Errorf("%s: %w", c.DataDir, ErrNoState)
	}
	return st, c.checkState(st)
}

// found makes a new cluster: its CA and this node's certificate. Its records are written when
// the metadata is there (register).
func found(cfg Config, st *State, log *slog.Logger) error {
	if !cfg.HasRole(spec.RoleMetadata) {
		return permanent(fmt.Errorf("a new cluster's first node needs the role metadata, and this one has %v; add the role, or set join.url", cfg.Roles))
	}
	dir := pkiDir(cfg.DataDir)
	ca, err := dir.LoadCA()
	var cluster string
	switch {
	case err == nil && ca.Key != nil:
		// A crash came after the CA was made: its certificate may be there too, so its cluster id counts.
		cluster = strings.TrimPrefix(ca.Cert.Subject.CommonName, "Keelson CA ")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	default:
		cluster = spec.NewID()
		if ca, err = pki.NewCA(cluster); err != nil {
			return err
		}
		if err := dir.SaveCA(ca); err != nil {
			return err
		}
	}
	ca.NodeValid = cfg.Certificates.Valid
	pair, err := ca.NewPair(pki.Identity{Cluster: cluster, Role: pki.RoleNode, Node: cfg.Node}, cfg.hosts())
	if err != nil {
		return err
	}
	if err := dir.SavePair(pki.NodePair, pair); err != nil {
		return err
	}
	st.ClusterID, st.ClusterName, st.Founder = cluster, cfg.ClusterName, true
	st.External = len(cfg.Metadata.Endpoints) > 0
	if st.Endpoints = cfg.Metadata.Endpoints; !st.External {
		st.Endpoints = []string{cfg.etcdClientURL()}
	}
	log.Info("new cluster", "cluster", cluster, "name", cfg.ClusterName)
	return nil
}

// hosts are the names and addresses that a node's certificate is for.
func (c *Config) hosts() []string { return []string{c.Node, c.Address, "127.0.0.1", "localhost"} }

// checkToken refuses a token of another cluster on a node that has joined one. With a token of a CA that it has never heard of, this node was
// left out when the cluster's CA was changed, and joins again.
func (c *Config) checkToken(ctx context.Context, st *State, log *slog.Logger) error {
	text, err := c.Join.token()
	if err != nil || text == "" {
		return nil // it isn't needed any more
	}
	t, err := pki.ParseToken(text)
	if err != nil {
		return nil
	}
	ca, err := pkiDir(c.DataDir).LoadCA()
	if err != nil {
		return err
	}
	former, err := pkiDir(c.DataDir).Former()
	if err != nil || t.CheckCA(ca) == nil || slices.Contains(former, t.CAHash) {
		return err
	}
	if c.Join.URL != "" {
		if err = join(ctx, *c, st, log); err == nil || !errors.Is(err, ErrPermanent) {
			return err
		}
	}
	return permanent(errors.Join(fmt.Errorf("data directory %s belongs to cluster %s (%s), and the join token is of another one; to leave the old cluster, use another data directory", c.DataDir, st.ClusterName, st.ClusterID), err))
}

func (j JoinConfig) token() (string, error) {
	if j.TokenFile == "" {
		return strings.TrimSpace(j.Token), nil
	}
	b, err := os.ReadFile(j.TokenFile)
	if err != nil {
		return "", fmt.Errorf("join.tokenFile: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// join gets this node's certificate from the cluster.
func join(ctx context.Context, cfg Config, st *State, log *slog.Logger) error {
	text, err := cfg.Join.token()
	if err != nil {
		return permanent(err)
	}
	t, err := pki.ParseToken(text)
	if err != nil {
		return permanent(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	url := strings.TrimSuffix(cfg.Join.URL, "/")
	if !strings.Contains(url, "://") {
		url = "https://" + url
	}
	key, csr, err := pki.NewRequest(cfg.Node, cfg.hosts())
	if err != nil {
		return err
	}
	h := httpClient(pki.PinnedTLS(t.CAHash, pki.ErrTokenCluster))
	h.Transport = &dateWarner{next: h.Transport, log: log}
	r, err := api.NewClient(h, url).Join.Join(ctx, &pb.JoinRequest{Token: text, Name: cfg.Node, NodeId: st.NodeID, Roles: roleNames(cfg.Roles), Csr: csr})
	if err != nil {
		return joinError(url, err)
	}
	cert, err := pki.ParseCert(r.CertPem)
	if err != nil {
		return fmt.Errorf("%s sent a certificate that can't be read: %w", url, err)
	}
	ca, err := pki.ParseCA(r.CaPem)
	if err != nil {
		return fmt.Errorf("%s sent a CA certificate that can't be read: %w", url, err)
	}
	if err := t.CheckCA(ca); err != nil {
		return joinError(url, err)
	}
	if st.ClusterID != "" && r.ClusterId != st.ClusterID {
		return permanent(fmt.Errorf("joining through %s: that is cluster %s (%s)", url, r.ClusterName, r.ClusterId))
	}
	if len(r.CaKeyPem) > 0 {
		if ca.Key, err = pki.ParseKey(r.CaKeyPem); err != nil {
			return fmt.Errorf("%s sent a CA key that can't be read: %w", url, err)
		}
	}
	if r.External && len(cfg.Metadata.Endpoints) == 0 {
		return permanent(fmt.Errorf("the metadata of cluster %s is an etcd of its own; set metadata.endpoints as on its other nodes", r.ClusterName))
	}
	dir := pkiDir(cfg.DataDir)
	if err := dir.SaveCA(ca); err != nil {
		return err
	}
	if err := dir.SavePair(pki.NodePair, &pki.Pair{Cert: cert, Key: key}); err != nil {
		return err
	}
	st.ClusterID, st.ClusterName, st.External = r.ClusterId, r.ClusterName, r.External
	st.Endpoints, st.Peers = r.Endpoints, r.Peers
	log.Info("joined", "cluster", r.ClusterId, "name", r.ClusterName)
	return nil
}

// maxSkewWarn is from where on a difference of clocks is worth a warning.
const maxSkewWarn = 5 * time.Second

// dateWarner warns when the other side's clock differs. Nothing depends on it, but logs do.
type dateWarner struct {
	next http.RoundTripper
	log  *slog.Logger
}

func (d *dateWarner) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := d.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if date, perr := http.ParseTime(resp.Header.Get("Date")); perr == nil {
		if skew := time.Since(date); skew.Abs() > maxSkewWarn {
			d.log.Warn("this machine's clock differs from the cluster's; set it by NTP", "ahead", skew.Round(time.Second).String())
		}
	}
	return resp, nil
}

// joinError says which errors trying again can mend.
func joinError(url string, err error) error {
	switch connect.CodeOf(err) {
	case connect.CodePermissionDenied, connect.CodeInvalidArgument, connect.CodeAlreadyExists, connect.CodeFailedPrecondition:
		return permanent(fmt.Errorf("joining through %s: %w", url, err))
	}
	if errors.Is(err, pki.ErrTokenCluster) {
		return permanent(fmt.Errorf("joining through %s: %w", url, err))
	}
	return fmt.Errorf("joining through %s: %w", url, err)
}

func roleNames(rs []spec.Role) []string {
	out := make([]string, len(rs))
	for i, r := range rs {
		out[i] = string(r)
	}
	return out
}
