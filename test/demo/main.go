// Command demo plays a story on a lab of three nodes: PostgreSQL runs on a replicated volume, the node
// under it is cut off, the volume is attached on another node, and every row that a
// client saw committed is there. Then the first node comes back and catches up.
//
// It prints a timeline and a verdict, and exits with 0 only if nothing was lost and the
// failover was fast enough. It needs root. `make demo` runs it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"keelson.io/keelson/internal/lab"
	"keelson.io/keelson/test/pgnode"
)

// failoverLimit is how long it may take from the cut to a committed SELECT on another node.
const failoverLimit = 15 * time.Second

const (
	labName    = "demo"
	volumeName = "pg"
	volumeSize = "4Gi"
	scale      = 10 // of pgbench: 100,000 accounts each
)

func main() {
	ledger := flag.String("client", "", "internal: write rows and this ledger of them, until killed")
	url := flag.String("url", "", "internal: database of -client")
	keep := flag.Bool("keep", false, "leave the lab running at the end")
	load := flag.Duration("load", 8*time.Second, "how long clients write before the node is cut off")
	figures := flag.String("figures", "", "write what was measured to this file, as JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	if *ledger != "" {
		err = runClient(ctx, *ledger, *url)
	} else {
		err = play(ctx, *load, *keep, *figures)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// story is what one run of the demo knows.
type story struct {
	timeline
	lab     *lab.Lab
	dir     string // of the ledgers; not on the volume
	old     *pgnode.Server
	new     *pgnode.Server
	clients *clients
	load    time.Duration
	cut     time.Time
	figures figures
	verdict []string
}

// figures are what the benchmark takes from a run.
type figures struct {
	Outage float64 `json:"outageSeconds"` // from the cut to the committed SELECT
	Rejoin float64 `json:"rejoinSeconds"` // from heal to in sync
	Moved  int64   `json:"movedBytes"`    // during that
}

func (f figures) write(path string) error {
	b, err := json.Marshal(f)
	if err != nil || path == "" {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

func play(ctx context.Context, load time.Duration, keep bool, figures string) (err error) {
	binary := os.Getenv("KEELSON_BIN")
	if binary == "" {
		return errors.New("KEELSON_BIN is not set: run `make demo`")
	}
	if err := lab.Down(labName, lab.Dir(labName)); err != nil && !errors.Is(err, lab.ErrNoLab) {
		return err
	}
	dir, err := os.MkdirTemp("", "keelson-demo-")
	if err != nil {
		return err
	}
	s := &story{timeline: newTimeline(os.Stdout), dir: dir, load: load}
	defer func() {
		if s.clients != nil {
			s.clients.stop()
		}
		if keep {
			fmt.Printf("\nThe lab is left: keelson lab --name %s status; ledgers: %s\n", labName, dir)
			return
		}
		if derr := lab.Down(labName, lab.Dir(labName)); derr != nil && !errors.Is(derr, lab.ErrNoLab) {
			err = errors.Join(err, derr)
		}
		os.RemoveAll(dir)
	}()
	if err := errors.Join(s.tell(ctx, binary), s.figures.write(figures)); err != nil {
		return err
	}
	fmt.Printf("\nVERDICT: ok in %.0f s:", s.elapsed().Seconds())
	for i, v := range s.verdict {
		if i > 0 {
			fmt.Print(";")
		}
		fmt.Print(" " + v)
	}
	fmt.Println(".")
	return nil
}

func (s *story) tell(ctx context.Context, binary string) error {
	for _, chapter := range []func(context.Context) error{
		func(ctx context.Context) error { return s.clusterUp(ctx, binary) },
		s.databaseUp,
		s.writeUntilCut,
		s.failOver,
		s.audit,
		s.catchUp,
	} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) clusterUp(ctx context.Context, binary string) error {
	err := s.step("lab up: 3 nodes in 3 zones", func() (string, error) {
		var err error
		s.lab, err = lab.Up(ctx, lab.Config{Name: labName, Binary: binary, Nodes: 3, Zones: 3, PoolSize: lab.DefaultPoolSize})
		return "", err
	})
	if err != nil {
		return err
	}
	return s.step(fmt.Sprintf("volume %s, %s, two copies", volumeName, volumeSize), func() (string, error) {
		if _, err := s.lab.Keelson(ctx, "n1", "volume", "create", volumeName, "--size", volumeSize, "--replicas", "2", "--zone-spread"); err != nil {
			return "", err
		}
		v, err := s.volume(ctx, "n1")
		if err != nil {
			return "", err
		}
		on := v.nodes()
		if len(on) != 2 {
			return "", fmt.Errorf("the volume has copies on %v, want two nodes", on)
		}
		s.old, s.new = pgnode.New(s.lab, on[0]), pgnode.New(s.lab, on[1])
		return fmt.Sprintf("on %s and %s", on[0], on[1]), nil
	})
}

func (s *story) databaseUp(ctx context.Context) error {
	pg := s.old
	return s.steps(
		task{"attach on " + pg.Node, func() (string, error) { return s.attach(ctx, pg) }},
		task{"mkfs.ext4 and mount", func() (string, error) {
			return "", errors.Join(pg.Shell(ctx, "mkfs.ext4 -q "+pg.Device), pg.Mount(ctx))
		}},
		task{"initdb and start PostgreSQL", func() (string, error) {
			if err := pg.InitDB(ctx); err != nil {
				return "", err
			}
			return "", pg.Start(ctx)
		}},
		task{fmt.Sprintf("pgbench -i -s %d", scale), func() (string, error) {
			return fmt.Sprintf("%d accounts", scale*100000), pg.Shell(ctx, pg.Pgbench("-q", "-i", "-s", fmt.Sprint(scale)))
		}},
		task{"start the clients", func() (string, error) {
			if err := pg.Exec(ctx, ledgerSchema); err != nil {
				return "", err
			}
			var err error
			s.clients, err = startClients(ctx, s.lab, pg, s.dir)
			return s.clients.describe(), err
		}},
	)
}

func (s *story) attach(ctx context.Context, pg *pgnode.Server) (string, error) {
	var at struct {
		Device string `json:"device"`
		Term   uint64 `json:"term"`
	}
	err := s.lab.JSON(ctx, pg.Node, &at, "volume", "attach", volumeName)
	pg.Device = at.Device
	return fmt.Sprintf("%s, term %d", at.Device, at.Term), err
}

func (s *story) writeUntilCut(ctx context.Context) error {
	err := s.step("clients write", func() (string, error) {
		select {
		case <-time.After(s.load):
		case <-ctx.Done():
			return "", ctx.Err()
		}
		n, err := countLedgers(s.dir)
		if err == nil && n == 0 {
			err = errors.New("no client saw a row committed")
		}
		return fmt.Sprintf("%d rows in the ledgers", n), err
	})
	if err != nil {
		return err
	}
	return s.step("CUT "+s.old.Node+" off the network", func() (string, error) {
		s.cut = time.Now()
		return "", s.lab.Cut(s.old.Node)
	})
}

func (s *story) failOver(ctx context.Context) error {
	pg := s.new
	err := s.steps(
		task{"attach on " + pg.Node, func() (string, error) { return s.attach(ctx, pg) }},
		task{"mount", func() (string, error) { return "", pg.Mount(ctx) }},
		task{"start PostgreSQL: it replays its log", func() (string, error) { return "", pg.Start(ctx) }},
		task{"first committed SELECT", func() (string, error) {
			n, err := pg.Count(ctx, "pgbench_accounts")
			if err == nil && n != scale*100000 {
				err = fmt.Errorf("%d accounts, want %d", n, scale*100000)
			}
			return fmt.Sprintf("%d accounts", n), err
		}},
	)
	if err != nil {
		return err
	}
	outage := time.Since(s.cut)
	s.figures.Outage = outage.Seconds()
	s.say("%.1f s from the cut to the answer", outage.Seconds())
	if outage > failoverLimit {
		return fmt.Errorf("the failover took %.1f s, and %v is the limit", outage.Seconds(), failoverLimit)
	}
	s.verdict = append(s.verdict, fmt.Sprintf("failover %.1f s (limit %.0f s)", outage.Seconds(), failoverLimit.Seconds()))
	return nil
}

func (s *story) audit(ctx context.Context) error {
	return s.steps(
		task{"every row that a client saw committed", func() (string, error) {
			// The clients on the node that was cut off could still see commits: they count too.
			s.clients.stop()
			n, err := audit(ctx, s.new, s.dir)
			if err == nil {
				s.verdict = append(s.verdict, fmt.Sprintf("all %d committed rows are there", n))
			}
			return fmt.Sprintf("%d rows, all there", n), err
		}},
		task{"pgbench's books balance", func() (string, error) { return s.new.Balance(ctx) }},
	)
}

func (s *story) catchUp(ctx context.Context) error {
	old := s.old
	return s.steps(
		task{"pgbench on " + s.new.Node + " while " + old.Node + " is away", func() (string, error) {
			return "", s.new.Shell(ctx, s.new.Pgbench("-c", "4", "-T", "4"))
		}},
		task{"heal " + old.Node, func() (string, error) { return "", s.lab.Heal(old.Node) }},
		task{"its copy catches up", func() (string, error) {
			report, err := s.awaitInSync(ctx, 60*time.Second)
			if err == nil {
				s.verdict = append(s.verdict, old.Node+" caught up: "+report)
			}
			return report, err
		}},
		task{old.Node + " fenced itself: its writes fail", func() (string, error) { return "", s.wantFenced(ctx) }},
		task{"its old device is gone", func() (string, error) { return "", s.wantDeviceGone(ctx, 20*time.Second) }},
		task{"stop PostgreSQL, unmount, detach, delete", func() (string, error) {
			s.new.Stop(ctx)
			if err := s.new.Unmount(ctx); err != nil {
				return "", err
			}
			for _, verb := range []string{"detach", "delete"} {
				if _, err := s.lab.Keelson(ctx, s.new.Node, "volume", verb, volumeName); err != nil {
					return "", err
				}
			}
			return "", nil
		}},
		task{"lab down", func() (string, error) {
			if err := lab.Down(labName, lab.Dir(labName)); err != nil {
				return "", err
			}
			if left, _ := filepath.Glob("/run/netns/keelson-" + labName + "-*"); len(left) > 0 {
				return "", fmt.Errorf("left behind: %v", left)
			}
			return "nothing left", nil
		}},
	)
}
