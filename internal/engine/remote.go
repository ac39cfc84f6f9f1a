package engine

import (
	"slices"
	"time"

	"keelson.io/keelson/internal/link"
	"keelson.io/keelson/internal/wire"
)

// remoteReplica is a volume's link to a member on another node. It follows the node's record: its address
// and its number of shards may change. It implements volume.Link.
type remoteReplica struct {
	s      *shard
	node   string
	volume string
	peer   *link.Peer // nil while the node isn't known
	subs   []*remoteSub
}

type remoteSub struct {
	fn     func(up bool)
	cancel func() // of the subscription at peer; nil if there is none
	gone   bool
}

// resolve finds the peer that answers for the member now.
func (r *remoteReplica) resolve() {
	n, ok := r.s.nodes[r.node]
	if !ok || n.EngineAddr == "" {
		return
	}
	p := r.s.links.Peer(n.Name, n.EngineAddr, shardIndex(r.volume, n.Shards))
	if p == r.peer {
		return
	}
	was := r.Up()
	r.peer = p
	for _, sub := range slices.Clone(r.subs) {
		if sub.gone {
			continue
		}
		if sub.cancel != nil {
			sub.cancel()
		}
		sub.cancel = p.Subscribe(sub.fn)
		if up := p.Up(); up != was {
			r.s.loop.Post(func() {
				if !sub.gone && r.Up() == up {
					sub.fn(up)
				}
			})
		}
	}
}

// Up implements volume.Link.
func (r *remoteReplica) Up() bool { return r.peer != nil && r.peer.Up() }

// Subscribe implements volume.Link.
func (r *remoteReplica) Subscribe(fn func(up bool)) (cancel func()) {
	sub := &remoteSub{fn: fn}
	if r.peer != nil {
		sub.cancel = r.peer.Subscribe(fn)
	}
	r.subs = append(r.subs, sub)
	return func() {
		sub.gone = true
		if sub.cancel != nil {
			sub.cancel()
		}
		r.subs = slices.DeleteFunc(r.subs, func(o *remoteSub) bool { return o == sub })
		if len(r.subs) == 0 {
			r.s.remotes = slices.DeleteFunc(r.s.remotes, func(o *remoteReplica) bool { return o == r })
		}
	}
}

// Relieve has a connection made anew that is taken up by requests which aren't answered.
func (r *remoteReplica) Relieve(limit time.Duration) {
	if r.peer != nil {
		r.peer.Relieve(limit)
	}
}

// Submit implements wire.Member.
func (r *remoteReplica) Submit(q *wire.Request) {
	if r.peer != nil {
		r.peer.Submit(q)
		return
	}
	q.ResetAnswer()
	r.s.loop.Post(func() {
		q.Status = wire.StatusLost
		q.Done(q)
	})
}
