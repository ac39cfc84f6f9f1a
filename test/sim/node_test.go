package sim_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"keelson.io/keelson/internal/aio/sim"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/link"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/volume"
	"keelson.io/keelson/internal/wire"
)

// node is a machine with an engine, and what the machine's agent does: attach, detach, restart.
type node struct {
	c          *cluster
	idx        int
	name       string
	sn         *sim.Node
	eng        *engine  // nil while no engine runs
	guests     []*guest // of each volume
	metaCut    bool
	failing    bool // its disk fails operations
	lapsed     bool // its lease isn't kept alive, although it reaches the store
	leaseUntil time.Duration
	wallOff    time.Duration // how wrong its wall clock is
	sees       []bool        // the leases, as this node saw them last
	engines    uint64
	runName    string
}

// engine is one process: what package engine wires together on a real node.
type engine struct {
	n        *node
	l        *sim.Loop
	meta     []*client
	links    *link.Links
	replicas map[wire.ReplicaID]*watched
	opening  int
	ready    bool
	failed   bool         // its disk has failed operations, so a write may be torn
	atts     []attachment // of each volume
}

// attachment is an engine's hold on a volume.
type attachment struct {
	vol       *volume.Volume // nil: not attached
	attaching bool           // the transaction is under way
}

// run names the boot of the node's machine.
func (n *node) run() string { return n.runName }

// named gives the machine's present boot its name.
func (n *node) named() { n.runName = fmt.Sprintf("%s-boot%d", n.name, n.sn.Boot()) }

// wall is what the node's wall clock shows.
func (n *node) wall() time.Time { return time.Unix(epoch, 0).Add(n.c.w.Now() + n.wallOff).UTC() }

const poolDir = "/pool"

// start starts an engine: it opens the node's replicas, then serves other engines.
func (n *node) start() {
	n.engines++
	n.named()
	l := n.sn.Start()
	e := &engine{n: n, l: l, failed: n.failing, replicas: map[wire.ReplicaID]*watched{}, atts: make([]attachment, len(n.c.vols))}
	for _, v := range n.c.vols {
		e.meta = append(e.meta, &client{s: n.c.s, v: v, n: n, l: l})
	}
	n.eng = e
	e.opening = 1
	l.Work(func() { e.makePool() }, func() { e.openAll() })
}

func (e *engine) log() *slog.Logger { return e.n.c.log.With("on", e.n.name) }

// makePool makes the directory of the node's pool.
func (e *engine) makePool() {
	if err := e.l.FS().MkdirAll(poolDir); err != nil {
		panic(err)
	}
	if err := e.l.FS().SyncDir("/"); err != nil {
		panic(err)
	}
}

// openAll opens the node's replicas.
func (e *engine) openAll() {
	n, l := e.n, e.l
	for _, v := range n.c.vols {
		for _, col := range v.rec.State.Columns {
			for _, m := range col.Members {
				if m.Node == n.name {
					e.opening++
					e.openReplica(n.c.copies[m.Replica], e.opened)
				}
			}
		}
	}
	l.Post(e.opened)
}

// opened is called when one more replica was opened.
func (e *engine) opened() {
	if e.opening--; e.opening > 0 {
		return
	}
	e.links = link.New(link.Config{
		Loop: e.l, Self: e.n.name, Cluster: "c1", Incarnation: e.n.engines, Log: e.log(),
		Local: func(id wire.ReplicaID) (wire.Member, bool) {
			m, ok := e.replicas[id]
			return m, ok
		},
	})
	e.ready = true
	e.agent()
}

// down forgets the engine that was killed.
func (n *node) down() {
	n.eng = nil
	for _, g := range n.guests {
		if g != nil {
			g.vol, g.eng = nil, nil
		}
	}
}

func (n *node) crash() {
	n.sn.Crash()
	n.down()
}

func (n *node) powerLoss() {
	for _, g := range n.guests {
		if g != nil {
			g.kill()
		}
	}
	n.sn.PowerLoss()
	n.down()
	n.named()
}

// agent looks, now and then, whether a volume is to be attached here.
func (e *engine) agent() {
	c := e.n.c
	if e.l.Dead() {
		return
	}
	c.w.After(100*time.Millisecond+time.Duration(c.w.Rand().IntN(200))*time.Millisecond, "agent", e.agent)
	for i, v := range c.vols {
		// Its own volume goes on where it was, however the engine ended; another's only if it is wanted here.
		if a := &e.atts[i]; a.vol == nil && !a.attaching && e.ready && (v.rec.State.Node == e.n.name || v.desired == e.n.idx) {
			e.attach(v)
		}
	}
}

