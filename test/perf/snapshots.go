package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"keelson.io/keelson/test/enginestat"
)

// What snapshots must reach.
var (
	wantPause     = target{20, 10}     // ms in which no write is answered
	wantAfter     = target{0.5, 0.7}   // of the speed before
	wantPreserved = target{0.9, 0.95}  // of the speed before
	wantReads     = target{0.95, 0.98} // of the speed without snapshots
	wantClone     = target{2, 1}       // seconds
	wantCloned    = target{48, 24}     // MiB; journal, checksums and the like, no data
	wantBack      = target{0.9, 0.95}  // of what only the deleted snapshot held
)

const (
	pauses     = 100                    // snapshots whose pauses are looked at
	pauseLook  = 300 * time.Millisecond // after each was asked for
	manySnaps  = 100
	writtenMiB = 6 << 10 // of a pool's file, before there is a pool in it: all of it
	region     = 128     // MiB that change between snapshots
)

// snapshots measures snapshots and clones on pools whose files were written before: the first write to a place of a sparse file changes
// the extents of the file system around it, which neither a disk does nor a pool that has been in use.
func snapshots(ctx context.Context, binary string, m mode, r *report) error {
	b, err := openBenchOn(ctx, binary, m, false, r, (*bench).addWrittenPool)
	if err != nil {
		return err
	}
	// Deletions first, while the pool has the least in it.
	err = errors.Join(b.deleteMiddle(ctx), b.cloneBig(ctx), b.overwriteAfter(ctx), b.pause(ctx), b.readHead(ctx))
	return errors.Join(err, closeLab())
}

func (b *bench) addWrittenPool(ctx context.Context, node string) error {
	file := filepath.Join(b.lab.NodeDir(node), "pool.img")
	if _, err := b.sh(ctx, node, fmt.Sprintf("dd if=/dev/zero of=%s bs=4M count=%d oflag=direct", file, writtenMiB/4)); err != nil {
		return err
	}
	_, err := b.lab.Keelson(ctx, node, "pool", "add", "--wipe", "--file", file, "--size", fmt.Sprintf("%dMi", writtenMiB))
	return err
}

func (b *bench) used(ctx context.Context) (int64, error) {
	out, err := b.sh(ctx, "n1", "df --output=used -B1 "+b.pool+" | tail -1")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(out), 10, 64)
}

func (b *bench) snapshot(ctx context.Context, args ...string) error {
	_, err := b.lab.Keelson(ctx, "n1", append([]string{"snapshot"}, args...)...)
	return err
}

// preserved waits until the engines of both copies have preserved what they are going to.
func (b *bench) preserved(ctx context.Context) (took time.Duration, err error) {
	began, changed := time.Now(), time.Now()
	last := int64(-1)
	for time.Since(changed) < 1500*time.Millisecond && time.Since(began) < time.Minute {
		sum := int64(0)
		for _, n := range []string{"n1", "n2"} {
			c, err := enginestat.Counters(ctx, b.lab, n)
			if err != nil {
				return 0, err
			}
			sum += c["pieces_preserved"]
		}
		if sum != last {
			last, changed = sum, time.Now()
		}
		time.Sleep(100 * time.Millisecond)
	}
	return changed.Sub(began), nil
}

