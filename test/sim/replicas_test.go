package sim_test

import (
	"errors"
	"strconv"
	"time"

	"keelson.io/keelson/internal/replica"
	"keelson.io/keelson/internal/wire"
)

func replicaID(s string) wire.ReplicaID {
	id, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		panic(err)
	}
	return wire.ReplicaID(id)
}

func (e *engine) replicaConfig(id string) replica.Config {
	return replica.Config{Loop: e.l, Dir: replicaDir(id), Run: e.n.run(), Log: e.n.c.log.With("on", e.n.name)}
}

// openReplica opens a replica that was made before, or makes it when the run begins.
func (e *engine) openReplica(id string, col int, done func()) {
	c := e.n.c
	if !c.made[id] {
		e.createReplica(id, col, done)
		return
	}
	replica.Open(e.replicaConfig(id), func(r *replica.Replica, err error) {
		if err == nil {
			e.replicas[replicaID(id)] = r
			done()
			return
		}
		if errors.Is(err, replica.ErrDamaged) || errors.Is(err, replica.ErrNotFound) || errors.Is(err, replica.ErrVersion) {
			c.fail("replica %s on %s doesn't open: %v", id, e.n.name, err)
			return
		}
		c.w.Tracef("replica %s on %s: %v", id, e.n.name, err)
		c.w.After(500*time.Millisecond, "open again", func() {
			if !e.l.Dead() {
				e.l.Post(func() { e.openReplica(id, col, done) })
			}
		})
	})
}

// createReplica makes a new replica. done is called only when that worked.
func (e *engine) createReplica(id string, col int, done func()) {
	c := e.n.c
	d := replica.Desc{Cluster: "c1", Volume: c.s.rec.ID, Name: "vol", Replica: replicaID(id), Column: col,
		Columns: c.p.columns, Size: c.p.size / int64(c.p.columns)}
	replica.Create(e.replicaConfig(id), d, func(r *replica.Replica, err error) {
		if err != nil {
			c.w.Tracef("replica %s on %s can't be made: %v", id, e.n.name, err)
			return
		}
		c.made[id] = true
		e.replicas[replicaID(id)] = r
		done()
	})
}
