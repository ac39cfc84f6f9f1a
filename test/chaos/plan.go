package main

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// fault is one thing that goes wrong. Whom it hits is said by role, as the nodes that play the roles
// depend on what happened before.
type fault struct {
	kind  string
	guest int           // whose roles are meant
	role  string        // holder, copy, bystander
	gap   time.Duration // since the fault before began
	hold  time.Duration // how long it lasts
	way   string        // of a cut
}

// The roles of nodes towards a guest.
const (
	holder    = "holder"    // has the volume attached
	copyNode  = "copy"      // has a copy, and isn't the holder
	bystander = "bystander" // neither; a copy if there is none
)

// kindOf describes a kind of fault.
type kindOf struct {
	weight   int
	min, max time.Duration // of hold
	roles    []string
	// sees is what an application may see of it; "" is nothing but a pause.
	sees string
	do   func(r *run, f fault, node string) (undo func(), err error)
}

// faultsPerRound is how many faults there are before everything is healed and checked.
const faultsPerRound = 14

// plan draws faults from a seed, always the same.
type plan struct{ rng *rand.Rand }

func newPlan(seed uint64) *plan { return &plan{rand.New(rand.NewPCG(seed, 0xc4a05))} }

// round returns the faults of the next round, and for each guest an order of nodes to start on.
func (p *plan) round(guests, nodes int, cfg config) (faults []fault, starts []int) {
	total := 0
	for _, name := range kindNames {
		total += kinds[name].weight
	}
	for range guests {
		starts = append(starts, p.rng.IntN(nodes))
	}
	for range cfg.faults {
		n := p.rng.IntN(total)
		name := ""
		for _, name = range kindNames {
			if n -= kinds[name].weight; n < 0 {
				break
			}
		}
		if cfg.only != "" {
			name = cfg.only
		}
		k := kinds[name]
		faults = append(faults, fault{
			kind: name, guest: p.rng.IntN(guests), role: k.roles[p.rng.IntN(len(k.roles))],
			gap:  300*time.Millisecond + time.Duration(p.rng.Int64N(int64(3*time.Second))),
			hold: k.min + time.Duration(p.rng.Int64N(int64(k.max-k.min)+1)),
			way:  []string{"both ways", "out", "in", "from one node"}[p.rng.IntN(4)],
		})
	}
	return faults, starts
}

func (f fault) String() string {
	s := fmt.Sprintf("%s at the %s of guest %d, for %.1f s", f.kind, f.role, f.guest, f.hold.Seconds())
	if f.kind == "cut" {
		s += ", " + f.way
	}
	return s
}
