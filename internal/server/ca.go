package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// How often a node looks at the plan by which the CA is changed: often for some time after anything has changed in it, seldom while it waits
// for a node that is away, and now and then although it has heard of none.
const (
	caEvery  = time.Second
	caRecent = time.Minute
	caSeldom = 10 * time.Second
	caLook   = time.Minute
)

// followCA carries out this node's part of a change of the CA, until ctx ends, and writes down in the node's record how far it is. Each
// step looks at what is there, and can be repeated.
func (c *control) followCA(ctx context.Context) {
	said := ""
	look := func() (state string) {
		state, err := c.followCAOnce(ctx)
		if text := fmt.Sprint(err); err != nil && ctx.Err() == nil && text != said {
			said = text
			c.log.Warn("the change of the cluster's CA doesn't go on here; trying again", "err", err)
		} else if err == nil {
			said = ""
		}
		return state
	}
	awaitCA(ctx, c, look)
}

// awaitCA calls look each time that the plan may have changed, and as often as what look returns asks for: the plan's state, "" if there is none.
func awaitCA(ctx context.Context, c *control, look func() (state string)) {
	last, changed := "", time.Now()
	for ctx.Err() == nil {
		state, pause := look(), caLook
		if state != last {
			last, changed = state, time.Now()
		}
		switch {
		case state != "" && time.Since(changed) < caRecent:
			pause = caEvery
		case state != "":
			pause = caSeldom
		}
		once, cancel := context.WithTimeout(ctx, pause)
		c.store.FollowCluster(once, cancel)
		cancel()
	}
}

func (c *control) followCAOnce(ctx context.Context) (state string, err error) {
	cl, err := c.store.Cluster(ctx)
	if err != nil {
		return "", err
	}
	if plan := cl.Value.CA; plan != nil {
		state = fmt.Sprint(plan.Next, plan.Phase, plan.Turn)
		err = c.stepCA(ctx, *plan)
	}
	return state, errors.Join(err, c.noteCA(ctx))
}

// stepCA does what the plan's phase asks of this node.
func (c *control) stepCA(ctx context.Context, plan spec.CARotation) error {
	dir := pkiDir(c.cfg.DataDir)
	bundle, err := pki.ParseCA([]byte(plan.Bundle))
	if err != nil {
		return fmt.Errorf("the plan's certificates: %w", err)
	}
	next := bundle.Cert
	if c.cfg.HasRole(spec.RoleMetadata) {
		if err := c.fetchKey(ctx, next); err != nil {
			return err
		}
	}
	changed, err := applyCA(dir, bundle, plan.Phase)
	if err != nil {
		return err
	}
	if changed {
		c.log.Info("CAs changed", "phase", plan.Phase, "next", plan.Next)
	}
	if plan.Phase == spec.CAIssue {
		return c.renew(ctx)
	}
	return nil
}

// applyCA brings the files to what they are to be in a phase. After each write in it a node can go on, and what was done can be repeated.
func applyCA(dir pki.Dir, plan *pki.CA, phase spec.CAPhase) (changed bool, err error) {
	have, err := dir.LoadCA()
	if err != nil {
		return false, err
	}
	p, err := dir.LoadPair(pki.NodePair)
	if err != nil {
		return false, err
	}
	want := wantCA(have, plan, phase)
	if want.Issuer(p.Cert) == "" {
		return false, errors.New("this node's certificate isn't of a CA that will be trusted; it has to be renewed first")
	}
	if phase == spec.CARetire {
		// The old key goes first: with it there, the node isn't done.
		if err := errors.Join(dir.NoteFormer(have, plan.Cert), dir.KeepKeyOf(plan.Cert)); err != nil {
			return false, err
		}
	}
	if bytes.Equal(want.Encode(), have.Encode()) {
		return false, nil
	}
	return true, dir.SaveTrust(want)
}

// wantCA is what a node is to have in a phase. Until the last one, nothing that it trusts is taken away.
func wantCA(have, plan *pki.CA, phase spec.CAPhase) *pki.CA {
	if phase == spec.CARetire {
		return &pki.CA{Cert: plan.Cert}
	}
	signs := plan.Cert
	if phase == spec.CATrust && len(plan.Others) > 0 {
		signs = plan.Others[0]
	}
	want := &pki.CA{Cert: signs, Cross: plan.Cross}
	for _, c := range slices.Concat(plan.Roots(), have.Roots()) {
		if !want.Trusts(pki.Hash(c)) {
			want.Others = append(want.Others, c)
		}
	}
	return want
}

