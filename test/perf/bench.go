package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"keelson.io/keelson/internal/lab"
)

// bench is a lab that is measured: n1 and n2 have pools on the same disk, n3 only holds metadata.
type bench struct {
	lab    *lab.Lab
	mode   mode
	plain  bool
	report *report
	pool   string // directory on n1 where its pool is mounted
}

// labName is another one if KEELSON_BENCH_LAB names one, so that two can be measured.
var labName = cmp.Or(os.Getenv("KEELSON_BENCH_LAB"), "bench")

func openBench(ctx context.Context, binary string, m mode, plain bool, r *report) (*bench, error) {
	return openBenchOn(ctx, binary, m, plain, r, (*bench).addPool)
}

// openBenchOn is openBench with pools that addPool makes.
func openBenchOn(ctx context.Context, binary string, m mode, plain bool, r *report, addPool func(*bench, context.Context, string) error) (*bench, error) {
	if err := closeLab(); err != nil {
		return nil, err
	}
	l, err := lab.Up(ctx, lab.Config{Name: labName, Binary: binary, Nodes: 3, Zones: 3, Plain: plain, Settings: settings()})
	if err != nil {
		return nil, err
	}
	b := &bench{lab: l, mode: m, plain: plain, report: r}
	for _, n := range []string{"n1", "n2"} {
		if err := addPool(b, ctx, n); err != nil {
			return nil, err
		}
	}
	out, err := b.sh(ctx, "n1", "awk '$3 == \"xfs\" && index($2, \""+l.NodeDir("n1")+"/\") == 1 {print $2}' /proc/mounts")
	if b.pool = strings.TrimSpace(out); err == nil && b.pool == "" {
		err = errors.New("n1 has no pool mounted")
	}
	return b, err
}

func closeLab() error {
	if err := lab.Down(labName, lab.Dir(labName)); err != nil && !errors.Is(err, lab.ErrNoLab) {
		return err
	}
	return nil
}

func (b *bench) addPool(ctx context.Context, node string) error {
	file := filepath.Join(b.lab.NodeDir(node), "pool.img")
	_, err := b.lab.Keelson(ctx, node, "pool", "add", "--file", file, "--size", lab.DefaultPoolSize)
	return err
}

func (b *bench) sh(ctx context.Context, node, line string) (string, error) {
	cmd, err := b.lab.Command(ctx, node, "sh", "-c", line)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("on %s: %s: %w: %s", node, line, err, out)
	}
	return string(out), err
}

// volume makes a volume with a copy on n1 and one on n2 and attaches it to n1. more are further flags of its creation.
func (b *bench) volume(ctx context.Context, name, size, frontend string, more ...string) (string, error) {
	if _, err := b.lab.Keelson(ctx, "n1", append([]string{"volume", "create", name, "--size", size, "--replicas", "2"}, more...)...); err != nil {
		return "", err
	}
	out, err := b.lab.Keelson(ctx, "n1", "volume", "attach", name, "--frontend", frontend)
	return strings.TrimSpace(out), err
}

func (b *bench) drop(ctx context.Context, name string) error {
	_, err := b.lab.Keelson(ctx, "n1", "volume", "detach", name)
	_, err2 := b.lab.Keelson(ctx, "n1", "volume", "delete", name)
	return errors.Join(err, err2)
}

// suffix tells the figures of the two kinds of cluster apart.
func (b *bench) suffix() string {
	if b.plain {
		return "plain"
	}
	return "encrypted"
}

// io measures all profiles: in every round each place once, one after the other, so that a ratio
// compares neighbours.
func (b *bench) io(ctx context.Context) error {
	places := []place{rawPlace(filepath.Join(b.pool, "raw.img"))}
	for _, frontend := range []string{"nbd", "fuse"} {
		at, err := b.volume(ctx, frontend, b.mode.volume, frontend)
		if err != nil {
			return err
		}
		if frontend == "nbd" {
			places = append(places, nbdPlace(at))
		} else {
			places = append(places, fusePlace(at))
		}
	}
	for _, p := range places {
		if err := b.fill(ctx, p); err != nil {
			return err
		}
	}
	for _, profile := range profiles {
		if err := b.measure(ctx, profile, places); err != nil {
			return fmt.Errorf("%s: %w", profile.name, err)
		}
	}
	for _, p := range places[1:] {
		if err := b.drop(ctx, p.name); err != nil {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(b.pool, "raw.img"))
}

// measure compares all places with the first.
func (b *bench) measure(ctx context.Context, profile profile, places []place) error {
	ratios, perOp, rates := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for range b.mode.rounds {
		var base float64
		for i, p := range places {
			before, err := b.engines()
			if err != nil {
				return err
			}
			s, err := b.timed(ctx, p, profile)
			if err != nil {
				return err
			}
			after, err := b.engines()
			if err != nil {
				return err
			}
			rates[p.name] = append(rates[p.name], s.perSecond)
			if i == 0 {
				base = s.perSecond
				continue
			}
			ratios[p.name] = append(ratios[p.name], s.perSecond/base)
			perOp[p.name] = append(perOp[p.name], float64((after-before).Microseconds())/float64(s.operations))
		}
	}
	base := places[0].name
	b.report.note("%s, %s: %s %.0f/s", profile.name, b.suffix(), base, median(rates[base]))
	for _, p := range places[1:] {
		b.report.atLeast(fmt.Sprintf("%s, %s", profile.name, p.name), b.suffix(), median(ratios[p.name]), profile.want[p.name],
			fmt.Sprintf("%.0f/s of %.0f/s", median(rates[p.name]), median(rates[base])))
		if profile.cpu {
			b.report.atMost(fmt.Sprintf("CPU of all engines a write, µs, %s", p.name), b.suffix(), median(perOp[p.name]), wantCPU, "")
		}
	}
	return nil
}

// engines is the processor time of all engines that have data.
func (b *bench) engines() (time.Duration, error) {
	var sum time.Duration
	for _, n := range []string{"n1", "n2"} {
		u, err := b.lab.Usage(n, "engine")
		if err != nil {
			return 0, err
		}
		sum += u.CPU
	}
	return sum, nil
}
