package api

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// Rotation is what a node that has the CA's key does to change the CA.
type Rotation interface {
	// Next makes the CA that is to sign after the present one, and keeps its key on this node. It returns the new CA's hash, and its
	// certificate with those of the CAs before, as in spec.CARotation.
	Next(cluster string) (hash string, bundle []byte, err error)
	// Keys returns the keys of CAs that this node has, in PEM.
	Keys() ([][]byte, error)
}

// maxKeepOld bounds for how long an old CA may be kept: as long as an API token lives.
const maxKeepOld = maxTokenTTL

type caService struct{ s *Server }

func (c caService) GetCA(ctx context.Context, _ *pb.GetCARequest) (*pb.CAStatus, error) {
	v, err := c.s.read(ctx)
	if err != nil {
		return nil, err
	}
	ca, err := c.s.cfg.CA()
	if err != nil {
		return nil, err
	}
	r := &pb.CAStatus{Current: pki.Hash(ca.Cert), Until: timestamppb.New(ca.Cert.NotAfter)}
	if p := v.cluster.CA; p != nil {
		r.Phase, r.Next, r.Begun, r.Without = string(p.Phase), p.Next, timestamppb.New(p.Begun), p.Without
		if !p.KeepOld.IsZero() {
			r.KeepOld = timestamppb.New(p.KeepOld)
		}
	}
	for _, n := range v.nodes {
		x := &pb.CANode{Node: n.Name, Alive: v.alive[n.Name], Issuer: n.CA.Issuer, Trusts: n.CA.Trusts}
		if v.cluster.CA != nil {
			x.Waits = v.cluster.CA.WaitsFor(n)
		}
		r.Nodes = append(r.Nodes, x)
	}
	return r, nil
}

// RotateCA writes the plan; nodes carry it out, and the leader moves it on.
func (c caService) RotateCA(ctx context.Context, r *pb.RotateCARequest) (*pb.CAStatus, error) {
	v, err := c.s.read(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkRotate(v, r); err != nil {
		return nil, err
	}
	ca, err := c.s.cfg.CA()
	if err != nil {
		return nil, err
	}
	if v.cluster.CA == nil && (ca.Key == nil || c.s.cfg.Rotation == nil) {
		return c.forward(ctx, v, r)
	}
	c.s.rotating.Lock()
	defer c.s.rotating.Unlock()
	if err := retry(ctx, func() error { return c.plan(ctx, r) }); err != nil {
		return nil, err
	}
	return c.GetCA(ctx, &pb.GetCARequest{})
}

// plan begins a change, or amends the one that is under way.
func (c caService) plan(ctx context.Context, r *pb.RotateCARequest) error {
	cl, err := c.s.cfg.Store.Cluster(ctx)
	if err != nil {
		return err
	}
	now := c.s.cfg.Now().UTC()
	if cl.Value.CA == nil {
		if c.s.cfg.Rotation == nil {
			return errNoCAKey
		}
		hash, bundle, err := c.s.cfg.Rotation.Next(cl.Value.ID)
		if err != nil {
			return err
		}
		cl.Value.CA = &spec.CARotation{Phase: spec.CATrust, Next: hash, Bundle: string(bundle), Begun: now}
	}
	p := cl.Value.CA
	for _, n := range r.Without {
		if !slices.Contains(p.Without, n) {
			p.Without = append(p.Without, n)
		}
	}
	if r.KeepOld != nil {
		p.KeepOld = now.Add(r.KeepOld.AsDuration())
	}
	_, err = c.s.cfg.Store.PutCluster(ctx, cl.Value, cl.Rev)
	return err
}

func checkRotate(v *view, r *pb.RotateCARequest) error {
	if r.KeepOld != nil && (r.KeepOld.AsDuration() < 0 || r.KeepOld.AsDuration() > maxKeepOld) {
		return &spec.InvalidError{Field: "keep-old", Value: r.KeepOld.AsDuration().String(), Legal: "from 0 to " + maxKeepOld.String()}
	}
	for _, name := range r.Without {
		switch {
		case !slices.ContainsFunc(v.nodes, func(n spec.Node) bool { return n.Name == name }):
			var names []string
			for _, n := range v.nodes {
				names = append(names, n.Name)
			}
			return &spec.InvalidError{Field: "without", Value: name, Legal: "a node: " + strings.Join(names, ", ")}
		case v.alive[name]:
			return errorf(errRefused, "node %s is alive: only one that is gone can be left out, and it needs a new join token when it comes back", name)
		}
	}
	return nil
}

// forward asks a node that has the CA's key.
func (c caService) forward(ctx context.Context, v *view, r *pb.RotateCARequest) (*pb.CAStatus, error) {
	for _, n := range v.nodes {
		if n.Name != c.s.cfg.Node && v.alive[n.Name] && hasRole(n.Roles, spec.RoleMetadata) {
			return c.s.cfg.Dial(n).CA.RotateCA(ctx, r)
		}
	}
	return nil, errorf(errGone, "no node that has the CA's key is alive; start one with the role metadata")
}
