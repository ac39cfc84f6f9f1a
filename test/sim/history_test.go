package sim_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"keelson.io/keelson/internal/block"
)

// never is the time of an answer that never came.
const never = math.MaxInt64

// undetermined is the state of a block after a loss that is allowed to be one: any of the
// allowed values, until it is read or written.
const undetermined = 1 << 62

// tornBit marks the value of a block that is a mixture of writes.
const tornBit = 1 << 63

// hop is one operation on one block as its client saw it. Times are of the history's own
// clock, on which no two moments are the same.
type hop struct {
	write     bool
	val       uint64 // what was written or read; 0 is a block of zeros
	call, ret int64  // ret of a write that wasn't acknowledged: by when it happened, if it did
	acked     bool
	fua       bool
	term      uint64
	// barred, if not 0, is a term that an in-sync member fenced at before it had this write: older ones must not
	// acknowledge it any more.
	barred uint64
}

// segment is a part of a block's history that begins in a known state, or in an
// undetermined one of the allowed ones.
type segment struct {
	ops     []*hop
	init    uint64
	allowed map[uint64]bool
}

// blockHistory is everything that happened to one block.
type blockHistory struct {
	segs    []segment
	open    int    // writes without an answer
	lastRet int64  // of the last answered write
	last    uint64 // its value
	sure    bool   // last is what the block must hold: nothing ran beside it
	dirty   bool   // waits in history.dirty for a flush to be checked
	// maybe has what an in-sync copy may hold, if known: after a write that nothing ran beside, that; and
	// everything submitted since.
	maybe []uint64
	known bool
}

// maxMaybe bounds blockHistory.maybe: beyond, nothing is known.
const maxMaybe = 100

// history records what clients did to a volume, and judges it.
type history struct {
	salt     uint64 // of the volume: a block of another one is told apart
	clock    *int64 // of all volumes
	blocks   []blockHistory
	lastID   uint64
	torn     map[uint64][]uint64 // the writes that a torn value mixes
	flushed  int64               // the latest call of a flush that was answered
	open     []*hop              // writes that may still take effect
	dirty    []int
	written  []int // blocks that a write was ever submitted to
	reads    int
	writes   int
	flushes  int
	trims    int
	failures int
	losses   int
	// undecided counts the blocks whose history was too much for the checker.
	undecided int
}

func newHistory(blocks int, salt uint64, clock *int64) *history {
	h := &history{clock: clock, salt: salt * 0xd1342543de82ef95, blocks: make([]blockHistory, blocks), torn: map[uint64][]uint64{}}
	segs := make([]segment, blocks)
	for i := range h.blocks {
		b := &h.blocks[i]
		b.segs = segs[i : i+1 : i+1]
		b.sure, b.known = true, true
	}
	return h
}

func (h *history) tick() int64 {
	*h.clock++
	return *h.clock
}

const sector = 512

// step is between the words of a block's content.
const step = 0x9e3779b97f4a7c15

// start is the second word of a sector that write id made; each later word is step more.
func (h *history) start(id uint64, blk, at int) uint64 {
	return (id+h.salt)*0xbf58476d1ce4e5b9 ^ uint64(blk)<<20 ^ uint64(at)
}

// fill makes the content that write id gives to a block: every sector says where it belongs.
func (h *history) fill(p []byte, id uint64, blk int) {
	if id == 0 {
		clear(p)
		return
	}
	for at := 0; at < len(p); at += sector {
		x := h.start(id, blk, at)
		q := p[at : at+sector]
		binary.LittleEndian.PutUint64(q, id)
		for i := 8; i < sector; i += 8 {
			binary.LittleEndian.PutUint64(q[i:], x)
			x += step
		}
	}
}

// isOf reports whether a part of a block, from byte at of it on, is what write id made of it.
func (h *history) isOf(p []byte, id uint64, blk, at int) bool {
	if id == 0 {
		return block.IsZero(p)
	}
	for ; len(p) > 0; at, p = at+sector, p[sector:] {
		x := h.start(id, blk, at)
		diff := binary.LittleEndian.Uint64(p) ^ id
		for i := 8; i < sector; i += 8 {
			diff |= binary.LittleEndian.Uint64(p[i:]) ^ x
			x += step
		}
		if diff != 0 {
			return false
		}
	}
	return true
}

// value says which write a block's content is of.
func (h *history) value(p []byte, blk int) (uint64, error) {
	id := binary.LittleEndian.Uint64(p)
	if id <= h.lastID && h.isOf(p, id, blk, 0) {
		return id, nil
	}
	var ids []uint64
	hash := uint64(14695981039346656037)
	for s := 0; s < len(p); s += sector {
		id := binary.LittleEndian.Uint64(p[s:])
		if id > h.lastID {
			return 0, fmt.Errorf("block %d: sector %d holds what nobody wrote (%x)", blk, s/sector, id)
		}
		if !h.isOf(p[s:s+sector], id, blk, s) {
			return 0, fmt.Errorf("block %d: sector %d holds what nobody wrote there (it begins as write %d)", blk, s/sector, id)
		}
		ids = append(ids, id)
		hash = (hash ^ id) * 1099511628211
	}
	v := hash | tornBit
	h.torn[v] = ids
	return v, nil
}

