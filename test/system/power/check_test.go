package power

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"keelson.io/keelson/internal/aio/ring"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/replica"
	"keelson.io/keelson/internal/wire"
	"keelson.io/keelson/test/copies"
)

// expected is what may be on the disk after a loss of power between two marks.
type expected struct {
	durable  map[int64]uint32 // block -> the write of it, or a later one, that must be there
	tried    map[int64]uint32 // the last one begun
	trims    map[int64][]uint32
	periods  map[[2]int64]uint64 // block, write -> period
	acked    map[int64]uint32
	begun    map[int]map[int64]uint32 // by mark: what was answered when the flush before it began
	fence    uint64
	checkpt  uint64
	lastMark int
}

// follow replays the journey: first up to the mark, for what is durable; then up to the next one, for what was
// begun.
func follow(journey string, mark int) (*expected, error) {
	x := &expected{durable: map[int64]uint32{}, tried: map[int64]uint32{}, trims: map[int64][]uint32{}, periods: map[[2]int64]uint64{},
		acked: map[int64]uint32{}, begun: map[int]map[int64]uint32{}}
	var fence, checkpt uint64
	fua := map[int64]uint32{}
	for _, line := range strings.Split(strings.TrimSpace(journey), "\n") {
		var verb string
		var v [3]int64
		n, _ := fmt.Sscan(line, &verb, &v[0], &v[1], &v[2])
		if n < 2 {
			return nil, fmt.Errorf("%q", line)
		}
		b, seq := v[0], uint32(v[1])
		switch verb {
		case "w", "t":
			x.tried[b] = seq
			x.periods[[2]int64{b, v[1]}] = uint64(v[2])
			if verb == "t" {
				x.trims[b] = append(x.trims[b], seq)
			}
		case "a":
			x.acked[b] = seq
		case "d":
			x.acked[b], fua[b] = seq, seq
		case "f":
			x.begun[int(v[0])] = clone(x.acked)
		case "c":
			checkpt = uint64(v[0])
		case "F":
			fence = uint64(v[0])
		case "m":
			x.lastMark = int(v[0])
			if x.lastMark > mark {
				return x, nil
			}
			for b, seq := range x.begun[x.lastMark] {
				x.durable[b] = max(x.durable[b], seq)
			}
			for b, seq := range fua {
				x.durable[b] = max(x.durable[b], seq)
			}
			x.fence, x.checkpt = fence, checkpt
		}
	}
	return x, nil
}

func clone(m map[int64]uint32) map[int64]uint32 {
	out := make(map[int64]uint32, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// inspect mounts the disk, which makes XFS replay its log, opens the replica as after a boot, and looks at
// everything.
func inspect(l *ring.Loop, image, mnt string, x *expected) (err error) {
	// Not mount's own loop option: that takes the device of the image before over, whose end somebody who looks at all loop devices
	// may hold up.
	dev, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		return fmt.Errorf("losetup: %w", err)
	}
	loop := strings.TrimSpace(string(dev))
	defer func() { err = errors.Join(err, exec.Command("losetup", "--detach", loop).Run()) }()
	if out, err := exec.Command("mount", "-o", "nouuid", loop, mnt).CombinedOutput(); err != nil {
		return fmt.Errorf("the file system can't be mounted: %w: %s", err, out)
	}
	defer func() {
		if out, uerr := exec.Command("umount", mnt).CombinedOutput(); uerr != nil {
			err = fmt.Errorf("%w; umount: %w: %s", err, uerr, out)
		}
	}()
	dir := filepath.Join(mnt, "replica")
	if _, err := os.Stat(dir); err != nil {
		if x.fence == 0 {
			return nil // its creation was never answered
		}
		return err
	}
	rep, err := copies.Check(dir)
	if err != nil {
		return err
	}
	if len(rep.Wrong) > 0 {
		return fmt.Errorf("sums of chunks that aren't journaled: %s", strings.Join(rep.Wrong, "; "))
	}
	r, err := onLoop(l, func(done func(*replica.Replica, error)) {
		replica.Open(replica.Config{Loop: l, Dir: dir, Run: "after"}, done)
	})
	if err != nil {
		return err
	}
	defer func() {
		_, _ = onLoop(l, func(done func(*replica.Replica, error)) { r.Close(func() { done(nil, nil) }) })
	}()
	w := &writer{loop: l, r: r, term: 1 << 20, period: 1<<52 | 1}
	return w.compare(x)
}

// compare fences the replica and reads all of it.
func (w *writer) compare(x *expected) error {
	q := &wire.Request{Kind: wire.KindFence}
	if err := w.ask(q); err != nil {
		return err
	}
	f := q.Fence
	if f.PrevFence < x.fence {
		return fmt.Errorf("fence %d was promised, and it is %d", x.fence, f.PrevFence)
	}
	if f.Checkpoint < x.checkpt {
		return fmt.Errorf("checkpoint %x was answered, and it is %x", x.checkpt, f.Checkpoint)
	}
	journaled := func(chunk int64) bool {
		return f.AllChunks || slices.ContainsFunc(f.Journal, func(e wire.JournalEntry) bool { return e.Chunk == chunk })
	}
	const run = 256
	for at := int64(0); at < replicaSize/block.Size; at += run {
		q := &wire.Request{Kind: wire.KindRead, Off: at * block.Size, Data: aligned(run * block.Size), Sums: make([]uint64, run)}
		if err := w.ask(q); err != nil {
			return err
		}
		for i := range int64(run) {
			b := at + i
			period, err := x.judge(q.Data[i*block.Size:(i+1)*block.Size], b)
			if err != nil {
				return err
			}
			if chunk := b / block.PerChunk; period > f.Checkpoint && !journaled(chunk) {
				return fmt.Errorf("block %d holds a write of period %x, after the checkpoint %x, and its chunk %d is not in the journal", b, period, f.Checkpoint, chunk)
			}
		}
	}
	return nil
}

// judge says whether a block may hold that, and in which period it was written; 0 if that can't be told.
func (x *expected) judge(buf []byte, b int64) (period uint64, err error) {
	must, last := x.durable[b], x.tried[b]
	if block.IsZero(buf) {
		if must == 0 || slices.ContainsFunc(x.trims[b], func(seq uint32) bool { return seq >= must && seq <= last }) {
			return 0, nil
		}
		return 0, fmt.Errorf("LOST: block %d is zeros; write %d was durable", b, must)
	}
	seq, ok := readStamp(buf, b)
	switch {
	case !ok && must == last:
		return 0, fmt.Errorf("LOST: block %d is torn, and write %d was durable with nothing in flight since", b, must)
	case !ok:
		return 0, nil // a write in flight, torn
	case seq < must || seq > last:
		return 0, fmt.Errorf("LOST: block %d holds write %d; %d was durable, and %d the last one begun", b, seq, must, last)
	}
	return x.periods[[2]int64{b, int64(seq)}], nil
}
