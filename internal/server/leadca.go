package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/server/v3/storage/mvcc"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// leadCA moves a change of the CA on, while this node leads: to the next phase when every node has confirmed the one that is, and from one
// member of the metadata to the next that has to start anew. What it decides is in the cluster's record.
func (c *control) leadCA(ctx context.Context) {
	said := ""
	awaitCA(ctx, c, func() string {
		state, err := c.leadCAOnce(ctx, time.Now().UTC())
		if text := fmt.Sprint(err); err != nil && ctx.Err() == nil && text != said {
			said = text
			c.log.Warn("the change of the cluster's CA doesn't go on; trying again", "err", err)
		}
		return state
	})
}

func (c *control) leadCAOnce(ctx context.Context, now time.Time) (state string, err error) {
	cl, err := c.store.Cluster(ctx)
	if err != nil || cl.Value.CA == nil {
		return "", err
	}
	was := *cl.Value.CA
	state = fmt.Sprint(was.Next, was.Phase, was.Turn)
	v := caView{plan: was, now: now}
	nodes, err := c.store.Nodes(ctx)
	if err != nil {
		return state, err
	}
	for _, n := range nodes {
		v.nodes = append(v.nodes, n.Value)
		state += was.WaitsFor(n.Value)
	}
	if !c.st.External {
		if v.members, err = (members{c.store.Client()}).List(ctx); err != nil {
			return state, err
		}
	}
	next := v.decide()
	if next != nil && next.Phase == was.Phase && next.Turn == was.Turn {
		return state, nil
	}
	cl.Value.CA = next
	if _, err := c.store.PutCluster(ctx, cl.Value, cl.Rev); err != nil {
		if errors.Is(err, meta.ErrConflict) {
			return state, nil
		}
		return state, err
	}
	switch {
	case next == nil:
		return state, c.tellCA(ctx, "ca-changed", "the cluster's CA was changed: the old one is trusted by no node any more, nor are tokens that name it")
	case next.Phase == spec.CAIssue && was.Phase != next.Phase:
		return state, c.tellCA(ctx, "ca-issues", "every node trusts the new CA: nodes get certificates of it")
	case next.Phase == spec.CARetire && was.Phase != next.Phase:
		return state, c.tellCA(ctx, "ca-retires", "every node has a certificate of the new CA: nodes cease to trust the old one")
	}
	return state, nil
}

func (c *control) tellCA(ctx context.Context, what, message string) error {
	c.log.Info(message)
	return meta.AddEvent(ctx, c.store, spec.Event{Time: time.Now().UTC(), What: what, Message: message})
}

// caView is what is decided on.
type caView struct {
	plan    spec.CARotation
	nodes   []spec.Node
	members []*pb.MetadataMember // none if the metadata is an etcd of its own
	now     time.Time
}

// decide returns the plan as it is to go on; nil if it is done. It changes the phase, or the turn, or nothing.
func (v caView) decide() *spec.CARotation {
	p := v.plan
	i := slices.IndexFunc(v.nodes, func(n spec.Node) bool { return n.Name == p.Turn })
	if p.Turn != "" && (i < 0 || !v.needsTurn(v.nodes[i])) {
		p.Turn = ""
		return &p
	}
	if !slices.ContainsFunc(v.nodes, func(n spec.Node) bool { return p.WaitsFor(n) != "" }) {
		switch {
		case p.Phase == spec.CATrust:
			p.Phase, p.Turn = spec.CAIssue, ""
		case p.Phase == spec.CAIssue && !v.now.Before(p.KeepOld):
			p.Phase, p.Turn = spec.CARetire, ""
		case p.Phase == spec.CARetire:
			return nil
		}
		return &p
	}
	if p.Turn == "" && v.mayRestart() {
		// The first by name, of those that are there to take it.
		for _, n := range v.nodes {
			if v.needsTurn(n) && v.healthy(n.Name) {
				p.Turn = cmp.Or(p.Turn, n.Name)
			}
		}
	}
	return &p
}

// needsTurn reports whether a node's member of the metadata has to start anew in this phase.
func (v caView) needsTurn(n spec.Node) bool {
	return n.CA.NeedsTurn() && v.plan.WaitsFor(n) != ""
}

func (v caView) healthy(node string) bool {
	return slices.ContainsFunc(v.members, func(m *pb.MetadataMember) bool { return m.Name == node && m.Healthy })
}

// mayRestart reports whether a member can be missed for a moment: the others have a quorum, or all are there, as there may be just one or two.
func (v caView) mayRestart() bool {
	voters, healthy, missed := 0, 0, 0
	for _, m := range v.members {
		if m.Learner {
			return false // one is on its way
		}
		voters++
		if m.Healthy {
			healthy++
		} else if !slices.Contains(v.plan.Without, m.Name) {
			missed++
		}
	}
	return missed == 0 || healthy-1 > voters/2
}

// turnEvery is how often a member of the metadata looks whether it is its turn.
const turnEvery = time.Second

// awaitTurn returns an error when this member is to start anew, as it trusts others than the node does, and it is its turn. It looks at the
// member's own copy of the plan: that is there also without a quorum.
func awaitTurn(ctx context.Context, cfg Config, kv mvcc.WatchableKV) error {
	for rev := int64(0); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(turnEvery):
		}
		if now := kv.Rev(); now == rev {
			continue
		} else {
			rev = now
		}
		c, err := memberCluster(kv)
		if err != nil || c.CA == nil || c.CA.Turn != cfg.Node {
			continue
		}
		has, err := nodeCA(cfg)
		if err == nil && has.NeedsTurn() {
			return errors.New("the metadata member starts anew, to trust whom this node does")
		}
		rev = 0
	}
}