// attach raises a volume's term for this node, and then attaches it.
func (e *engine) attach(v *vol) {
	e.atts[v.i].attaching = true
	c, self := e.n.c, e.n.name
	var prev repl.Prev
	e.meta[v.i].update(false, func(rec *spec.Volume) error {
		st := &rec.State
		switch {
		case (v.ending || v.finished) && st.Node == "":
			return errHeld // the wish that this began with is over (seeds 101133, 109893)
		case st.Node == "":
			prev = repl.PrevDetached
		case st.Node == self:
			prev = repl.PrevOwnDead
		case !c.s.leaseAlive(st.Node) && !invariant.Mutant("lease-taken-as-held") || invariant.Mutant("lease-taken-as-gone"):
			prev = repl.PrevOther
		default:
			return errHeld
		}
		st.Term++
		st.Node, st.Frontend = self, spec.FrontendNBD
		return nil
	}, func(rec spec.Volume, rev meta.Rev, err error) {
		e.atts[v.i].attaching = false
		if err == nil {
			e.attached(v, rec, rev, prev)
		}
	})
}

// attached begins the attachment that the metadata has now.
func (e *engine) attached(v *vol, rec spec.Volume, rev meta.Rev, prev repl.Prev) {
	c, n := e.n.c, e.n
	term := rec.State.Term
	c.count([]string{"takeover", "attach", "own takeover"}[prev])
	var vol *volume.Volume
	vol = volume.Attach(volume.Config{
		Loop: e.l, Log: e.log(), Volume: rec, Rev: rev, Self: n.name, Prev: prev, Meta: e.meta[v.i],
		Members:         e.member,
		Alive:           func(name string) bool { return n.sees[c.node(name).idx] },
		Wall:            n.wall,
		CheckpointEvery: v.checkpointEvery,
		AnswerLimit:     []time.Duration{8, 10, 20}[c.seed%3] * time.Second, // more than a slow disk takes
		Ready:           func() { e.served(v, vol, term) },
		Lost:            func(err error) { e.lost(v, vol) },
	})
	e.atts[v.i].vol = vol
	vol.SetGroups(slices.Clone(c.groups.list))
	g := n.guests[v.i]
	if g != nil && (g.stopped || g.term+1 != term && !invariant.Mutant("resend-in-any-term")) {
		// Another node had the volume in between: what the guest still waits for fails.
		g.kill()
		g = nil
	}
	if g != nil {
		g.eng, g.vol, g.term = e, vol, term
		if len(g.pending) > 0 {
			c.counts["resent requests"] += len(g.pending)
			v.reach(phaseResent)
		}
		for _, r := range g.resent() {
			r.term = term
			for _, op := range r.hops {
				op.term = term
			}
			if invariant.Mutant("resend-after-others") {
				r.sendLate()
				continue
			}
			r.send()
		}
	}
}

// served is called when the volume serves.
func (e *engine) served(v *vol, vol *volume.Volume, term uint64) {
	c, n := e.n.c, e.n
	c.count("served")
	v.reach(phaseServe)
	if vol.Status().Unreconciled > 0 {
		v.reach(phaseReconcile)
	}
	v.servedTerm(term, n.guests[v.i])
	if n.guests[v.i] == nil && vol == e.atts[v.i].vol {
		g := v.newGuest(n)
		g.eng, g.vol, g.term = e, vol, term
	}
}

func (e *engine) lost(v *vol, vol *volume.Volume) {
	e.n.c.count("lost")
	if a := &e.atts[v.i]; a.vol == vol {
		a.vol = nil
	}
	if g := e.n.guests[v.i]; g != nil && g.vol == vol {
		g.kill()
	}
}

// detach gives the volume up cleanly.
func (e *engine) detach(v *vol, then func(err error)) {
	n, c, g, vol := e.n, e.n.c, e.n.guests[v.i], e.atts[v.i].vol
	if g == nil || vol == nil || g.vol != vol || g.leaving {
		then(errors.New("nothing to detach"))
		return
	}
	g.leaving = true
	g.stop(func() {
		h := v.hist
		call := h.tick()
		v.reach(phaseDetach)
		e.l.Post(func() {
			vol.Detach(func(err error) {
				if err == nil {
					h.tick()
					h.flushed = max(h.flushed, call)
					c.count("detached")
					if e.atts[v.i].vol == vol {
						e.atts[v.i].vol = nil
					}
				}
				g.kill()
				if err != nil && e.atts[v.i].vol == vol && n.guests[v.i] == nil {
					next := v.newGuest(n)
					next.eng, next.vol, next.term = e, vol, vol.Term()
				}
				then(err)
			})
		})
	})
}

// member returns how this engine reaches a member.
func (e *engine) member(m spec.Member) volume.Link {
	if m.Node == e.n.name {
		id := replicaID(m.Replica)
		return &local{e: e, id: id}
	}
	return e.links.Peer(m.Node, m.Node+":9501", 0)
}

// local is the link to a replica of the same engine.
type local struct {
	e  *engine
	id wire.ReplicaID
}

// Submit implements wire.Member.
func (l *local) Submit(r *wire.Request) {
	if m, ok := l.e.replicas[l.id]; ok {
		m.Submit(r)
		return
	}
	r.ResetAnswer()
	r.Status = wire.StatusNotFound
	l.e.l.Post(func() { r.Done(r) })
}

// Up implements volume.Link.
func (l *local) Up() bool { return true }

// Subscribe implements volume.Link.
func (l *local) Subscribe(func(bool)) func() { return func() {} }
