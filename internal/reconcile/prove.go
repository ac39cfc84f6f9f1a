package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// proofSettle is how long nodes that the recovered metadata doesn't know have to make themselves known.
const proofSettle = meta.LeaseTTL

// prove decides what the record of each volume is to be after the metadata was recovered, by what the nodes have said. A record is
// proven:
//
//   - by who serves the volume, if every in-sync member of its record has promised that term and no later one: nobody else can have
//     got an attachment past them;
//   - if it says that nobody has the volume, and no in-sync member has promised a later term: nobody has had it since;
//   - otherwise only when every node has said what it has, but those that were declared lost. Then the record follows the latest term
//     that any copy has promised.
func (r *Runner) prove(now time.Time) plan {
	v := r.view
	var p plan
	if len(v.Unproven) == 0 {
		r.unprovenSince = time.Time{}
		return p
	}
	if r.unprovenSince.IsZero() {
		r.unprovenSince = now
	}
	waiting := v.awaited()
	settled := r.unprovenSince.Add(proofSettle)
	complete := len(waiting) == 0 && !now.Before(settled)
	if len(waiting) == 0 {
		p.deadline(settled)
	}
	for _, vol := range v.Unproven {
		next := cloneVolume(vol.Value)
		next.Unproven = nil
		ch := change{old: vol, what: "the record of the volume is proven: " + "it is as it was"}
		switch e := evidenceOf(&vol.Value); {
		case vol.Value.Deleting && complete:
		case e.servedAsRecorded(&vol.Value), e.detachedSince(&vol.Value):
		case !complete:
			r.tell(vol.Value.Name, "its record isn't proven yet since the metadata was recovered; waiting for "+strings.Join(waiting, ", "))
			continue
		default:
			what, warn := e.decide(&next, now)
			ch.what = "the record of the volume is proven: " + what
			if warn {
				ch.event = &spec.Event{Time: now.UTC(), What: "volume-recovered", Warning: true, Volume: next.Name, Message: what}
			}
		}
		r.tell(vol.Value.Name, "")
		ch.new = next
		p.changes = append(p.changes, ch)
	}
	return p
}

