package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/place"
	"keelson.io/keelson/internal/spec"
)

type upkeepService struct{ s *Server }

// changeVolume changes a volume's record on a fresh view of the cluster, and shows it. fn reports whether it changed anything.
func (u upkeepService) changeVolume(ctx context.Context, name string, fn func(v *view, vol *spec.Volume) (changed bool, err error)) (*pb.Volume, error) {
	err := retry(ctx, func() error {
		vol, err := u.s.volume(ctx, name)
		if err != nil {
			return err
		}
		if vol.Value.Deleting {
			return errorf(errRefused, "volume %s is being deleted", name)
		}
		v, err := u.s.readLive(ctx)
		if err != nil {
			return err
		}
		changed, err := fn(v, &vol.Value)
		if err != nil || !changed {
			return err
		}
		_, err = u.s.cfg.Store.PutVolume(ctx, vol.Value, vol.Rev, meta.Cond{})
		return err
	})
	if err != nil {
		return nil, err
	}
	return volumeService(u).GetVolume(ctx, &pb.GetVolumeRequest{Name: name})
}

// ResizeVolume records the plan. The nodes that have copies make them larger, and the leader admits the new size then.
func (u upkeepService) ResizeVolume(ctx context.Context, r *pb.ResizeVolumeRequest) (*pb.Volume, error) {
	return u.changeVolume(ctx, r.Name, func(v *view, vol *spec.Volume) (bool, error) {
		if r.Size == vol.Planned() {
			return false, nil
		}
		next := *vol
		if err := next.PlanGrowth(r.Size); err != nil {
			return false, err
		}
		if vol.Restore != nil { // only a snapshot of the volume's size can be restored
			return false, errorf(errAgain, "volume %s %s", vol.Name, preparing(vol))
		}
		if vol.Import.Active() {
			return false, errorf(errRefused, "an import into volume %s isn't complete; its size can't be changed until it is", vol.Name)
		}
		if err := place.Grow(v.placeable(), *vol, r.Size); err != nil {
			return false, errorf(errFull, "%v", err)
		}
		*vol = next
		return true, nil
	})
}

// setReplicas changes how many copies there shall be; nil leaves it. One that is too few is built, one too many leaves when the
// others are in sync.
func (s *Server) setReplicas(ctx context.Context, vol *spec.Volume, n *int32) error {
	if n == nil || int(*n) == vol.Replicas {
		return nil
	}
	vol.Replicas = int(*n)
	if err := vol.Validate(); err != nil {
		return err
	}
	v, err := s.readLive(ctx)
	if err != nil {
		return err
	}
	c := v.placeable()
	for i := range vol.State.Columns {
		var chosen []string
		for have := vol.State.Columns[i].Staying(); have < vol.Replicas; have++ {
			choice, err := place.Place(c, place.Request{Volume: *vol, Column: i, Exclude: chosen})
			if err != nil {
				return err
			}
			chosen = append(chosen, choice[0].Node)
		}
	}
	return nil
}

// MoveReplicas has the copies in one place leave for another. The reconcilers do the rest.
func (u upkeepService) MoveReplicas(ctx context.Context, r *pb.MoveReplicasRequest) (*pb.Volume, error) {
	return u.changeVolume(ctx, r.Name, func(v *view, vol *spec.Volume) (bool, error) {
		if r.Stay {
			return stay(vol)
		}
		from, err := v.poolsAt(r.From)
		if err != nil {
			return false, err
		}
		var to []string
		if r.To != "" {
			if to, err = v.poolsAt(r.To); err != nil {
				return false, err
			}
		}
		*vol = clone(*vol)
		moved := 0
		for i := range vol.State.Columns {
			col := &vol.State.Columns[i]
			j := slices.IndexFunc(col.Members, func(m spec.Member) bool { return slices.Contains(from, m.Pool) && !m.Removing })
			if j < 0 {
				continue
			}
			if len(col.Members) > vol.Replicas || col.Staying() < len(col.Members) {
				return false, errorf(errRefused, "a copy of volume %s is being moved or rebuilt already; `keelson volume show %s` shows it; wait until that is done", vol.Name, vol.Name)
			}
			choice, err := place.Place(v.placeable(), place.Request{Volume: *vol, Column: i, Replacing: col.Members[j].Replica, Pools: to})
			if err != nil {
				return false, err
			}
			c := choice[0]
			col.Relocate(j, spec.EvictMove, spec.Member{
				Replica: spec.NewID(), Node: c.Node, Pool: c.Pool, State: spec.Stale, Since: u.s.cfg.Now().UTC(),
				Reason: fmt.Sprintf("moved here from node %s, as asked for; %s", col.Members[j].Node, c.Reason),
			})
			moved++
		}
		if moved == 0 {
			return false, errorf(errRefused, "volume %s has no copy at %s that could be moved; `keelson volume show %s` shows where its copies are", vol.Name, r.From, vol.Name)
		}
		return true, nil
	})
}

