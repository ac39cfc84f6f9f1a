package seal

import (
	"bytes"
	"math/rand/v2"
	"syscall"
	"testing"

	"keelson.io/keelson/internal/block"
)

// disk is a volume in memory. What is done to it is answered when the test says so.
type disk struct {
	data    []byte
	waiting []func()
	posted  []func()
	dead    bool
}

func (d *disk) Size() int64 { return int64(len(d.data)) }
func (d *disk) Full() bool  { return false }

func (d *disk) Submit(r *block.Request) {
	d.waiting = append(d.waiting, func() {
		switch {
		case d.dead, r.Off < 0 || r.Off%block.Size != 0 || r.Off+r.Len > d.Size():
			r.Err = syscall.EIO
		case r.Op == block.OpRead:
			// In other memory than it was asked for.
			r.Data = bytes.Clone(d.data[r.Off : r.Off+r.Len])
		case r.Op == block.OpWrite:
			copy(d.data[r.Off:], r.Data)
		case r.Op == block.OpTrim || r.Op == block.OpZero:
			clear(d.data[r.Off : r.Off+r.Len])
		}
		r.Done(r)
	})
}

func (d *disk) post(fn func()) { d.posted = append(d.posted, fn) }

// run answers all that waits, in any order.
func (d *disk) run() {
	for len(d.waiting)+len(d.posted) > 0 {
		list := append(d.waiting, d.posted...)
		d.waiting, d.posted = nil, nil
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for _, fn := range list {
			fn()
		}
	}
}

