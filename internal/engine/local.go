package engine

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"keelson.io/keelson/internal/replica"
	"keelson.io/keelson/internal/wire"
)

// localReplica is a replica of this shard, or the place of one. It implements volume.Link.
//
//	absent ──▶ opening ──▶ open ──▶ closing (closed, or its directory removed) ──▶ absent
//	              └──▶ failed (tried again later)
type localReplica struct {
	s      *shard
	id     wire.ReplicaID
	volume string
	pool   *pool // nil while it is absent and in no known pool

	state    replicaState
	onDisk   bool // a directory exists
	doomed   bool // it is to be removed
	leftover bool // its pool's record says that it was left when its volume was deleted
	growing  bool // it is being made larger, or its size recorded
	checking bool // whether it is to be removed is being found out
	rep      *replica.Replica
	err      error  // why it is failed
	unread   int    // how often in a row the disk couldn't read what opening it needs
	logged   string // the error that was logged last, so that it isn't again
	subs     []*localSub
	closers  []func() // called when it is closed for the end of the shard
}

type replicaState uint8

const (
	absent replicaState = iota
	opening
	open
	closing
	failed
)

var stateNames = [...]string{"absent", "opening", "open", "closing", "failed"}

// String returns the state as it is shown.
func (s replicaState) String() string { return stateNames[s] }

type localSub struct{ fn func(up bool) }

func parseReplica(s string) (wire.ReplicaID, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) != 16 {
		return 0, fmt.Errorf("%q is not the id of a replica: 16 hex digits", s)
	}
	return wire.ReplicaID(n), nil
}

// Up implements volume.Link.
func (r *localReplica) Up() bool { return r.state == open }

// Subscribe implements volume.Link.
func (r *localReplica) Subscribe(fn func(up bool)) (cancel func()) {
	sub := &localSub{fn: fn}
	r.subs = append(r.subs, sub)
	return func() {
		sub.fn = nil
		r.subs = slices.DeleteFunc(r.subs, func(o *localSub) bool { return o == sub })
	}
}

// Submit implements wire.Member.
func (r *localReplica) Submit(q *wire.Request) {
	if r.state == open {
		r.rep.Submit(q)
		return
	}
	q.ResetAnswer()
	r.s.loop.Post(func() {
		q.Status = wire.StatusLost
		q.Done(q)
	})
}

func (r *localReplica) notify(up bool) {
	for _, sub := range slices.Clone(r.subs) {
		if sub.fn != nil {
			sub.fn(up)
		}
	}
}

func (r *localReplica) config() replica.Config {
	return replica.Config{
		Loop: r.s.loop, Dir: r.pool.path(r.id), Run: r.s.e.cfg.Run,
		Log: r.s.log.With("replica", r.id.String(), "volume", r.volume, "pool", r.pool.id),
	}
}

// openIt opens the replica whose directory exists.
func (r *localReplica) openIt() {
	r.state, r.err = opening, nil
	replica.Open(r.config(), r.opened)
}

// create makes a new replica, and opens it.
func (r *localReplica) create(d replica.Desc) {
	r.state, r.err, r.onDisk = opening, nil, true
	replica.Create(r.config(), d, r.opened)
}

func (r *localReplica) opened(rep *replica.Replica, err error) {
	if err != nil {
		if err.Error() != r.logged {
			r.logged = err.Error()
			r.s.log.Error("replica can't be opened; trying again", "replica", r.id.String(), "volume", r.volume, "pool", r.pool.id, "err", err)
		}
		r.state, r.err = failed, err
		r.onDisk = !errors.Is(err, replica.ErrNotFound)
		if r.unread++; !errors.Is(err, replica.ErrUnreadable) {
			r.unread = 0
		}
		r.s.reviewLater()
	} else {
		// That of a clone was made by the one that it is a clone of, and nobody else told.
		r.onDisk = true
		r.state, r.rep, r.logged, r.unread = open, rep, "", 0
		r.notify(true)
		// The volume may have grown while it was closed.
		r.s.loop.Post(func() { r.s.reviewRecord(r.volume) })
	}
	r.advance()
}

// close closes the replica for the end of the shard; then is called, maybe inside this call.
func (r *localReplica) close(then func()) {
	r.closers = append(r.closers, then)
	r.advance()
}

// remove closes the replica and removes its directory.
func (r *localReplica) remove() {
	if !r.doomed {
		r.doomed = true
		r.advance()
	}
}

// advance goes on with a closing or a removal, as far as it can be now.
func (r *localReplica) advance() {
	ending := len(r.closers) > 0
	switch {
	case r.state == opening || r.state == closing:
	case !r.doomed && !ending:
	case r.state == open:
		r.shut()
	case r.doomed && r.onDisk && !ending:
		r.unlink()
	default:
		r.ended()
	}
}

// shut closes the open replica.
func (r *localReplica) shut() {
	rep := r.rep
	r.state, r.rep = closing, nil
	r.notify(false)
	rep.Close(func() {
		r.state = absent
		r.advance()
	})
}

// unlink removes the directory of the closed replica.
func (r *localReplica) unlink() {
	r.state = closing
	replica.Remove(r.s.loop, r.pool.path(r.id), func(err error) {
		log := r.s.log.With("replica", r.id.String(), "volume", r.volume, "pool", r.pool.id)
		if err == nil {
			log.Info("replica removed")
			r.state, r.onDisk = absent, false
			if r.leftover {
				pool, id := r.pool.id, r.id.String()
				r.s.e.spawn(func() { r.s.e.clearLeftovers(pool, []string{id}) })
			}
		} else {
			log.Error("replica can't be removed", "err", err)
			r.state, r.err, r.doomed = failed, fmt.Errorf("removing it: %w", err), false
			r.s.reviewLater()
		}
		r.advance()
	})
}

// ended is called when nothing is open and nothing is left to do.
func (r *localReplica) ended() {
	if r.doomed && !r.onDisk {
		r.doomed, r.state, r.err, r.unread = false, absent, nil, 0
		if len(r.subs) == 0 {
			delete(r.s.replicas, r.id)
		}
		// What comes next for the volume: dropping its members, or a new replica in this one's place.
		r.s.loop.Post(func() { r.s.reviewRecord(r.volume) })
	}
	list := r.closers
	r.closers = nil
	for _, fn := range list {
		fn()
	}
}
