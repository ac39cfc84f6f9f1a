package repl

import (
	"reflect"
	"slices"
	"testing"
	"time"
)

// exploredFields are the fields that CopyTo, RunOut and AppendState know of.
var exploredFields = map[reflect.Type][]string{
	reflect.TypeFor[Column](): {"cfg", "fx", "phase", "members", "inRole", "begun", "started", "readWait", "ops", "count", "seq",
		"committing", "lossFlush", "lossMask", "nextLoss", "promoting", "promoteFlush", "rejoinReady", "closing", "nextFull"},
	reflect.TypeFor[Member](): {"Replica", "Node", "Pool", "Run", "Role", "Up", "Open", "Present", "Full", "Silent", "Removing",
		"Answer", "fencing", "answered", "session", "downSince", "nextRejoin", "fenceSent", "confirmed", "lowerEnd", "barrier",
		"atBarrier", "wantSyncing", "caughtUp", "failing", "oldest", "back", "runLost"},
	reflect.TypeFor[Op](): {"need", "out", "gone", "sentAt", "asked", "session", "Slow", "internal", "purpose", "seq", "prev", "next",
		"active", "Failed", "Ctx"},
	reflect.TypeFor[FenceAnswer](): {"Run", "PrevFence", "Checkpoint", "SinceConfirm", "Exact", "AllChunks", "Journal"},
	reflect.TypeFor[Change]():      {"Attach", "Members"},
}

// TestExploredFields fails when a field is added: AppendState must tell states apart that differ in it, or, if it is a
// moment, RunOut must forget it; else the exhaustive search would take different states for one.
func TestExploredFields(t *testing.T) {
	for typ, known := range exploredFields {
		for i := range typ.NumField() {
			if name := typ.Field(i).Name; !slices.Contains(known, name) {
				t.Errorf("%s.%s isn't known to explore.go: see to it there, then name it here", typ.Name(), name)
			}
		}
	}
}

type noEffects struct{}

func (noEffects) Fence(int, uint32, uint64) {}
func (noEffects) Send(int, *Op, uint32)     {}
func (noEffects) Complete(*Op)              {}
func (noEffects) Flush(Purpose, uint32)     {}
func (noEffects) Commit(Change)             {}
func (noEffects) Serve()                    {}
func (noEffects) CatchUp(int)               {}
func (noEffects) Dropped(int)               {}
func (noEffects) Stop(error)                {}

func TestCopyIsIndependent(t *testing.T) {
	const now = 100 * time.Second
	id := func(ctx any) byte { return byte(ctx.(int)) }
	c := New(Config{Term: 5, Prev: PrevDetached, Fenced: 4, Members: membersOf([]string{"a:n1:InSync", "b:n2:InSync"}),
		Alive: func(string) bool { return true }}, noEffects{})
	for m := range 2 {
		c.LinkUp(m, now)
	}
	c.Start(now)
	for m := range 2 {
		c.FenceDone(m, 1, OK, FenceAnswer{Run: "r", PrevFence: 4, SinceConfirm: -1}, now)
	}
	c.Committed(nil, now)
	var ops, copies [3]Op
	for i := range ops {
		ops[i].Ctx = i
		c.Begin(&ops[i], c.Everyone(), now)
	}
	before := c.AppendState(nil, id)
	var d Column
	copies = ops
	c.CopyTo(&d, noEffects{}, func(ctx any) *Op { return &copies[ctx.(int)] })
	if got := d.AppendState(nil, id); !slices.Equal(got, before) {
		t.Fatalf("the copy is in another state: %x, not %x", got, before)
	}
	for m := range 2 {
		d.Done(m, &copies[1], 1, OK, now)
	}
	if got := c.AppendState(nil, id); !slices.Equal(got, before) {
		t.Fatalf("what happened to the copy changed the original: %x, not %x", got, before)
	}
	if c.Busy() != 3 || d.Busy() != 2 {
		t.Fatalf("%d and %d operations in flight, want 3 and 2", c.Busy(), d.Busy())
	}
}
