package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"keelson.io/keelson/test/enginestat"
	"keelson.io/keelson/test/pgnode"
)

// pgbench compares PostgreSQL on a mounted volume with PostgreSQL on ext4 on a loop device over a file of
// the same pool.
func (b *bench) pgbench(ctx context.Context) error {
	local := filepath.Join(b.pool, "local.img")
	dev, err := b.sh(ctx, "n1", "truncate -s 2G "+local+" && losetup -f --show --direct-io=on --sector-size 4096 "+local)
	if err != nil {
		return err
	}
	volume, err := b.volume(ctx, "pg", "2Gi", "fuse")
	if err != nil {
		return err
	}
	places := []*pgnode.Server{b.server("local", strings.TrimSpace(dev)), b.server("volume", volume)}
	rates := make([][]float64, len(places))
	for _, pg := range places {
		if err := b.prepareDatabase(ctx, pg); err != nil {
			return err
		}
	}
	for range b.mode.rounds {
		for i, pg := range places {
			tps, err := b.transactions(ctx, pg)
			if err != nil {
				return err
			}
			rates[i] = append(rates[i], tps)
		}
	}
	var ratios []float64
	for i := range rates[0] {
		ratios = append(ratios, rates[1][i]/rates[0][i])
	}
	b.report.atLeast("pgbench -c 4 against local ext4", b.suffix(), median(ratios), wantPgbench,
		fmt.Sprintf("%.0f/s of %.0f/s", median(rates[1]), median(rates[0])))
	for _, pg := range places {
		if err := pg.Unmount(ctx); err != nil {
			return err
		}
	}
	_, err = b.sh(ctx, "n1", "losetup -d "+places[0].Device+" && rm "+local)
	return errors.Join(err, b.drop(ctx, "pg"))
}

func (b *bench) server(name, device string) *pgnode.Server {
	pg := pgnode.New(b.lab, "n1")
	pg.Device, pg.Dir = device, filepath.Join(b.lab.NodeDir("n1"), name)
	return pg
}

func (b *bench) prepareDatabase(ctx context.Context, pg *pgnode.Server) error {
	// On space that was written before, for both: allocating it is slow, and is not what is compared.
	if _, err := b.fio(ctx, fusePlace(pg.Device), "--rw=write", "--bs=1m", "--iodepth=4", "--size=100%", "--end_fsync=1"); err != nil {
		return err
	}
	if err := pg.Shell(ctx, "mkfs.ext4 -q -E nodiscard "+pg.Device); err != nil {
		return err
	}
	if err := errors.Join(pg.Mount(ctx), pg.InitDB(ctx), pg.Start(ctx)); err != nil {
		return err
	}
	defer pg.Stop(ctx)
	return pg.Shell(ctx, pg.Pgbench("-q", "-i", "-s", "10"))
}

var tpsLine = regexp.MustCompile(`tps = ([0-9.]+)`)

func (b *bench) transactions(ctx context.Context, pg *pgnode.Server) (float64, error) {
	if err := pg.Start(ctx); err != nil {
		return 0, err
	}
	defer pg.Stop(ctx)
	line := strings.TrimSuffix(pg.Pgbench("-c", "4", "-T", strconv.Itoa(2*b.mode.seconds)), ">/dev/null")
	out, err := b.sh(ctx, "n1", line)
	if err != nil {
		return 0, err
	}
	m := tpsLine.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench said no tps: %s", out)
	}
	return strconv.ParseFloat(m[1], 64)
}

// rejoin cuts n2 off, changes 1 % of a volume of 4 GiB, and lets n2 come back.
func (b *bench) rejoin(ctx context.Context) error {
	dev, err := b.volume(ctx, "back", b.mode.volume, "fuse")
	if err != nil {
		return err
	}
	all := fusePlace(dev)
	if _, err := b.fio(ctx, all, "--rw=write", "--bs=1m", "--iodepth=4", "--size=100%", "--end_fsync=1"); err != nil {
		return err
	}
	size, err := b.sh(ctx, "n1", "blockdev --getsize64 "+dev)
	if err != nil {
		return err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(size), 10, 64)
	if err != nil {
		return err
	}
	changed := n / 100 / 4096 * 4096
	if err := b.lab.Cut("n2"); err != nil {
		return err
	}
	// Without --norandommap no block is written twice.
	cmd, err := b.lab.Command(ctx, "n1", "fio", "--name=change", "--ioengine=libaio", "--direct=1", "--filename="+dev,
		"--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=100%", fmt.Sprintf("--io_size=%d", changed), "--end_fsync=1", "--output=/dev/null")
	if err != nil {
		return err
	}
	if err := cmd.Run(); err != nil {
		return err
	}
	before, err := enginestat.Counters(ctx, b.lab, "n1")
	if err != nil {
		return err
	}
	began := time.Now()
	if err := b.lab.Heal("n2"); err != nil {
		return err
	}
	if err := b.awaitInSync(ctx, "back", 2*time.Minute); err != nil {
		return err
	}
	took := time.Since(began)
	after, err := enginestat.Counters(ctx, b.lab, "n1")
	if err != nil {
		return err
	}
	moved := float64(after["resynced_bytes"]-before["resynced_bytes"]) / float64(changed)
	b.report.atMost("rejoin after 1 % changed, s", b.suffix(), took.Seconds(), wantRejoin, b.mode.volume)
	b.report.atMost("moved for it, times what changed", b.suffix(), moved, wantMoved, "")
	return b.drop(ctx, "back")
}

