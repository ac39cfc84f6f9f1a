package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"strings"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/replica"
	"keelson.io/keelson/internal/wire"
)

// replicasDir is the directory of a pool that has one directory for each replica, named
// by its id.
const replicasDir = "replicas"

// pool is a pool of this node.
type pool struct {
	id  string
	dir string
}

func (p *pool) path(id wire.ReplicaID) string {
	return filepath.Join(p.dir, replicasDir, id.String())
}

// found is a replica's directory as it was found in a pool.
type found struct {
	pool *pool
	id   wire.ReplicaID
	desc replica.Desc
	err  error // why the description can't be read
}

// AddPool takes a pool into service: dir is the root of its file system, mounted. Its replicas are opened as soon
// as the metadata says to which volumes they belong. Adding the same pool again does nothing.
func (e *Engine) AddPool(ctx context.Context, id, dir string) error {
	e.mu.Lock()
	if old := e.pools[id]; old != nil {
		e.mu.Unlock()
		if old.dir != dir {
			return fmt.Errorf("pool %s is in service at %s already", id, old.dir)
		}
		return nil
	}
	e.mu.Unlock()
	if len(e.shards) == 0 {
		return fmt.Errorf("pool %s: the engine isn't open", id)
	}
	p := &pool{id: id, dir: dir}
	list, err := e.scan(ctx, p)
	if err != nil {
		return fmt.Errorf("pool %s: %w", id, err)
	}
	e.mu.Lock()
	if e.closing || e.pools[id] != nil {
		e.mu.Unlock()
		return ErrClosed
	}
	e.pools[id] = p
	e.mu.Unlock()
	for _, s := range e.shards {
		var mine []found
		for _, f := range list {
			if e.shardOf(f.desc.Volume) == s {
				mine = append(mine, f)
			}
		}
		if err := s.do(ctx, func() { s.poolAdded(p, mine) }); err != nil {
			return fmt.Errorf("pool %s: %w", id, err)
		}
	}
	e.log.Info("pool in service", "pool", id, "dir", dir, "replicas", len(list))
	e.spawn(func() { e.removeLeftovers(id, list) })
	return nil
}

// scan lists the replicas in a pool, and takes away what interrupted creations and removals left.
func (e *Engine) scan(ctx context.Context, p *pool) (list []found, err error) {
	s := e.shards[0]
	done := make(chan struct{})
	s.loop.Post(func() {
		var names []string
		s.loop.Work(func() { names, err = e.readPool(s.loop.FS(), p) }, func() {
			if err != nil {
				close(done)
				return
			}
			e.describeAll(s.loop, p, names, func(l []found) {
				list = l
				close(done)
			})
		})
	})
	select {
	case <-done:
		return list, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// readPool returns the names of the directories in a pool that aren't debris of a creation. It blocks.
func (e *Engine) readPool(fs aio.FS, p *pool) (names []string, err error) {
	root := filepath.Join(p.dir, replicasDir)
	if err := fs.MkdirAll(root); err != nil {
		return nil, err
	}
	if err := fs.SyncDir(p.dir); err != nil {
		return nil, err
	}
	all, err := fs.ReadDir(root)
	if err != nil {
		return nil, err
	}
	for _, name := range all {
		if !strings.HasPrefix(name, replica.CreatingPrefix) {
			names = append(names, name)
		} else if err := fs.RemoveAll(filepath.Join(root, name)); err != nil {
			return nil, err
		}
	}
	sort.Strings(names)
	return names, nil
}

// describeAll reads the descriptions of the named replicas one after the other, on the loop.
func (e *Engine) describeAll(loop aio.Loop, p *pool, names []string, then func([]found)) {
	var list []found
	var next func(i int)
	next = func(i int) {
		for ; i < len(names); i++ {
			dir := filepath.Join(p.dir, replicasDir, names[i])
			if strings.HasPrefix(names[i], replica.DeletingPrefix) {
				replica.Remove(loop, dir, func(err error) {
					if err != nil {
						e.log.Error("what is left of a replica can't be removed", "pool", p.id, "err", err)
					}
				})
				continue
			}
			id, err := parseReplica(names[i])
			if err != nil {
				e.log.Warn("something in the pool isn't a replica; it is left alone", "pool", p.id, "name", names[i])
				continue
			}
			replica.ReadDesc(loop, dir, func(d replica.Desc, err error) {
				list = append(list, e.identify(found{pool: p, id: id, desc: d, err: err}))
				next(i + 1)
			})
			return
		}
		then(list)
	}
	next(0)
}

// errForeign is why a replica isn't touched.
var errForeign = errors.New("it isn't what its place says")

// identify checks that a replica is this cluster's, and finds the volume of one that can't tell itself.
func (e *Engine) identify(f found) found {
	switch {
	case f.err != nil:
		f.desc.Volume = e.volumeOf(f.id)
	case f.desc.Cluster != e.cfg.Cluster:
		f.err = fmt.Errorf("%w: a replica of cluster %s", errForeign, f.desc.Cluster)
	case f.desc.Replica != f.id:
		f.err = fmt.Errorf("%w: replica %v under the name of %v", errForeign, f.desc.Replica, f.id)
	}
	return f
}

// volumeOf returns the id of the volume whose record names a replica; "" if there is none.
func (e *Engine) volumeOf(id wire.ReplicaID) string {
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	for _, v := range e.view.volumes {
		for _, m := range allMembers(&v.Value) {
			if m.Replica == id.String() {
				return v.Value.ID
			}
		}
	}
	return ""
}
