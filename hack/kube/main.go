// Command kube builds the programs of the test cluster into the user's cache directory: those that are named, or all that it needs and
// that aren't there yet. csi-snapshotter and snapshot-controller are built by name only. `make e2e` does the same; this is for making them beforehand.
//
//	go run ./hack/kube [PROGRAM ...]
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"keelson.io/keelson/hack/kube/binaries"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "kube:", err)
		os.Exit(1)
	}
}

func run(names []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cache, err := binaries.CacheDir()
	if err != nil {
		return err
	}
	return binaries.Build(ctx, cache, names, func(s string) { fmt.Println(s) })
}
