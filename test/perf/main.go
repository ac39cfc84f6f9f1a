// Command perf measures a lab: what volumes reach as a ratio to a raw file on the same pool, with
// encryption between the engines and without; PostgreSQL against a local file system; failover,
// rejoin, and what an idle cluster costs. `make bench` runs it, as root.
//
// It prints a table with what each figure must reach, writes it as JSON, and compares with
// a recorded baseline. It exits with 1 if a figure misses its floor. Only ratios taken in
// one run mean anything: absolute figures are those of the machine. What is measured and what must
// be reached stands in profiles.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	name := flag.String("mode", "full", "full, or short for a quick look")
	out := flag.String("out", "dist/bench.json", "where the figures go, as JSON")
	base := flag.String("baseline", "test/perf/baseline.json", "recorded figures to compare with")
	record := flag.Bool("record", false, "make this run the baseline")
	only := flag.String("only", "", "only these, with commas between: io, plain, atrest, pgbench, rejoin, idle, limits, snapshots, failover, leak")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, *name, *out, *base, *only, *record); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, name, out, base, only string, record bool) (err error) {
	m, ok := modes[name]
	if !ok {
		return fmt.Errorf("mode %q is neither full nor short", name)
	}
	binary := os.Getenv("KEELSON_BIN")
	if binary == "" {
		return errors.New("KEELSON_BIN is not set: run `make bench`")
	}
	baseline, err := readReport(base)
	if err != nil {
		return fmt.Errorf("baseline: %w", err)
	}
	r := newReport(ctx, binary, name)
	defer func() { err = errors.Join(err, closeLab()) }()
	for _, part := range parts(binary, m, r) {
		if only != "" && !strings.Contains(","+only+",", ","+part.name+",") {
			continue
		}
		if perr := part.run(ctx); perr != nil {
			// The other parts say something all the same.
			err = errors.Join(err, fmt.Errorf("%s: %w", part.name, perr))
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", part.name, perr)
		}
		if ctx.Err() != nil {
			return err
		}
	}
	r.print(baseline)
	if werr := r.write(out); werr != nil {
		return errors.Join(err, werr)
	}
	if record {
		err = errors.Join(err, r.write(base))
	}
	if missed := r.missed(); len(missed) > 0 {
		err = errors.Join(err, fmt.Errorf("below the floor: %s", strings.Join(missed, "; ")))
	}
	return err
}

type part struct {
	name string
	run  func(context.Context) error
}

func parts(binary string, m mode, r *report) []part {
	in := func(plain bool, do func(*bench, context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			b, err := openBench(ctx, binary, m, plain, r)
			if err != nil {
				return err
			}
			return errors.Join(do(b, ctx), closeLab())
		}
	}
	return []part{
		{"io", in(false, (*bench).io)},
		{"plain", in(true, (*bench).io)},
		{"atrest", in(false, (*bench).atRest)},
		{"pgbench", in(false, (*bench).pgbench)},
		{"rejoin", in(false, (*bench).rejoin)},
		{"idle", in(false, (*bench).idle)},
		{"limits", in(false, (*bench).limits)},
		{"snapshots", func(ctx context.Context) error { return snapshots(ctx, binary, m, r) }},
		{"failover", func(ctx context.Context) error { return failover(ctx, r) }},
		{"leak", func(ctx context.Context) error {
			if !m.leak {
				return nil
			}
			return leak(ctx, r)
		}},
	}
}

func newReport(ctx context.Context, binary, mode string) *report {
	var u unix.Utsname
	_ = unix.Uname(&u)
	r := &report{Mode: mode, Time: time.Now().UTC().Truncate(time.Second), Kernel: unix.ByteSliceToString(u.Release[:]), CPUs: runtime.NumCPU()}
	r.Version = programVersion(ctx, binary)
	return r
}

func programVersion(ctx context.Context, binary string) string {
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return "unknown"
	}
	f := strings.Fields(string(out))
	return f[len(f)-1]
}