// mayHold reports whether an in-sync copy may have that content.
func (h *history) mayHold(p []byte, blk int) bool {
	b := &h.blocks[blk]
	if !b.known {
		return true
	}
	id := binary.LittleEndian.Uint64(p)
	possible := id == 0 && len(b.maybe) == 0
	for i := len(b.maybe) - 1; i >= 0 && !possible; i-- {
		possible = b.maybe[i] == id
	}
	return possible && h.isOf(p, id, blk, 0)
}

// begin records the call of a write.
func (h *history) begin(blk int, val uint64, fua bool, term uint64) *hop {
	op := &hop{write: true, val: val, call: *h.clock, ret: never, fua: fua, term: term}
	b := &h.blocks[blk]
	b.open++
	if len(b.maybe) == 0 {
		h.written = append(h.written, blk)
		b.maybe = append(b.maybe, 0)
	}
	if b.maybe = append(b.maybe, val); len(b.maybe) > maxMaybe {
		b.known, b.maybe = false, b.maybe[:1]
	}
	seg := &b.segs[len(b.segs)-1]
	seg.ops = append(seg.ops, op)
	h.open = append(h.open, op)
	return op
}

// wrote records the answer to a write; failed says that its outcome isn't known.
func (h *history) wrote(blk int, op *hop, failed bool) {
	b := &h.blocks[blk]
	b.open--
	if failed {
		b.sure = false
		return
	}
	op.acked, op.ret = true, min(op.ret, *h.clock)
	b.sure = b.open == 0 && b.lastRet < op.call
	b.lastRet, b.last = *h.clock, op.val
	if b.sure {
		b.known, b.maybe = true, append(b.maybe[:0], op.val)
	}
	if !b.dirty {
		b.dirty = true
		h.dirty = append(h.dirty, blk)
	}
}

// read records an answered read.
func (h *history) read(blk int, call int64, p []byte) error {
	v, err := h.value(p, blk)
	if err != nil {
		return err
	}
	b := &h.blocks[blk]
	seg := &b.segs[len(b.segs)-1]
	if v&tornBit != 0 && seg.allowed == nil {
		return fmt.Errorf("block %d: torn: its sectors are of writes %v", blk, h.torn[v])
	}
	seg.ops = append(seg.ops, &hop{val: v, call: call, ret: *h.clock})
	return nil
}

// served tells that a term began to serve: what older terms have not done by now never happens.
func (h *history) served(term uint64) {
	kept := h.open[:0]
	for _, op := range h.open {
		switch {
		case op.acked:
		case op.term < term && op.val != 0:
			op.ret = *h.clock
		default:
			kept = append(kept, op)
		}
	}
	clear(h.open[len(kept):])
	h.open = kept
}

// cut begins a new segment of a block's history, after a loss of everything that wasn't flushed.
func (h *history) cut(blk int) {
	b := &h.blocks[blk]
	if len(b.segs[len(b.segs)-1].ops) == 0 {
		return
	}
	allowed := h.candidates(b)
	b.segs = append(b.segs, segment{init: undetermined, allowed: allowed})
	b.sure, b.known = false, false
	b.dirty = false
}

// candidates returns the values that a block may have when everything not flushed may be missing.
func (h *history) candidates(b *blockHistory) map[uint64]bool {
	seg := &b.segs[len(b.segs)-1]
	durable := int64(-1) // the latest call of a durable write
	firstWrite := int64(never)
	for _, op := range seg.ops {
		if op.write {
			firstWrite = min(firstWrite, op.call)
			if op.acked && (op.ret < h.flushed || op.fua) {
				durable = max(durable, op.call)
			}
		}
	}
	allowed := map[uint64]bool{}
	for _, op := range seg.ops {
		if op.write && (!op.acked || op.ret >= durable) {
			allowed[op.val] = true
		}
	}
	if durable >= 0 {
		return allowed
	}
	if seg.init != undetermined {
		allowed[seg.init] = true
		return allowed
	}
	for _, op := range seg.ops {
		if !op.write && op.ret < firstWrite && op.ret < h.flushed {
			allowed[op.val] = true // what it was after the last loss was seen, and made durable since
			return allowed
		}
	}
	for v := range seg.allowed {
		allowed[v] = true
	}
	return allowed
}

// judge checks that the history of every block is linearizable.
func (h *history) judge() error {
	for blk := range h.blocks {
		for i := range h.blocks[blk].segs {
			if err := h.judgeSegment(blk, &h.blocks[blk].segs[i]); err != nil {
				for j := range i {
					err = fmt.Errorf("%w\n  before:\n%s", err, h.show(&h.blocks[blk].segs[j]))
				}
				return err
			}
		}
	}
	return nil
}