// fetchKey gets the key of a CA from another metadata node, if this one doesn't have it.
func (c *control) fetchKey(ctx context.Context, ca *x509.Certificate) error {
	dir := pkiDir(c.cfg.DataDir)
	key, err := dir.KeyOf(ca)
	if err != nil || key != nil {
		return err
	}
	p, err := dir.LoadPair(pki.NodePair)
	if err != nil {
		return err
	}
	return c.renewalFor(ctx, p, func(r *pb.RenewCertificateResponse) error {
		if k := keyFor(ca, r); k != nil {
			return dir.SaveNextKey(k)
		}
		return errors.New("the metadata node that was asked doesn't have the new CA's key either")
	})
}

// noteCA writes what this node has of CAs to its record, if that says something else.
func (c *control) noteCA(ctx context.Context) error {
	has, err := nodeCA(c.cfg)
	if err != nil {
		return err
	}
	n, err := c.store.Node(ctx, c.st.Node)
	if err != nil || n.Value.CA.Equal(has) {
		return err
	}
	n.Value.CA = has
	_, err = c.store.PutNode(ctx, n.Value, n.Rev)
	return err
}

// otherKey stands for the key of a CA that the node doesn't trust.
const otherKey = "other"

// nodeCA looks at what is in the data directory, and whom the member of the metadata trusts that runs. The files of the processes come first:
// a member that starts meanwhile trusts no fewer.
func nodeCA(cfg Config) (spec.NodeCA, error) {
	dir := pkiDir(cfg.DataDir)
	ca, err := dir.LoadCA()
	if err != nil {
		return spec.NodeCA{}, err
	}
	p, err := dir.LoadPair(pki.NodePair)
	if err != nil {
		return spec.NodeCA{}, err
	}
	n := spec.NodeCA{Trusts: hashes(ca), Issuer: ca.Issuer(p.Cert)}
	keys, err := dir.Keys()
	if err != nil {
		return n, err
	}
	for _, k := range keys {
		i := slices.IndexFunc(ca.Roots(), func(c *x509.Certificate) bool { return pki.Belongs(c, k) })
		if i < 0 {
			n.Keys = append(n.Keys, otherKey)
		} else {
			n.Keys = append(n.Keys, n.Trusts[i])
		}
	}
	b, err := os.ReadFile(peersCA(cfg))
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err != nil {
		return n, err
	}
	peers, err := pki.ParseCA(b)
	if err != nil {
		return n, fmt.Errorf("%s: %w", peersCA(cfg), err)
	}
	n.Peers = hashes(peers)
	return n, nil
}

func hashes(ca *pki.CA) (list []string) {
	for _, c := range ca.Roots() {
		list = append(list, pki.Hash(c))
	}
	return list
}

// peersCA is the file with the CAs that this node's member of the metadata trusts. It reads that when it starts, and never again.
func peersCA(cfg Config) string { return filepath.Join(cfg.RunDir, "etcd-ca.crt") }

// takePeersCA has the member that starts now trust whom the node does. What changes meanwhile is looked at again: whoever looks at the
// file after the node's own has changed sees the old one there, or the new.
func takePeersCA(cfg Config) error {
	for {
		ca, err := pkiDir(cfg.DataDir).LoadCA()
		if err != nil {
			return err
		}
		if err := replaceFile(peersCA(cfg), ca.EncodeRoots(), 0o600); err != nil {
			return err
		}
		again, err := pkiDir(cfg.DataDir).LoadCA()
		if err != nil {
			return err
		}
		if slices.Equal(hashes(ca), hashes(again)) {
			return nil
		}
	}
}

// rotation is api.Rotation in a node's directory.
type rotation struct{ dir pki.Dir }

func (r rotation) Next(cluster string) (hash string, bundle []byte, err error) {
	ca, err := r.dir.LoadCA()
	if err != nil {
		return "", nil, err
	}
	next, err := pki.NewCA(cluster)
	if err != nil {
		return "", nil, err
	}
	cross, err := ca.Vouch(next)
	if err != nil {
		return "", nil, err
	}
	// Before anybody hears of it. If nobody ever does, the next one takes its place.
	if err := r.dir.SaveNextKey(next.Key); err != nil {
		return "", nil, err
	}
	next.Others, next.Cross = ca.Roots(), []*x509.Certificate{cross}
	return pki.Hash(next.Cert), next.Encode(), nil
}

func (r rotation) Keys() (list [][]byte, err error) {
	keys, err := r.dir.Keys()
	for _, k := range keys {
		b, err := pki.EncodeKey(k)
		if err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	return list, err
}
