// Command chaos uses volumes on a lab in every way there is, while it kills and stops processes, cuts networks,
// fills pools, crashes nodes, and moves volumes, in an order that follows from a seed. It knows of every write that
// was acknowledged, and after each round checks all of them, that all copies are identical, that sums
// fit the data, and that file systems are clean. README.md says more. It needs root. `make chaos MINUTES=n` runs it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// writerEnv in the environment makes this program the writer on a file system.
const writerEnv = "KEELSON_CHAOS_WRITER"

// config is what a run is asked for.
type config struct {
	binary  string
	name    string // of the lab
	seed    uint64
	nodes   int
	limit   time.Duration // no round begins after it
	rounds  int           // at most; 0 is as many as fit
	faults  int           // of a round
	pace    time.Duration // that a writer pauses between writes
	only    string        // kind of faults; "" is all
	keep    bool          // leave the lab if something was wrong
	logsDir string        // where the logs of the nodes go if something was wrong
}

func main() {
	if os.Getenv(writerEnv) != "" {
		os.Exit(writeFiles(os.Args[1:]))
	}
	var cfg config
	minutes := flag.Float64("minutes", 5, "how long rounds of faults begin; the last one is finished")
	flag.StringVar(&cfg.name, "name", "chaos", "name of the lab")
	flag.Uint64Var(&cfg.seed, "seed", 0, "seed of the plan; 0 takes one from the clock")
	flag.IntVar(&cfg.nodes, "nodes", 4, "nodes of the lab")
	flag.IntVar(&cfg.rounds, "rounds", 0, "at most so many rounds")
	flag.IntVar(&cfg.faults, "faults", faultsPerRound, "faults of a round")
	flag.DurationVar(&cfg.pace, "pace", 4*time.Millisecond, "pause of a writer between writes")
	flag.StringVar(&cfg.only, "only", "", "only faults of this kind")
	flag.BoolVar(&cfg.keep, "keep", false, "leave the lab if something was wrong")
	flag.StringVar(&cfg.logsDir, "logs", "", "keep the logs of the nodes in this directory if something was wrong")
	flag.Parse()
	cfg.limit = time.Duration(*minutes * float64(time.Minute))
	if cfg.seed == 0 {
		cfg.seed = uint64(time.Now().UnixNano()) % 1e9
	}
	if cfg.binary = os.Getenv("KEELSON_BIN"); cfg.binary == "" {
		fmt.Fprintln(os.Stderr, "chaos: KEELSON_BIN is not set: run `make chaos`")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := play(ctx, cfg, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}