func (h *history) judgeSegment(blk int, s *segment) error {
	firstRead := map[uint64]int64{}
	for _, op := range s.ops {
		if !op.write {
			if at, ok := firstRead[op.val]; !ok || op.ret < at {
				firstRead[op.val] = op.ret
			}
		}
	}
	if len(firstRead) == 0 {
		return nil
	}
	var ops []porcupine.Operation
	last, overlaps := int64(-1), false
	sorted := slices.Clone(s.ops)
	slices.SortFunc(sorted, func(a, b *hop) int { return int(a.call - b.call) })
	for _, op := range sorted {
		ret := op.ret
		if at, ok := firstRead[op.val]; op.write && op.val != 0 {
			if !ok && !op.acked {
				continue // whether it happened made no difference
			}
			if ok {
				ret = min(ret, at)
			}
			if ret < op.call {
				return fmt.Errorf("block %d: write %d was read before it was submitted\n%s", blk, op.val, h.show(s))
			}
		}
		overlaps = overlaps || op.call < last
		last = max(last, ret)
		ops = append(ops, porcupine.Operation{ClientId: len(ops), Input: op, Call: op.call, Return: ret})
	}
	model := h.model(s)
	if !overlaps {
		state := model.Init()
		for _, op := range ops {
			ok, next := model.Step(state, op.Input, nil)
			if !ok {
				return fmt.Errorf("block %d: not linearizable: read of %s\n%s", blk, h.name(op.Input.(*hop).val), h.show(s))
			}
			state = next
		}
		return nil
	}
	switch porcupine.CheckOperationsTimeout(model, ops, 20*time.Second) {
	case porcupine.Illegal:
		return fmt.Errorf("block %d: not linearizable\n%s", blk, h.show(s))
	case porcupine.Unknown:
		h.undecided++
	}
	return nil
}

func (h *history) model(s *segment) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return s.init },
		Step: func(state, input, _ any) (bool, any) {
			op, st := input.(*hop), state.(uint64)
			switch {
			case op.write:
				return true, op.val
			case st == undetermined:
				return h.mayBe(op.val, s.allowed), op.val
			}
			return st == op.val, st
		},
	}
}

// mayBe reports whether a value is allowed, or a mixture of allowed ones: each sector is that of one of them. They may be
// mixtures themselves, of the loss before.
func (h *history) mayBe(v uint64, allowed map[uint64]bool) bool {
	if v&tornBit == 0 || allowed[v] {
		return allowed[v]
	}
	for i, id := range h.torn[v] {
		ok := allowed[id]
		for a := range allowed {
			ok = ok || a&tornBit != 0 && h.torn[a][i] == id
		}
		if !ok {
			return false
		}
	}
	return true
}

func (h *history) name(v uint64) string {
	switch {
	case v == 0:
		return "zeros"
	case v&tornBit != 0:
		return fmt.Sprintf("torn%v", h.torn[v])
	}
	return fmt.Sprint("write ", v)
}

// show prints a segment for a person.
func (h *history) show(s *segment) string {
	var b bytes.Buffer
	if s.init == undetermined {
		fmt.Fprintf(&b, "  after a loss; allowed: %v\n", slices.Sorted(mapKeys(s.allowed)))
	}
	sorted := slices.Clone(s.ops)
	slices.SortFunc(sorted, func(a, b *hop) int { return int(a.call - b.call) })
	for _, op := range sorted {
		kind := "read "
		if op.write {
			kind = "wrote"
		}
		ret := fmt.Sprint(op.ret)
		if op.write && !op.acked {
			ret = "?"
		}
		fmt.Fprintf(&b, "  [%d, %s] %s %s term %d\n", op.call, ret, kind, h.name(op.val), op.term)
	}
	return b.String()
}

func mapKeys(m map[uint64]bool) func(func(uint64) bool) {
	return func(yield func(uint64) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// TestMixturesOfMixtures: a block that two losses of power tore holds sectors of what was torn before; but of nothing else, and
// only where they were. (Seed 10397.)
func TestMixturesOfMixtures(t *testing.T) {
	const first, second = 1 | tornBit, 2 | tornBit
	h := &history{torn: map[uint64][]uint64{first: {7, 5, 5, 7, 7, 7, 5, 7}, second: {9, 8, 9, 7, 7, 9, 9, 9}}}
	allowed := map[uint64]bool{8: true, 9: true, first: true}
	if !h.mayBe(second, allowed) {
		t.Error("a mixture with sectors of an older mixture is refused")
	}
	h.torn[second][1] = 7 // there the older mixture has 5
	if h.mayBe(second, allowed) {
		t.Error("a sector was accepted where nothing wrote it")
	}
}