func newDevice(t *testing.T, blocks int) (*disk, *Device) {
	t.Helper()
	c, err := newKey(t).Cipher()
	if err != nil {
		t.Fatal(err)
	}
	v := &disk{data: make([]byte, blocks*block.Size)}
	d := NewDevice(v, c, v.post)
	t.Cleanup(func() { v.run(); d.Close() })
	return v, d
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

func TestWhatIsWrittenIsReadAndIsNotInTheVolume(t *testing.T) {
	const blocks = 64
	v, d := newDevice(t, blocks)
	model := make([]byte, blocks*block.Size)
	for range 400 {
		from := rand.IntN(blocks)
		n := 1 + rand.IntN(min(8, blocks-from))
		r := &block.Request{Op: []block.Op{block.OpWrite, block.OpWrite, block.OpTrim, block.OpZero, block.OpRead, block.OpFlush}[rand.IntN(6)],
			Off: int64(from * block.Size), Len: int64(n * block.Size)}
		part := model[r.Off : r.Off+r.Len]
		answers := 0
		switch r.Op {
		case block.OpWrite:
			text := random(len(part))
			if rand.IntN(4) == 0 {
				clear(text[:block.Size])
			}
			copy(part, text)
			r.Data = text
		case block.OpTrim, block.OpZero:
			clear(part)
		case block.OpRead:
			r.Data = make([]byte, r.Len)
		}
		r.Done = func(got *block.Request) {
			if answers++; got != r || r.Err != nil {
				t.Fatalf("%v: %v", r.Op, r.Err)
			}
			if r.Op == block.OpRead && !bytes.Equal(r.Data, part) {
				t.Fatalf("blocks %d to %d aren't what was written", from, from+n)
			}
		}
		d.Submit(r)
		v.run()
		if answers != 1 {
			t.Fatalf("%v was answered %d times", r.Op, answers)
		}
	}
	for i := range blocks {
		stored, text := v.data[i*block.Size:(i+1)*block.Size], model[i*block.Size:(i+1)*block.Size]
		if bytes.Equal(stored, text) && !block.IsZero(text) {
			t.Errorf("block %d is in the volume as it was written", i)
		}
	}
}

// Blocks of the same text differ, and a block of zeros that was written doesn't show; one that wasn't does.
func TestEqualBlocksDontShow(t *testing.T) {
	v, d := newDevice(t, 8)
	seen := map[string]int{}
	d.Submit(&block.Request{Op: block.OpWrite, Len: 6 * block.Size, Data: make([]byte, 6*block.Size), Done: func(*block.Request) {}})
	v.run()
	for at := 0; at < len(v.data); at += block.Size {
		seen[string(v.data[at:at+block.Size])]++
	}
	if len(seen) != 7 || seen[string(make([]byte, block.Size))] != 2 {
		t.Errorf("%d different blocks, %d of them zeros", len(seen), seen[string(make([]byte, block.Size))])
	}
}

func TestRequestsThatMakeNoSensePassAsTheyAre(t *testing.T) {
	v, d := newDevice(t, 8)
	for what, r := range map[string]*block.Request{
		"unaligned":        {Op: block.OpWrite, Off: 512, Len: block.Size, Data: make([]byte, block.Size)},
		"half a block":     {Op: block.OpWrite, Len: 512, Data: make([]byte, 512)},
		"negative":         {Op: block.OpRead, Off: -block.Size, Len: block.Size, Data: make([]byte, block.Size)},
		"another length":   {Op: block.OpWrite, Off: -block.Size, Len: 2 * block.Size, Data: make([]byte, block.Size)},
		"beyond the end":   {Op: block.OpRead, Off: 8 * block.Size, Len: block.Size, Data: make([]byte, block.Size)},
		"without a buffer": {Op: block.OpRead, Off: 8 * block.Size, Len: block.Size},
	} {
		done := false
		r.Done = func(*block.Request) { done = true }
		d.Submit(r)
		v.run()
		if what != "half a block" && (!done || r.Err == nil) {
			t.Errorf("%s: %v", what, r.Err)
		}
	}
}

// A device that is closed while reads are at the volume decrypts those, and then has no key; what comes later fails.
func TestClose(t *testing.T) {
	v, d := newDevice(t, 8)
	text := random(block.Size)
	var answers []error
	submit := func(op block.Op, data []byte) *block.Request {
		r := &block.Request{Op: op, Len: block.Size, Data: data, Done: func(r *block.Request) { answers = append(answers, r.Err) }}
		d.Submit(r)
		return r
	}
	submit(block.OpWrite, bytes.Clone(text))
	v.run()
	read := submit(block.OpRead, make([]byte, block.Size))
	d.Close()
	if d.cipher == nil {
		t.Fatal("the key is gone although a read is at the volume")
	}
	v.run()
	if d.cipher != nil || !bytes.Equal(read.Data, text) {
		t.Errorf("key %v; the read is right: %v", d.cipher, bytes.Equal(read.Data, text))
	}
	before := bytes.Clone(v.data)
	submit(block.OpWrite, bytes.Clone(text))
	submit(block.OpRead, make([]byte, block.Size))
	submit(block.OpTrim, nil)
	if len(answers) != 2 {
		t.Error("a request is answered while it is submitted")
	}
	v.run()
	if len(answers) != 5 || answers[2] != syscall.EIO || answers[3] != syscall.EIO || answers[4] != syscall.EIO || !bytes.Equal(v.data, before) {
		t.Errorf("%v", answers)
	}
	d.Close()
}

func TestNothingIsAllocatedForARequest(t *testing.T) {
	_, d := newDevice(t, 8)
	var waiting *block.Request
	d.vol = submitter(func(r *block.Request) { waiting = r })
	r := &block.Request{Op: block.OpRead, Len: block.Size, Data: random(block.Size), Done: func(*block.Request) {}}
	if n := testing.AllocsPerRun(100, func() {
		d.Submit(r)
		waiting.Done(waiting)
	}); n > 0 && d.cipher != nil {
		t.Errorf("%v allocations for a read", n)
	}
}

type submitter func(*block.Request)

func (submitter) Size() int64               { return 8 * block.Size }
func (submitter) Full() bool                { return false }
func (s submitter) Submit(r *block.Request) { s(r) }