// randomWrites are 4 KiB random writes, 32 in flight, which note what happens in every step of so many milliseconds.
func (b *bench) randomWrites(ctx context.Context, dev string, seconds, step int, while func() error, more ...string) (*series, error) {
	dir, err := os.MkdirTemp("", "keelson-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	end := make(chan error, 1)
	go func() {
		_, err := b.fio(ctx, fusePlace(dev), append([]string{"--rw=randwrite", "--bs=4k", "--iodepth=32", "--time_based", fmt.Sprintf("--runtime=%d", seconds),
			"--write_iops_log=" + filepath.Join(dir, "x"), fmt.Sprintf("--log_avg_msec=%d", step), "--log_unix_epoch=1"}, more...)...)
		end <- err
	}()
	var werr error
	if while != nil {
		werr = while()
	}
	if err := errors.Join(<-end, werr); err != nil {
		return nil, err
	}
	return readSeries(filepath.Join(dir, "x_iops.1.log"), step)
}

// series is how many operations a second were answered, step by step.
type series struct {
	at   []int64 // Unix time at the end of the step, ms
	rate []float64
	step int64
}

func readSeries(file string, step int) (*series, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	s := &series{step: int64(step)}
	for line := range strings.Lines(string(text)) {
		f := strings.Split(line, ",")
		if len(f) < 2 {
			continue
		}
		at, err1 := strconv.ParseInt(strings.TrimSpace(f[0]), 10, 64)
		rate, err2 := strconv.ParseFloat(strings.TrimSpace(f[1]), 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("fio's log: %w", err)
		}
		s.at, s.rate = append(s.at, at), append(s.rate, rate)
	}
	if len(s.at) < 3 {
		return nil, errors.New("fio's log is empty")
	}
	return s, nil
}

// mean returns the mean rate between two times.
func (s *series) mean(from, to time.Time) float64 {
	sum, n := 0.0, 0
	for i, at := range s.at {
		if at-s.step >= from.UnixMilli() && at <= to.UnixMilli() {
			sum += s.rate[i]
			n++
		}
	}
	return sum / float64(max(n, 1))
}

// gap returns the longest time between two times in which nothing was answered, ms.
func (s *series) gap(from, to time.Time) float64 {
	longest := int64(0)
	for i := 1; i < len(s.at); i++ {
		if s.at[i] >= from.UnixMilli() && s.at[i-1] <= to.UnixMilli() {
			longest = max(longest, s.at[i]-s.at[i-1])
		}
	}
	return float64(longest)
}

// overwriteAfter compares the speed of random overwrites before a snapshot, right after it, and when its chunks are preserved.
func (b *bench) overwriteAfter(ctx context.Context) error {
	dev, err := b.volume(ctx, "over", b.mode.volume, "fuse")
	if err != nil {
		return err
	}
	if err := b.fill(ctx, fusePlace(dev)); err != nil {
		return err
	}
	const before, after, rest = 5, 6, 4 // seconds
	var after1, afterAll, later, apart []float64
	for range b.mode.rounds {
		var cut time.Time
		s, err := b.randomWrites(ctx, dev, before+after+1, 100, func() error {
			time.Sleep((before + 1) * time.Second)
			cut = time.Now()
			return b.snapshot(ctx, "create", "over", "s")
		})
		if err != nil {
			return err
		}
		took, err := b.preserved(ctx)
		if err != nil {
			return err
		}
		last, err := b.randomWrites(ctx, dev, rest, 100, nil)
		if err != nil {
			return err
		}
		base := s.mean(cut.Add(-before*time.Second), cut)
		line := ""
		for k := range after {
			line += fmt.Sprintf(" %.2f", s.mean(cut.Add(time.Duration(k)*time.Second), cut.Add(time.Duration(k+1)*time.Second))/base)
		}
		b.report.note("overwriting %s after a snapshot, second by second:%s of %.0f/s; the last piece is preserved %.1f s later", b.mode.size, line, base, took.Seconds())
		if err := b.snapshot(ctx, "delete", "over", "s"); err != nil {
			return err
		}
		after1 = append(after1, s.mean(cut, cut.Add(time.Second))/base)
		afterAll = append(afterAll, s.mean(cut, cut.Add(after*time.Second))/base)
		later = append(later, last.mean(time.Time{}, time.Now())/base)
		apart = append(apart, took.Seconds())
	}
	b.report.note("first second: %.2f", median(after1))
	b.report.atLeast(fmt.Sprintf("random write in the %d s after a snapshot, of before", after), b.suffix(), median(afterAll), wantAfter, b.mode.size+" overwritten")
	b.report.atLeast("random write when chunks are preserved, of before", b.suffix(), median(later), wantPreserved, fmt.Sprintf("%.1f s later", median(apart)))
	return b.drop(ctx, "over")
}

// pause takes snapshots under load and looks for the longest time around each in which no write was answered.
func (b *bench) pause(ctx context.Context) error {
	dev, err := b.volume(ctx, "pause", "1Gi", "fuse")
	if err != nil {
		return err
	}
	if err := b.fill(ctx, fusePlace(dev)); err != nil {
		return err
	}
	var asked []time.Time
	s, err := b.randomWrites(ctx, dev, pauses+pauses/4, 1, func() error {
		time.Sleep(2 * time.Second)
		for range pauses {
			asked = append(asked, time.Now())
			if err := b.snapshot(ctx, "create", "pause", "s"); err != nil {
				return err
			}
			time.Sleep(pauseLook)
			if err := b.snapshot(ctx, "delete", "pause", "s"); err != nil {
				return err
			}
			time.Sleep(pauseLook)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var gaps []float64
	for _, t := range asked {
		if t.Add(pauseLook).UnixMilli() <= s.at[len(s.at)-1] {
			gaps = append(gaps, s.gap(t, t.Add(pauseLook)))
		}
	}
	if len(gaps) < pauses {
		return fmt.Errorf("only %d of %d snapshots were taken while fio ran: the machine is too busy for this figure", len(gaps), pauses)
	}
	b.report.note("longest pause of each of %d snapshots, ms: %.0f; without any: %.0f", len(gaps), gaps, s.gap(time.Time{}, asked[0]))
	c, err := enginestat.Counters(ctx, b.lab, "n1")
	if err != nil {
		return err
	}
	b.report.atMost("pause of writes at a snapshot, p99, ms", b.suffix(), percentile(gaps, 0.99), wantPause,
		fmt.Sprintf("%d snapshots, median %.0f ms; the longest cut %.1f ms, the rest is the first pieces", len(gaps), median(gaps), float64(c["snapshot_pause_max_microseconds"])/1000))
	return b.drop(ctx, "pause")
}

// readHead compares random reads of a volume that has many snapshots with those before it had any.
func (b *bench) readHead(ctx context.Context) error {
	if _, err := b.lab.Keelson(ctx, "n1", "settings", "set", "snapshots-max", fmt.Sprint(manySnaps+8)); err != nil {
		return err
	}
	dev, err := b.volume(ctx, "reads", "1Gi", "fuse")
	if err != nil {
		return err
	}
	if err := b.fill(ctx, fusePlace(dev)); err != nil {
		return err
	}
	read := func() (float64, error) {
		var rates []float64
		for range 3 {
			s, err := b.fio(ctx, fusePlace(dev), "--rw=randread", "--bs=4k", "--iodepth=32", "--time_based", "--runtime=2")
			if err != nil {
				return 0, err
			}
			rates = append(rates, s.perSecond)
		}
		return median(rates), nil
	}
	none, err := read()
	if err != nil {
		return err
	}
	var names []string
	for i := range manySnaps {
		names = append(names, fmt.Sprintf("s%d", i))
		if err := b.snapshot(ctx, "create", "reads", names[i]); err != nil {
			return err
		}
		if _, err := b.fio(ctx, fusePlace(dev), "--rw=randwrite", "--bs=4k", "--iodepth=4", "--io_size=64k"); err != nil {
			return err
		}
	}
	if _, err := b.preserved(ctx); err != nil {
		return err
	}
	many, err := read()
	if err != nil {
		return err
	}
	b.report.atLeast(fmt.Sprintf("random read with %d snapshots, of without", manySnaps), b.suffix(), many/none, wantReads, fmt.Sprintf("%.0f/s of %.0f/s", many, none))
	return b.dropWith(ctx, "reads", names...)
}

// cloneBig clones a volume of 10 GiB of which some is written.
func (b *bench) cloneBig(ctx context.Context) error {
	dev, err := b.volume(ctx, "big", "10Gi", "fuse")
	if err != nil {
		return err
	}
	if _, err := b.fio(ctx, fusePlace(dev), "--rw=write", "--bs=1m", "--iodepth=4", "--size=1g", "--end_fsync=1"); err != nil {
		return err
	}
	before, err := b.used(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := b.lab.Keelson(ctx, "n1", "volume", "create", "twin", "--from-volume", "big"); err != nil {
		return err
	}
	took := time.Since(began)
	after, err := b.used(ctx)
	if err != nil {
		return err
	}
	b.report.atMost("clone of 10 GiB with 1 GiB written, s", b.suffix(), took.Seconds(), wantClone, "")
	b.report.atMost("space that the clone took, MiB", b.suffix(), float64(after-before)/(1<<20), wantCloned, "")
	_, err = b.lab.Keelson(ctx, "n1", "volume", "delete", "twin")
	return errors.Join(err, b.drop(ctx, "big"))
}

// deleteMiddle deletes the second of three snapshots while the volume is written, and looks at the others' content and at the space.
func (b *bench) deleteMiddle(ctx context.Context) error {
	dev, err := b.volume(ctx, "three", "512Mi", "fuse")
	if err != nil {
		return err
	}
	write := func(offset, size int) error {
		_, err := b.fio(ctx, fusePlace(dev), "--rw=randwrite", "--bs=64k", "--iodepth=8", fmt.Sprintf("--offset=%dm", offset), fmt.Sprintf("--size=%dm", size),
			fmt.Sprintf("--io_size=%dm", 2*size), "--refill_buffers", "--end_fsync=1")
		return err
	}
	if _, err := b.fio(ctx, fusePlace(dev), "--rw=write", "--bs=1m", "--iodepth=4", "--size=512m", "--refill_buffers", "--end_fsync=1"); err != nil {
		return err
	}
	for _, name := range []string{"s1", "s2", "s3"} {
		if err := b.snapshot(ctx, "create", "three", name); err != nil {
			return err
		}
		if err := write(0, region); err != nil {
			return err
		}
	}
	// What the load writes is preserved before it is measured, so that it needs no space.
	if err := write(2*region, 2*region); err != nil {
		return err
	}
	if _, err := b.preserved(ctx); err != nil {
		return err
	}
	sums := map[string]string{}
	for _, name := range []string{"s1", "s3"} {
		if sums[name], err = b.contentOf(ctx, "three/"+name); err != nil {
			return err
		}
	}
	var before, after int64
	_, err = b.randomWrites(ctx, dev, 5, 100, func() (err error) {
		time.Sleep(2 * time.Second)
		if before, err = b.used(ctx); err != nil {
			return err
		}
		if err := b.snapshot(ctx, "delete", "three", "s2"); err != nil {
			return err
		}
		after, err = b.used(ctx)
		return err
	}, fmt.Sprintf("--offset=%dm", 2*region), fmt.Sprintf("--size=%dm", 2*region))
	if err != nil {
		return err
	}
	wrong := 0.0
	for name, want := range sums {
		got, err := b.contentOf(ctx, "three/"+name)
		if err != nil {
			return err
		}
		if got != want {
			wrong++
		}
	}
	b.report.atMost("snapshots that aren't what they were after a deletion under load", b.suffix(), wrong, target{0, 0}, "of 2")
	b.report.atLeast("space back when a deletion returns, of what it held", b.suffix(), float64(before-after)/float64(region<<20), wantBack,
		fmt.Sprintf("%d MiB", (before-after)>>20))
	return b.dropWith(ctx, "three", "s1", "s3")
}

// dropWith deletes a volume and those of its snapshots.
func (b *bench) dropWith(ctx context.Context, name string, snapshots ...string) error {
	for _, s := range snapshots {
		if err := b.snapshot(ctx, "delete", name, s); err != nil {
			return err
		}
	}
	return b.drop(ctx, name)
}

// contentOf returns a digest of all that a snapshot holds.
func (b *bench) contentOf(ctx context.Context, snapshot string) (string, error) {
	if _, err := b.lab.Keelson(ctx, "n1", "volume", "create", "look", "--from-snapshot", snapshot); err != nil {
		return "", err
	}
	dev, err := b.lab.Keelson(ctx, "n1", "volume", "attach", "look")
	if err != nil {
		return "", err
	}
	out, err := b.sh(ctx, "n1", "dd bs=1M iflag=direct status=none if="+strings.TrimSpace(dev)+" | sha256sum")
	return out, errors.Join(err, b.drop(ctx, "look"))
}

// percentile returns the smallest value that so large a share of all isn't above.
func percentile(x []float64, share float64) float64 {
	s := slices.Sorted(slices.Values(x))
	return s[min(len(s)-1, int(math.Ceil(share*float64(len(s))))-1)]
}
