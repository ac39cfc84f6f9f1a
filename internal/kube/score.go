package kube

import (
	"fmt"

	"keelson.io/keelson/internal/spec"
)

// Scores of a node for one volume. kube-scheduler takes 0 to 10.
const (
	scoreHeld   = 10 // it has the volume now: another pod there may share it
	scoreCopy   = 10 // a copy in sync
	scoreSecond = 7  // a copy in sync, but the volume is held elsewhere
	scoreStale  = 5  // a copy that is brought up to date when the node reads it
	scoreZone   = 3  // a copy in sync is in the same zone
)

// site is what the scheduler's choice is made from.
type site struct {
	nodes map[string]spec.Node
	alive map[string]bool
}

// refuse says why no volume of Keelson's can be used on a node; "" if it can.
func (s site) refuse(node string) string {
	n, known := s.nodes[node]
	switch {
	case !known:
		return fmt.Sprintf("Keelson doesn't run on this node (no node %s in its cluster)", node)
	case !storageNode(n):
		return fmt.Sprintf("Keelson's node %s has no storage role, so no volume can be attached there", node)
	case !s.alive[node]:
		return fmt.Sprintf("Keelson's storage on node %s is lost: it holds no lease", node)
	}
	return ""
}

// score says how near a node is to the data of a volume: 0 to 10.
func (s site) score(v *spec.Volume, node string) int64 {
	held := v.State.Node != "" && v.State.Frontend != spec.FrontendNone && s.alive[v.State.Node]
	if held && v.State.Node == node {
		return scoreHeld
	}
	var sum int64
	for _, c := range v.State.Columns {
		best := int64(0)
		for _, m := range c.Members {
			switch {
			case m.Node == node && m.State == spec.InSync && held:
				best = max(best, scoreSecond)
			case m.Node == node && m.State == spec.InSync:
				best = max(best, scoreCopy)
			case m.Node == node && !m.Removing:
				best = max(best, scoreStale)
			case m.State == spec.InSync && s.nodes[node].Zone != "" && s.nodes[m.Node].Zone == s.nodes[node].Zone:
				best = max(best, scoreZone)
			}
		}
		sum += best
	}
	if n := int64(len(v.State.Columns)); n > 0 {
		return sum / n
	}
	return 0
}

// scores says how near a node is to the data of several volumes: larger ones count for more.
func (s site) scores(volumes []spec.Volume, node string) int64 {
	var sum, all float64
	for i := range volumes {
		size := float64(volumes[i].Size)
		sum += size * float64(s.score(&volumes[i], node))
		all += size
	}
	if all == 0 {
		return 0
	}
	return int64(sum/all + 0.5)
}