func (b *bench) awaitInSync(ctx context.Context, name string, limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		var v struct {
			Columns []struct {
				Members []struct {
					State string `json:"state"`
				} `json:"members"`
			} `json:"columns"`
		}
		err := b.lab.JSON(ctx, "n1", &v, "volume", "show", name)
		out := 0
		for _, c := range v.Columns {
			for _, m := range c.Members {
				if m.State != "InSync" {
					out++
				}
			}
		}
		if err == nil && out == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(err, fmt.Errorf("%s has %d copies that are not in sync after %v", name, out, limit))
		}
	}
}

// idle makes many volumes, attached and unused, and looks at what the daemons use.
func (b *bench) idle(ctx context.Context) error {
	if err := b.addPool(ctx, "n3"); err != nil {
		return err
	}
	for i := range b.mode.idle {
		name, node := fmt.Sprintf("idle%d", i), b.lab.Nodes()[i%3]
		if _, err := b.lab.Keelson(ctx, node, "volume", "create", name, "--size", "1Gi", "--replicas", "2"); err != nil {
			return err
		}
		if _, err := b.lab.Keelson(ctx, node, "volume", "attach", name); err != nil {
			return err
		}
	}
	select {
	case <-time.After(10 * time.Second): // to become quiet
	case <-ctx.Done():
		return ctx.Err()
	}
	const watch = 20 * time.Second
	worstCPU, worstRSS := 0.0, 0.0
	before := map[string]time.Duration{}
	for _, n := range b.lab.Nodes() {
		u, err := b.lab.Usage(n)
		if err != nil {
			return err
		}
		before[n] = u.CPU
	}
	select {
	case <-time.After(watch):
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, n := range b.lab.Nodes() {
		u, err := b.lab.Usage(n)
		if err != nil {
			return err
		}
		cpu, rss := 100*float64(u.CPU-before[n])/float64(watch), float64(u.Resident)/(1<<20)
		b.report.note("idle %s: %.1f %% of a core, %.0f MiB: %s", n, cpu, rss, b.breakdown(n))
		worstCPU, worstRSS = max(worstCPU, cpu), max(worstRSS, rss)
	}
	what := fmt.Sprintf("3 nodes, %d volumes attached", b.mode.idle)
	b.report.atMost("idle, % of a core a node", b.suffix(), worstCPU, wantIdleCPU, what)
	b.report.atMost("idle, MiB resident a node", b.suffix(), worstRSS, wantIdleRSS, what)
	return nil
}

func (b *bench) breakdown(node string) string {
	var out []string
	for _, d := range []string{"server", "holder", "etcd", "engine", "control"} {
		if u, err := b.lab.Usage(node, d); err == nil {
			out = append(out, fmt.Sprintf("%s %d MiB", d, u.Resident>>20))
		}
	}
	return strings.Join(out, ", ")
}

// failover is played by the demo.
func failover(ctx context.Context, r *report) error {
	f, err := os.CreateTemp("", "keelson-figures-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	cmd := exec.CommandContext(ctx, "go", "run", "./test/demo", "-figures", f.Name())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the demo failed: %w: %s", err, out.String())
	}
	var figures struct {
		Outage float64 `json:"outageSeconds"`
	}
	if err := json.NewDecoder(f).Decode(&figures); err != nil {
		return err
	}
	r.atMost("from cut to a committed SELECT, s", "encrypted", figures.Outage, wantFailover, "make demo")
	return nil
}

// leak runs the system test that counts what is left after many volumes.
func leak(ctx context.Context, r *report) error {
	cmd := exec.CommandContext(ctx, "go", "test", "./test/system", "-count=1", "-timeout", "1200s", "-run", "TestManyVolumesLeaveNothing")
	cmd.Env = append(os.Environ(), "KEELSON_LONG=1")
	began := time.Now()
	out, err := cmd.CombinedOutput()
	left := 0.0
	if err != nil {
		left = 1
		r.note("200 volumes: %s", out)
	}
	r.atMost("200 volumes leave something behind", "encrypted", left, target{0, 0}, fmt.Sprintf("%.0f s", time.Since(began).Seconds()))
	return nil
}
