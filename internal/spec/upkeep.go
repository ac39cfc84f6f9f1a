package spec

import (
	"fmt"
	"strconv"
	"time"
)

// Upkeep is what is being done to a node. It is a plan that stays until somebody ends it.
type Upkeep string

// The kinds of upkeep. Either one implies that the node gets no new replicas.
const (
	// Drain: the node is going to be restarted. Its copies stay, and don't count as ones that others can rely on.
	Drain Upkeep = "drain"
	// Decommission: the node is going to leave. Its copies move to other nodes.
	Decommission Upkeep = "decommission"
)

// Limits of the settings of rebalancing.
const (
	MinRebalance          = 5
	MaxRebalance          = 100
	DefaultRebalanceMoves = 1
	MaxRebalanceMoves     = 16
)

// CheckRebalance checks the setting Rebalance. The error is an *InvalidError.
func CheckRebalance(n int) error {
	if n != 0 && (n < MinRebalance || n > MaxRebalance) {
		return &InvalidError{"rebalance", strconv.Itoa(n), fmt.Sprintf("0, for never, or from %d to %d percent", MinRebalance, MaxRebalance)}
	}
	return nil
}

// CheckRebalanceMoves checks the setting RebalanceMoves. The error is an *InvalidError.
func CheckRebalanceMoves(n int) error {
	if n < 1 || n > MaxRebalanceMoves {
		return &InvalidError{"rebalance-moves", strconv.Itoa(n), fmt.Sprintf("from 1 to %d", MaxRebalanceMoves)}
	}
	return nil
}

// Evict is why a member that is all right is to be removed.
type Evict string

// The reasons for a removal.
const (
	// EvictMove: a person, or rebalancing, chose another place for the copy. It can't be called off by ending an upkeep.
	EvictMove Evict = "move"
	// EvictDrain: its pool is being drained, or its node decommissioned. If that is called off, the copy stays.
	EvictDrain Evict = "drain"
)

// Closed reports whether the node takes no new replicas.
func (n *Node) Closed() bool { return n.Cordoned || n.Unschedulable || n.Upkeep != "" }

// Staying is how many members of the column aren't to be removed.
func (c *Column) Staying() (n int) {
	for _, m := range c.Members {
		if !m.Removing {
			n++
		}
	}
	return n
}

// Relocate has the copy of member number j leave for why, and adds to in its place. The copy stays in use until the new one,
// and as many others as there shall be, are in sync.
func (c *Column) Relocate(j int, why Evict, to Member) {
	c.Members[j].Removing, c.Members[j].Evict = true, why
	c.Members = append(c.Members, to)
}

// MaxRemoved bounds how many removed nodes a cluster remembers.
const MaxRemoved = 1000

// Refuses reports whether a node with a certificate that was issued then has been removed since. A node that joins again under the
// same name gets another one.
func (c *Cluster) Refuses(node string, issued time.Time) bool {
	at, removed := c.Removed[node]
	return removed && !issued.After(at)
}

// Forget records that a node was removed. The oldest of too many is forgotten itself, unless its certificate may still be valid: for
// valid, certificates are.
func (c *Cluster) Forget(node string, now time.Time, valid time.Duration) {
	next := map[string]time.Time{node: now}
	for name, at := range c.Removed {
		if name != node && (len(c.Removed) < MaxRemoved || now.Sub(at) < valid) {
			next[name] = at
		}
	}
	c.Removed = next
}
