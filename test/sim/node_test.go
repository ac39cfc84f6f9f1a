package sim_test

import (
	"errors"
	"fmt"
	"time"

	"keelson.io/keelson/internal/aio/sim"
	"keelson.io/keelson/internal/link"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/replica"
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
	eng        *engine // nil while no engine runs
	guest      *guest
	metaCut    bool
	leaseUntil time.Duration
	sees       []bool // the leases, as this node saw them last
	engines    uint64
}

// engine is one process: what package engine wires together on a real node.
type engine struct {
	n         *node
	l         *sim.Loop
	meta      *client
	links     *link.Links
	replicas  map[wire.ReplicaID]*replica.Replica
	opening   int
	ready     bool
	vol       *volume.Volume
	attaching bool
}

// run names the boot of the node's machine.
func (n *node) run() string { return fmt.Sprintf("%s-boot%d", n.name, n.sn.Boot()) }

const poolDir = "/pool"

func replicaDir(id string) string { return poolDir + "/" + id }

// start starts an engine: it opens the node's replicas, then serves other engines.
func (n *node) start() {
	n.engines++
	l := n.sn.Start()
	e := &engine{n: n, l: l, replicas: map[wire.ReplicaID]*replica.Replica{}}
	e.meta = &client{s: n.c.s, n: n, l: l}
	n.eng = e
	e.opening = 1
	l.Work(func() { e.makePool() }, func() { e.openAll() })
}

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
	for i, col := range n.c.s.rec.State.Columns {
		for _, m := range col.Members {
			if m.Node == n.name {
				e.opening++
				e.openReplica(m.Replica, i, e.opened)
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
		Loop: e.l, Self: e.n.name, Cluster: "c1", Incarnation: e.n.engines, Log: e.n.c.log.With("on", e.n.name),
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
	if g := n.guest; g != nil {
		g.vol, g.eng = nil, nil
	}
}

func (n *node) crash() {
	n.sn.Crash()
	n.down()
}

func (n *node) powerLoss() {
	if g := n.guest; g != nil {
		g.kill()
	}
	n.sn.PowerLoss()
	n.down()
}

// agent looks, now and then, whether the volume is to be attached here.
func (e *engine) agent() {
	c := e.n.c
	if e.l.Dead() {
		return
	}
	c.w.After(100*time.Millisecond+time.Duration(c.w.Rand().IntN(200))*time.Millisecond, "agent", e.agent)
	if e.vol != nil || e.attaching || !e.ready {
		return
	}
	// Its own volume goes on where it was, however the engine ended; another's only if it is wanted here.
	if c.s.rec.State.Node == e.n.name || c.desired == e.n.idx {
		e.attach()
	}
}

// attach raises the volume's term for this node, and then attaches it.
func (e *engine) attach() {
	e.attaching = true
	c, self := e.n.c, e.n.name
	var prev repl.Prev
	e.meta.update(false, func(rec *spec.Volume) error {
		st := &rec.State
		switch {
		case st.Node == "":
			prev = repl.PrevDetached
		case st.Node == self:
			prev = repl.PrevOwnDead
		case !c.s.leaseAlive(st.Node):
			prev = repl.PrevOther
		default:
			return errHeld
		}
		st.Term++
		st.Node, st.Frontend = self, spec.FrontendNBD
		return nil
	}, func(rec spec.Volume, rev meta.Rev, err error) {
		e.attaching = false
		if err == nil {
			e.attached(rec, rev, prev)
		}
	})
}

// attached begins the attachment that the metadata has now.
func (e *engine) attached(rec spec.Volume, rev meta.Rev, prev repl.Prev) {
	c, n := e.n.c, e.n
	term := rec.State.Term
	c.attaches++
	c.count([]string{"takeover", "attach", "own takeover"}[prev])
	var vol *volume.Volume
	vol = volume.Attach(volume.Config{
		Loop: e.l, Log: c.log.With("on", n.name), Volume: rec, Rev: rev, Self: n.name, Prev: prev, Meta: e.meta,
		Members:         e.member,
		Alive:           func(name string) bool { return n.sees[c.node(name).idx] },
		Wall:            c.wall,
		CheckpointEvery: c.p.checkpointEvery,
		Ready:           func() { e.served(vol, term) },
		Lost:            func(err error) { e.lost(vol, err) },
	})
	e.vol = vol
	g := n.guest
	if g != nil && (g.stopped || g.term+1 != term) {
		// Another node had the volume in between: what the guest still waits for fails.
		g.kill()
		g = nil
	}
	if g != nil {
		g.eng, g.vol, g.term = e, vol, term
		for _, r := range g.pending {
			r.term = term
			for _, op := range r.hops {
				op.term = term
			}
			r.send()
		}
	}
}

// served is called when the volume serves.
func (e *engine) served(vol *volume.Volume, term uint64) {
	c, n := e.n.c, e.n
	c.count("served")
	c.servedTerm(term, n.guest)
	if n.guest == nil && vol == e.vol {
		g := c.newGuest(n)
		g.eng, g.vol, g.term = e, vol, term
	}
}

func (e *engine) lost(vol *volume.Volume, err error) {
	e.n.c.count("lost")
	if e.vol == vol {
		e.vol = nil
	}
	if g := e.n.guest; g != nil && g.vol == vol {
		g.kill()
	}
}

// detach gives the volume up cleanly.
func (e *engine) detach(then func(err error)) {
	n, c, g, vol := e.n, e.n.c, e.n.guest, e.vol
	if g == nil || vol == nil || g.vol != vol || g.leaving {
		then(errors.New("nothing to detach"))
		return
	}
	g.leaving = true
	g.stop(func() {
		h := c.hist
		call := h.tick()
		e.l.Post(func() {
			vol.Detach(func(err error) {
				if err == nil {
					h.tick()
					h.flushed = max(h.flushed, call)
					c.count("detached")
					if e.vol == vol {
						e.vol = nil
					}
				}
				g.kill()
				if err != nil && e.vol == vol && n.guest == nil {
					next := c.newGuest(n)
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
