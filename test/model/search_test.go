package model_test

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"time"
)

// found is what a search has found out.
type found struct {
	states, edges int
	depth         int
	took          time.Duration
	kinds         [steps]int // steps taken, by kind
	bad           string     // the violated invariant, "" if none is
	trace         []action   // how to get there
	capped        bool       // it was given up before every state was seen
}

func (f *found) String() string {
	return fmt.Sprintf("%d states, %d steps, depth %d, %.1f s", f.states, f.edges, f.depth, f.took.Seconds())
}

// search visits every state that can be reached, depth first, and stops at the first violation.
type search struct {
	found
	seeds [2]maphash.Seed
	seen  seenSet
	pool  []*world // one for each depth
	lists [][]action
	path  []action
	buf   []byte
	limit int // of states; 0 is none
}

func explore(cfg *config, limit int) *found {
	s := &search{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, limit: limit}
	begin := time.Now()
	w, prefix := begun(cfg)
	s.path = append(s.path, prefix...)
	s.add(w)
	s.visit(w, 0)
	s.took = time.Since(begin)
	s.states = s.seen.n
	if s.bad != "" {
		s.trace = shrink(cfg, s.trace, s.bad)
	}
	return &s.found
}

// begun returns the state in which histories begin, and how it was reached.
func begun(cfg *config) (*world, []action) {
	w := newWorld(cfg)
	if !cfg.served {
		return w, nil
	}
	var path []action
	w.left.attach++
	for do := func(a action) { w.step(a); path = append(path, a) }; ; {
		if w.bad != "" {
			panic(w.bad)
		}
		if len(path) == 0 {
			do(action{k: aAttach})
			continue
		}
		list := w.messages(nil, 0, &w.co[0])
		if len(list) == 0 {
			return w, path
		}
		do(list[0])
	}
}

func (s *search) add(w *world) bool {
	s.buf = w.encode(s.buf[:0])
	return s.seen.add([2]uint64{maphash.Bytes(s.seeds[0], s.buf), maphash.Bytes(s.seeds[1], s.buf)})
}

func (s *search) visit(w *world, depth int) {
	s.depth = max(s.depth, depth)
	if depth == len(s.pool) {
		n := &world{}
		n.bind()
		s.pool = append(s.pool, n)
		s.lists = append(s.lists, nil)
	}
	next := s.pool[depth]
	s.lists[depth] = w.enabled(s.lists[depth][:0])
	for _, a := range s.lists[depth] {
		next.copyFrom(w)
		next.step(a)
		s.edges++
		s.kinds[a.k]++
		s.path = append(s.path, a)
		if next.bad != "" {
			s.bad, s.trace = next.bad, append([]action(nil), s.path...)
			return
		}
		if s.add(next) {
			if s.limit > 0 && s.seen.n >= s.limit {
				s.capped = true
				return
			}
			s.visit(next, depth+1)
			if s.bad != "" || s.capped {
				return
			}
		}
		s.path = s.path[:len(s.path)-1]
	}
}

// replay runs a trace from the beginning, as far as its steps are possible, and returns the violation and the steps up to it.
func replay(cfg *config, trace []action, each func(action, *world)) (string, []action) {
	w := newWorld(cfg)
	if cfg.served {
		w.left.attach++
	}
	var ran []action
	for _, a := range trace {
		possible := false
		for _, e := range w.enabled(nil) {
			possible = possible || e == a
		}
		if !possible {
			continue
		}
		w.step(a)
		ran = append(ran, a)
		if each != nil {
			each(a, w)
		}
		if w.bad != "" {
			break
		}
	}
	return w.bad, ran
}

// shrink leaves out of a trace what isn't needed for some violation.
func shrink(cfg *config, trace []action, bad string) []action {
	for size := len(trace) / 2; size > 0; {
		shorter := false
		for at := 0; at+size <= len(trace); {
			try := append(append([]action(nil), trace[:at]...), trace[at+size:]...)
			if got, ran := replay(cfg, try, nil); got == bad && len(ran) < len(trace) {
				trace, shorter = ran, true
				continue
			}
			at++
		}
		if !shorter || size > 1 {
			size /= 2
		}
	}
	return trace
}

// explain prints a counterexample, with what changed on the members.
func explain(cfg *config, trace []action) string {
	var b bytes.Buffer
	bad, _ := replay(cfg, trace, func(a action, w *world) {
		fmt.Fprintf(&b, "    %-90s%s\n", a, w.members())
	})
	fmt.Fprintf(&b, "    => %s\n", bad)
	return b.String()
}

// members says in short what every member has.
func (w *world) members() string {
	out := fmt.Sprintf("term %d ", w.meta.term)
	for m := range w.cfg.members {
		mem := &w.mem[m]
		mark := [...]string{"-", "~", "+"}[w.meta.state[m]]
		if !mem.alive {
			mark += "!"
		}
		out += fmt.Sprintf(" %s%s[%d %d]", "abc"[m:m+1], mark, mem.val[0], mem.val[1])
	}
	return out
}

// seenSet holds the fingerprints of the states that were seen: 128 bits each.
type seenSet struct {
	slots [][2]uint64
	n     int
}

// add reports whether the fingerprint is new.
func (s *seenSet) add(f [2]uint64) bool {
	if f == [2]uint64{} {
		f[0] = 1
	}
	if s.n*10 >= len(s.slots)*7 {
		old := s.slots
		s.slots = make([][2]uint64, max(1<<12, 2*len(old)))
		for _, o := range old {
			if o != [2]uint64{} {
				s.slots[s.find(o)] = o
			}
		}
	}
	i := s.find(f)
	if s.slots[i] == f {
		return false
	}
	s.slots[i] = f
	s.n++
	return true
}

func (s *seenSet) find(f [2]uint64) int {
	i := int(f[0]) & (len(s.slots) - 1)
	for s.slots[i] != f && s.slots[i] != [2]uint64{} {
		i = (i + 1) & (len(s.slots) - 1)
	}
	return i
}