// clone copies the members, so that those that a view has aren't changed.
func clone(v spec.Volume) spec.Volume {
	cols := make([]spec.Column, len(v.State.Columns))
	for i, c := range v.State.Columns {
		cols[i].Members = slices.Clone(c.Members)
	}
	v.State.Columns = cols
	return v
}

// poolsAt returns the pools of a node, or the one pool, of that name.
func (v *view) poolsAt(where string) (ids []string, err error) {
	if where == "" {
		return nil, errorf(errInvalid, "a node, or a pool's id, is missing")
	}
	for _, p := range v.pools {
		if p.ID == where || p.Node == where {
			ids = append(ids, p.ID)
		}
	}
	if len(ids) > 0 {
		return ids, nil
	}
	if _, ok := v.node(where); ok {
		return nil, errorf(errRefused, "node %s has no pool", where)
	}
	return nil, errorf(errMissing, "%q is neither a node nor a pool; `keelson node list` and `keelson pool list` show them", where)
}

// pool returns a pool's record as it was read.
func (v *view) pool(id string) (spec.Pool, bool) {
	i := slices.IndexFunc(v.pools, func(p spec.Pool) bool { return p.ID == id })
	if i < 0 {
		return spec.Pool{}, false
	}
	return v.pools[i], true
}

func noPool(id string) error {
	return errorf(errMissing, "there is no pool %q; `keelson pool list` shows them", id)
}

// ExpandPool has the pool's node do it.
func (u upkeepService) ExpandPool(ctx context.Context, r *pb.ExpandPoolRequest) (*pb.Pool, error) {
	rec, err := u.s.cfg.Store.Pool(ctx, r.Id)
	if errors.Is(err, meta.ErrNotFound) {
		return nil, noPool(r.Id)
	}
	if err != nil {
		return nil, err
	}
	if r.Size < 0 {
		return nil, errorf(errInvalid, "size %d is below 0", r.Size)
	}
	if node := rec.Value.Node; node != u.s.cfg.Node {
		c, err := u.s.other(ctx, node)
		if err != nil {
			return nil, err
		}
		return c.Upkeep.ExpandPool(ctx, r)
	}
	return u.s.cfg.Engine.ExpandPool(ctx, r)
}

// changePool changes a pool's record.
func (u upkeepService) changePool(ctx context.Context, id string, fn func(*spec.Pool)) error {
	return retry(ctx, func() error {
		rec, err := u.s.cfg.Store.Pool(ctx, id)
		if errors.Is(err, meta.ErrNotFound) {
			return noPool(id)
		}
		if err != nil {
			return err
		}
		was := rec.Value.Draining
		if fn(&rec.Value); rec.Value.Draining == was {
			return nil
		}
		_, err = u.s.cfg.Store.PutPool(ctx, rec.Value, rec.Rev)
		return err
	})
}

// DrainPool records it. The reconcilers move the replicas.
func (u upkeepService) DrainPool(ctx context.Context, r *pb.DrainPoolRequest) (*pb.Pool, error) {
	if err := u.changePool(ctx, r.Id, func(p *spec.Pool) { p.Draining = !r.Cancel }); err != nil {
		return nil, err
	}
	return poolService(u).GetPool(ctx, &pb.GetPoolRequest{Id: r.Id})
}

// removeWait is how long the node of a lost pool is waited for.
const removeWait = 30 * time.Second

