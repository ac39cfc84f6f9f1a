package replica

import (
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/wire"
)

// Mistakes that the simulation plants on purpose; see invariant.Mutant.

// plantedHaste answers a fence although older requests are still under way: fence-without-drain is for a new
// term, session-without-drain for a new session of the same term.
func (r *Replica) plantedHaste() bool {
	o := r.fences.head
	if o == nil {
		return false
	}
	newTerm := o.req.Fence.PrevFence < o.req.Term
	return newTerm && invariant.Mutant("fence-without-drain") || !newTerm && invariant.Mutant("session-without-drain")
}

// plantedAccept takes requests of a term below the fence.
func (r *Replica) plantedAccept(req *wire.Request) bool {
	read := req.Kind == wire.KindRead || req.Kind == wire.KindConfirm
	return read && invariant.Mutant("old-term-reads") || !read && invariant.Mutant("old-term-writes")
}

// plantedCheckpoint makes the checkpoint durable before anything that it stands for.
func (r *Replica) plantedCheckpoint(period uint64) {
	r.m.checkpoint = period
	r.saveMeta(func(error) {})
}
