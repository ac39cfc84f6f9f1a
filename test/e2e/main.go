// Command e2e brings up a real Kubernetes on this machine, with Keelson on it, to play with:
//
//	go run ./test/e2e -keep     until it is interrupted; it prints how to use it
//	go run ./test/e2e -down     takes away what one left that was killed
//
// Its tests (go test ./test/e2e, or make e2e) run the cases of Keelson in Kubernetes on such a cluster: manifests as people have them,
// real pods, and nodes that are cut off.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"keelson.io/keelson/test/e2e/cluster"
)

func main() {
	cluster.Init()
	keep := flag.Bool("keep", false, "keep the cluster until this is interrupted")
	remove := flag.Bool("down", false, "remove what a cluster left that was killed")
	dir := flag.String("dir", cluster.DefaultDir(), "where the cluster's files are")
	binary := flag.String("binary", "bin/keelson", "the program that is tested")
	flag.Parse()
	if err := run(*dir, *binary, *keep, *remove); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
}

func run(dir, binary string, keep, remove bool) error {
	if remove {
		return cluster.Down(dir)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	say := func(format string, args ...any) {
		fmt.Printf("%6.1f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	s, err := up(ctx, options{dir: dir, binary: binary, say: say})
	if err != nil {
		return err
	}
	if err := s.install(ctx, "."); err != nil {
		if !keep {
			return errors.Join(err, s.Down())
		}
		say("%v", err)
	}
	if keep {
		say("use it:  export KUBECONFIG=%s;  kubectl is %s", s.Kubeconfig(), s.Program("kubectl"))
		<-ctx.Done()
	}
	return s.Down()
}