// awaited are the nodes that haven't said yet what they have.
func (v *View) awaited() (names []string) {
	for name, n := range v.Nodes {
		if v.Cluster.Value.Awaits(n) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// evidence is what nodes have said of a volume.
type evidence struct {
	copies map[string]placed // by replica
	term   uint64            // the latest that anybody has heard of
	known  bool              // the record is an old one, and not made of copies' descriptions
	serves spec.Claim        // who serves in the latest term; Term is 0 if nobody does
}

type placed struct {
	spec.ClaimedCopy
	node string
}

func evidenceOf(v *spec.Volume) evidence {
	e := evidence{copies: map[string]placed{}, term: v.State.Term, known: v.Unproven.Rev != 0}
	for _, c := range v.Unproven.Claims {
		e.term = max(e.term, c.Term)
		for _, x := range c.Copies {
			e.copies[x.Replica] = placed{x, c.Node}
			e.term = max(e.term, x.Fence)
		}
	}
	for _, c := range v.Unproven.Claims {
		if c.Serving && c.Term == e.term {
			e.serves = c
		}
	}
	return e
}

// servedAsRecorded reports whether the volume is served in the recorded term, and every in-sync member has promised just that.
func (e *evidence) servedAsRecorded(v *spec.Volume) bool {
	return e.serves.Term != 0 && v.State.Term == e.term && v.State.Node == e.serves.Node &&
		e.everyInSync(v, func(c placed) bool { return c.Fence == e.term })
}

// detachedSince reports whether nobody has had the volume since it was recorded as detached.
func (e *evidence) detachedSince(v *spec.Volume) bool {
	return v.State.Node == "" && v.State.Term == e.term && e.everyInSync(v, func(c placed) bool { return c.Fence <= v.State.Term })
}

// everyInSync reports whether all in-sync members were heard of, at least one a column, and fn holds for each.
func (e *evidence) everyInSync(v *spec.Volume, fn func(placed) bool) bool {
	for _, col := range v.State.Columns {
		n := 0
		for _, m := range col.Members {
			if m.State != spec.InSync {
				continue
			}
			c, heard := e.copies[m.Replica]
			if !heard || !fn(c) {
				return false
			}
			n++
		}
		if n == 0 {
			return false
		}
	}
	return len(v.State.Columns) > 0
}

// decide makes the record follow the latest term, all nodes having been heard. It says what it did, and whether a person should know.
func (e *evidence) decide(v *spec.Volume, now time.Time) (what string, warn bool) {
	if e.serves.Term != 0 && v.State.Term == e.term && v.State.Node == e.serves.Node {
		return "node " + e.serves.Node + " serves it", false
	}
	// Nobody has attached it since. A record that was made of copies' descriptions doesn't know which are in sync.
	exact := v.State.Term == e.term && e.known
	for i := range v.State.Columns {
		if !e.decideColumn(v, i, exact, now) {
			exact = false
		}
	}
	if exact {
		return "nobody has attached it since", false
	}
	if e.term == 0 {
		for i := range v.State.Columns {
			for j := range v.State.Columns[i].Members {
				v.State.Columns[i].Members[j].Run = "" // all that they have was there from the beginning
			}
		}
		return "nobody has ever attached it", false
	}
	v.State.Term = e.term
	// Whoever attaches it next is to wait until an older coordinator has stopped answering reads: so it isn't detached, and the last
	// term isn't known to have been fenced everywhere.
	v.State.Frontend = spec.FrontendNone
	v.State.Fenced = 0
	for i, col := range v.State.Columns {
		least := e.term
		for _, m := range col.Members {
			if m.State != spec.InSync {
				continue
			}
			if v.State.Node == "" {
				v.State.Node = m.Node
			}
			if c, heard := e.copies[m.Replica]; heard {
				least = min(least, c.Fence)
			}
		}
		if least = max(least, 1) - 1; i == 0 || least < v.State.Fenced {
			v.State.Fenced = least
		}
	}
	return fmt.Sprintf("it was attached after the recovered state, up to term %d; its copies that have come farthest count. Check its contents", e.term), true
}

// decideColumn decides which members of a column are in sync. With exact the record knows of the last attachment; it answers false if
// a copy has come farther all the same than the members that are recorded as in sync. Every copy that a node has becomes a member,
// so that none is removed before the volume has all it needs.
func (e *evidence) decideColumn(v *spec.Volume, i int, exact bool, now time.Time) (agrees bool) {
	col := &v.State.Columns[i]
	var best placed
	for _, c := range e.copies {
		if c.Column == i && farther(c, best) {
			best = c
		}
	}
	if best.Replica == "" {
		return true // nobody has a copy: what is recorded stands
	}
	for _, id := range sortedCopies(e.copies) {
		c := e.copies[id]
		if c.Column == i && !slices.ContainsFunc(col.Members, func(m spec.Member) bool { return m.Replica == id }) {
			col.Members = append(col.Members, spec.Member{Replica: id, Node: c.node, Pool: c.Pool, State: spec.Stale, Since: now.UTC(),
				Reason: "found when the metadata was recovered", Size: c.Size})
		}
	}
	holds := func(m spec.Member) bool {
		c, heard := e.copies[m.Replica]
		return heard && !farther(best, c)
	}
	agrees = exact && slices.ContainsFunc(col.Members, func(m spec.Member) bool { return m.State == spec.InSync && holds(m) })
	if exact && !agrees && !slices.ContainsFunc(col.Members, func(m spec.Member) bool { _, heard := e.copies[m.Replica]; return m.State == spec.InSync && heard }) {
		return true // those in sync are all on nodes that are lost: only a person can choose another copy
	}
	for j := range col.Members {
		m := &col.Members[j]
		state := spec.Stale
		if holds(*m) && (!agrees || m.State == spec.InSync) {
			state = spec.InSync
		}
		if _, heard := e.copies[m.Replica]; agrees && m.State == spec.InSync && !heard {
			state = spec.InSync // lost with its node: the next attachment takes it out
		}
		if m.State == state {
			continue
		}
		m.State, m.Since, m.Run = state, now.UTC(), ""
		if state == spec.InSync {
			m.Run = e.copies[m.Replica].Run
		}
	}
	return agrees
}

// farther reports whether copy a has come farther than b: by the term that it has promised, then by its checkpoint. Of those that no term has
// fenced, the ones that were made from a snapshot have data.
func farther(a, b placed) bool {
	return b.Replica == "" || a.Fence > b.Fence || a.Fence == b.Fence && (a.Checkpoint > b.Checkpoint || a.Fence == 0 && a.Checkpoint == b.Checkpoint && a.Clone && !b.Clone)
}

func sortedCopies(m map[string]placed) (ids []string) {
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
