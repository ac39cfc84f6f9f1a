package sim_test

import (
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// phase is something that a volume is in the middle of when a fault hits it.
type phase int

const (
	phaseServe       phase = iota // it has just begun to serve
	phaseFence                    // a member is asked to fence: attach or rejoin
	phaseFenced                   // a member has fenced, its answer is under way
	phaseTransaction              // a transaction is about to be written
	phaseAttach                   // the attachment was recorded, its answer is under way: fencing is over
	phaseResent                   // a new engine has been given the dead one's unanswered requests
	phaseLoss                     // a member was made stale
	phaseRejoin                   // a member that was away is compared
	phaseRebuild                  // a replacement is filled
	phasePromote                  // a member was recorded as in sync
	phaseReconcile                // chunks are being made identical after a failover
	phaseCheckpoint               // a member writes its checkpoint
	phaseDetach                   // the last flush and checkpoint of a clean detachment
	phaseLapse                    // the lease of the holder is gone
	phases
)

func (p phase) String() string {
	return [...]string{"serve", "fence", "fenced", "transaction", "attach", "resent", "loss", "rejoin", "rebuild", "promote",
		"reconcile", "checkpoint", "detach", "lapse"}[p]
}

// ambush is a fault that waits for a phase.
type ambush struct {
	kind faultKind
	at   phase
}

// reach is called when the volume enters a phase: a fault may have been waiting for that.
func (v *vol) reach(at phase) {
	c := v.c
	c.count("phase " + at.String())
	for i, a := range c.ambushes {
		if a.at != at || !c.faulty {
			continue
		}
		c.ambushes = append(c.ambushes[:i], c.ambushes[i+1:]...)
		rng := c.w.Rand()
		d := time.Duration(0)
		if rng.IntN(3) > 0 {
			d = time.Duration(rng.Int64N(int64([]time.Duration{200 * time.Microsecond, 2 * time.Millisecond, 30 * time.Millisecond}[rng.IntN(3)])))
		}
		c.w.After(d, "ambush", func() {
			if c.faulty {
				c.inflict(a.kind, v, at)
			}
		})
		return
	}
}

// lay has a fault wait for a phase. Of those that wait, the oldest makes room.
func (c *cluster) lay(a ambush) {
	if len(c.ambushes) >= 3 {
		c.ambushes = c.ambushes[1:]
	}
	c.ambushes = append(c.ambushes, a)
}

// provoke does what brings a volume to a phase.
func (c *cluster) provoke(v *vol, at phase) {
	n := v.holder()
	switch at {
	case phaseServe, phaseFence, phaseFenced, phaseTransaction, phaseAttach, phaseResent, phaseReconcile:
		n.crash()
		c.restartLater(n, 300*time.Millisecond)
	case phaseLoss, phaseRejoin, phasePromote:
		for _, o := range c.nodes {
			if o != n && c.w.Chance(0.5) {
				c.w.Cut(n.sn, o.sn)
				c.w.After(3*time.Second, "heal", func() { c.w.Heal(n.sn, o.sn) })
			}
		}
	case phaseRebuild:
		v.replace()
	case phaseDetach:
		v.move()
	case phaseLapse:
		n.lapsed = true
		c.w.After(meta.LeaseTTL+2*time.Second, "lease kept again", func() { n.lapsed = false })
	}
}

// compared is called when a member is asked for its gens: it is being brought back, or filled for the first time.
func (v *vol) compared() {
	at := phaseRejoin
	for _, col := range v.rec.State.Columns {
		for _, m := range col.Members {
			if m.State == spec.Syncing && !v.c.copies[m.Replica].entered {
				at = phaseRebuild
			}
		}
	}
	v.reach(at)
}

// changed sees a change of the record.
func (v *vol) changed(prev, next spec.Volume) {
	if next.State.Fenced != prev.State.Fenced {
		v.reach(phaseAttach)
	}
	for col := range min(len(prev.State.Columns), len(next.State.Columns)) {
		for _, m := range next.State.Columns[col].Members {
			for _, was := range prev.State.Columns[col].Members {
				switch {
				case was.Replica != m.Replica || was.State == m.State:
				case m.State == spec.InSync:
					v.c.copies[m.Replica].entered = true
					v.reach(phasePromote)
				case was.State == spec.InSync:
					v.reach(phaseLoss)
				}
			}
		}
	}
}

// phaseNow is what a volume is in the middle of, as far as can be seen at any moment.
func (v *vol) phaseNow() phase {
	a := v.attachment()
	if a == nil {
		if !v.c.s.leaseAlive(v.rec.State.Node) {
			return phaseLapse
		}
		return phaseAttach
	}
	st := a.vol.Status()
	for _, col := range v.rec.State.Columns {
		for _, m := range col.Members {
			for _, q := range v.c.copies[m.Replica].running {
				switch q.Kind {
				case wire.KindFence:
					return phaseFence
				case wire.KindCheckpoint:
					return phaseCheckpoint
				}
			}
		}
	}
	for _, m := range st.Members {
		switch m.Role {
		case "leaving":
			return phaseLoss
		case "catching", "joining":
			if !v.c.copies[m.Replica].entered {
				return phaseRebuild
			}
			return phaseRejoin
		case "promoting":
			return phasePromote
		}
	}
	switch {
	case !st.Serving:
		return phaseAttach
	case st.Unreconciled > 0:
		return phaseReconcile
	case v.moving:
		return phaseDetach
	case !v.c.s.leaseAlive(v.rec.State.Node):
		return phaseLapse
	}
	return phaseServe
}
