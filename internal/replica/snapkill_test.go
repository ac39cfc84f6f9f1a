package replica

import (
	"encoding/json"
	"fmt"
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// begun submits requests, and reports by done whether all are answered.
func (m *snapModel) begun(list ...*wire.Request) (done func() bool) {
	left := len(list)
	for _, q := range list {
		m.submit(q, func() { left-- })
	}
	return func() bool { return left == 0 }
}

// TestKilledAtEveryStep ends the engine, or takes the power, at every step of what is done with snapshots, and does it again.
func TestKilledAtEveryStep(t *testing.T) {
	for name, play := range map[string]func(m *snapModel, kill func(list ...*wire.Request)){
		"create": func(m *snapModel, kill func(...*wire.Request)) {
			kill(m.setTo(append(m.periods(), m.period)...))
			m.take()
		},
		"delete": func(m *snapModel, kill func(...*wire.Request)) {
			delete(m.snaps, m.periods()[1])
			kill(m.setTo(m.periods()...))
		},
		"restore": func(m *snapModel, kill func(...*wire.Request)) {
			p := m.periods()[0]
			var list []*wire.Request
			for c := range block.Chunks(m.d.Size) {
				off := c * block.ChunkSize
				list = append(list, &wire.Request{Kind: wire.KindRestore, Off: off, Len: min(block.ChunkSize, m.d.Size-off), Sums: []uint64{p}})
			}
			for off, tag := range m.snaps[p] {
				m.cur[off] = append([]uint64{tag}, m.cur[off]...)
			}
			kill(list...)
			m.restoreAll(p)
		},
		"clone": func(m *snapModel, kill func(...*wire.Request)) {
			d := m.d
			d.Replica, d.Name = wire.ReplicaID(m.clones+1), fmt.Sprint("clone", m.clones+1)
			text, _ := json.Marshal(d)
			p := m.periods()[0]
			kill(&wire.Request{Kind: wire.KindClone, Period: p, Text: text})
			m.cloneOf(p)
		},
	} {
		for _, power := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, power %v", name, power), func(t *testing.T) { killEverywhere(t, power, play) })
		}
	}
}

func killEverywhere(t *testing.T, power bool, play func(m *snapModel, kill func(list ...*wire.Request))) {
	steps, ended := 0, false
	for ; !ended; steps += stepBy(steps) {
		m := newSnapModel(t, 7)
		for range 3 {
			m.change(false)
			m.take()
		}
		m.change(false)
		m.checkpoint()
		m.settled()
		play(m, func(list ...*wire.Request) {
			done, n := m.begun(list...), steps
			m.w.Run(func() bool { n--; ended = done(); return ended || n < 0 }, maxStep)
			if power {
				m.n.PowerLoss()
			} else {
				m.n.Crash()
			}
			m.recover()
		})
		m.check()
	}
	if steps < 3 {
		t.Fatalf("it ended after %d steps: the test shows too little", steps)
	}
}

// stepBy is 1, but in quick runs of the tests.
func stepBy(at int) int {
	if testing.Short() && at > 4 {
		return 7
	}
	return 1
}