// RemovePool looks that nothing is lost, has the pool's node close it, and deletes its record.
func (u upkeepService) RemovePool(ctx context.Context, r *pb.RemovePoolRequest) (*pb.RemovePoolResponse, error) {
	v, err := u.s.read(ctx)
	if err != nil {
		return nil, err
	}
	p, ok := v.pool(r.Id)
	if !ok {
		return nil, noPool(r.Id)
	}
	if r.Lost {
		if names := v.lastCopies(func(m spec.Member) bool { return m.Pool == r.Id }); len(names) > 0 {
			return nil, errorf(errRefused, "pool %s has the last copy in sync of the volumes %s; removing it would lose them: bring the other copies, or the pool, back, or delete those volumes",
				r.Id, strings.Join(names, ", "))
		}
	} else if names := v.volumesIn(r.Id); len(names) > 0 {
		return nil, errorf(errRefused, "pool %s has copies of the volumes %s; drain it first: keelson pool drain %s; or, if its device is lost: keelson pool remove %s --lost",
			r.Id, strings.Join(names, ", "), r.Id, r.Id)
	}
	// From now on nothing is placed there.
	if err := u.changePool(ctx, r.Id, func(p *spec.Pool) { p.Draining = true }); err != nil {
		return nil, err
	}
	if err := u.closePool(ctx, p, r.Lost, v.alive[p.Node]); err != nil {
		return nil, err
	}
	if v, err = u.s.read(ctx); err != nil {
		return nil, err
	}
	if names := v.volumesIn(r.Id); !r.Lost && len(names) > 0 {
		return nil, errorf(errRefused, "meanwhile pool %s got copies of the volumes %s; restart the engine of node %s, and drain the pool again", r.Id, strings.Join(names, ", "), p.Node)
	}
	return &pb.RemovePoolResponse{}, u.s.deletePool(ctx, r.Id)
}

// closePool has a pool's node take it out of service. A lost one needn't have a node that answers.
func (u upkeepService) closePool(ctx context.Context, p spec.Pool, lost, alive bool) error {
	req := &pb.ClosePoolRequest{Id: p.ID, Lost: lost}
	if lost {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, removeWait)
		defer cancel()
	}
	var err error
	switch {
	case p.Node == u.s.cfg.Node && u.s.cfg.Engine != nil:
		_, err = u.s.cfg.Engine.ClosePool(ctx, req)
	case alive:
		var c *Client
		if c, err = u.s.other(ctx, p.Node); err == nil {
			_, err = c.Nodes.ClosePool(ctx, req)
		}
	default:
		err = errorf(errGone, "node %s, which has pool %s, is gone; if it doesn't come back: keelson pool remove %s --lost", p.Node, p.ID, p.ID)
	}
	if err != nil && lost {
		u.s.cfg.Log.Warn("a lost pool can't be closed by its node; its record goes all the same", "pool", p.ID, "node", p.Node, "err", err)
		return nil
	}
	return err
}

// ClosePool has this node's engine take a pool out of service.
func (n nodeService) ClosePool(ctx context.Context, r *pb.ClosePoolRequest) (*pb.ClosePoolResponse, error) {
	if n.s.cfg.Engine == nil {
		return &pb.ClosePoolResponse{}, nil
	}
	return n.s.cfg.Engine.ClosePool(ctx, r)
}

// volumesIn names the volumes that have a copy in a pool.
func (v *view) volumesIn(pool string) (names []string) {
	for _, vol := range v.volumes {
		if hasMember(&vol, func(m spec.Member) bool { return m.Pool == pool }) {
			names = append(names, vol.Name)
		}
	}
	return names
}

func hasMember(vol *spec.Volume, is func(spec.Member) bool) bool {
	for _, c := range vol.State.Columns {
		if slices.ContainsFunc(c.Members, is) {
			return true
		}
	}
	return false
}

// lastCopies names the volumes of which some column would have no copy in sync, on a node that is alive, without the members that
// gone says. A volume that was never attached has nothing to lose.
func (v *view) lastCopies(gone func(spec.Member) bool) (names []string) {
	for _, vol := range v.volumes {
		if vol.Deleting || !hasMember(&vol, gone) {
			continue
		}
		for _, c := range vol.State.Columns {
			if !slices.ContainsFunc(c.Members, func(m spec.Member) bool { return !gone(m) && v.usable(m) }) {
				names = append(names, vol.Name)
				break
			}
		}
	}
	return names
}

// usable reports whether a member is in sync, in a pool that there is, on a node that is alive and isn't being drained.
func (v *view) usable(m spec.Member) bool {
	n, _ := v.node(m.Node)
	_, pool := v.pool(m.Pool)
	return m.State == spec.InSync && v.alive[m.Node] && pool && n.Upkeep != spec.Drain
}

func checkRebalance(r *pb.SetSettingsRequest) error {
	if r.Rebalance != nil {
		if err := spec.CheckRebalance(int(*r.Rebalance)); err != nil {
			return err
		}
	}
	if r.RebalanceMoves != nil {
		return spec.CheckRebalanceMoves(int(*r.RebalanceMoves))
	}
	return nil
}
