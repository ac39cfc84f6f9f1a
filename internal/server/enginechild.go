package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/ring"
	rpc "keelson.io/keelson/internal/api/keelsonv1/keelsonv1connect"
	"keelson.io/keelson/internal/engine"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/pool"
	"keelson.io/keelson/internal/server/fdstore"
)

// RunEngine is the child engine: the data plane, and its control socket. It returns when ctx
// ends or the supervisor is gone.
func RunEngine(ctx context.Context, cfg Config, line *fdstore.Line) error {
	log := cfg.Logger("engine")
	st, err := cfg.ownState()
	if err != nil {
		return err
	}
	ring.ProtectMemory(log)
	store, err := openStore(cfg, st, log)
	if err != nil {
		return err
	}
	defer store.Close()
	follow, unfollow := context.WithCancel(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer unfollow()
	following.Go(func() { followMembers(follow, cfg, st, store) })
	if err := register(ctx, cfg, st, store, log); err != nil {
		return err
	}
	var newcomers doorkeeper
	if newcomers.known, err = readRemoved(cfg.DataDir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	loops, closeLoops, err := openLoops(cfg, log, newcomers.refused)
	if err != nil {
		return err
	}
	unanswered := false
	defer func() {
		if !unanswered {
			closeLoops()
		}
	}()
	fronts, kept, err := openFrontends(ctx, cfg, line, store, log)
	if err != nil {
		return err
	}
	ec := engine.Config{
		Node: st.Node, Cluster: st.ClusterID, Store: store, Log: log, Loops: loops, Frontends: fronts, KeptKeys: kept,
	}
	if line != nil {
		ec.Keeper = line
	}
	keys, err := cfg.Encryption.open(log)
	if err != nil {
		return err
	}
	defer keys.close()
	if keys.Ring != nil {
		ec.Keys = keys
	}
	pools := make(poolsLater, 1)
	ec.Complete = pools.complete
	e, err := engine.New(ec)
	if err != nil {
		return err
	}
	newcomers.asks(e.Refuses)
	if err := e.Open(ctx); err != nil {
		return errors.Join(err, e.Close())
	}
	s := &engineService{
		engine: e, store: store, log: log, node: st.Node, poolOpened: make(chan struct{}, 1),
		host: pool.Host{Dir: filepath.Join(cfg.DataDir, "pools"), Cluster: st.ClusterID, Node: st.Node, Log: log},
	}
	if !st.External {
		s.saves = store.Client()
	}
	pools <- s
	// Everything is closed before the lease is given up: only then is another node to take over.
	giveUp := s.holdLease(ctx)
	defer giveUp()
	err = s.run(ctx, cfg, line)
	if cerr := e.Close(); errors.Is(cerr, engine.ErrUnanswered) {
		// The pools and loops stay as they are: requests on devices wait for the next engine.
		unanswered = true
		return errors.Join(err, cerr)
	} else if cerr != nil {
		err = errors.Join(err, cerr)
	}
	return errors.Join(err, s.closePools())
}

// holdLease holds this node's lease until what it returns is called, also after ctx has ended.
func (s *engineService) holdLease(parent context.Context) (giveUp func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	var wg sync.WaitGroup
	wg.Go(func() {
		err := s.store.HoldLease(ctx, s.node,
			func() { s.log.Info("lease held") },
			func() { s.log.Warn("lease lost: this node's volumes can be attached elsewhere") })
		if err != nil && ctx.Err() == nil {
			s.log.Error("the lease can't be held", "err", err)
		}
	})
	return func() {
		if why := context.Cause(parent); errors.Is(why, errSuccessor) || errors.Is(why, errOrphaned) {
			return // the next engine takes it over; nobody is to think that the node is gone
		}
		cancel()
		wg.Wait()
	}
}

// run opens the pools and serves the control socket until ctx ends.
func (s *engineService) run(ctx context.Context, cfg Config, line *fdstore.Line) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { s.openPools(ctx) })
	if s.saves != nil {
		wg.Go(func() { s.keepMetadata(ctx, s.saves) })
	}
	wg.Go(func() { s.makePools(ctx, cfg) })
	path := cfg.EngineSocket()
	l, err := listenSocket(path)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(rpc.NewEngineServiceHandler(s))
	hs := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	wg.Go(func() { failed <- hs.Serve(l) })
	defer hs.Close()
	if err := sayReady(ctx, line); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("control socket %s: %w", path, err)
	}
}

// listenSocket listens on a unix socket for root alone, and replaces one that a dead process left.
func listenSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	return net.Listen("unix", path)
}

// openLoops starts an event loop for each shard, and the listener for other engines.
func openLoops(cfg Config, log *slog.Logger, refused func(node string, issued time.Time) bool) (_ []aio.Loop, closeAll func(), err error) {
	rc := ring.Config{Node: cfg.Node, PeerName: pki.PeerName, Spin: cfg.Engine.Spin, Log: log}
	if !cfg.Engine.Encryption {
		log.Warn("engine.encryption is off: whoever reaches the engine's port can read and write every volume", "port", cfg.EnginePort)
	} else {
		id, err := loadIdentity(cfg.DataDir)
		if err != nil {
			return nil, nil, err
		}
		if rc.TLS, err = id.engineTLS(refused); err != nil {
			return nil, nil, err
		}
	}
	var closers []func() error
	closeAll = func() {
		for _, c := range slices.Backward(closers) {
			if err := c(); err != nil {
				log.Warn("event loops", "err", err)
			}
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	loops := make([]aio.Loop, 0, cfg.Engine.Shards)
	rings := make([]*ring.Loop, 0, cfg.Engine.Shards)
	for i := range cfg.Engine.Shards {
		r, err := ring.New(rc)
		if err != nil {
			return nil, nil, fmt.Errorf("event loop %d: %w", i, err)
		}
		closers = append(closers, r.Close)
		r.Start()
		rings, loops = append(rings, r), append(loops, r)
	}
	l, err := ring.Listen(ring.ListenConfig{Addr: net.JoinHostPort(cfg.listenHost(), strconv.Itoa(cfg.EnginePort)), Loops: rings})
	if err != nil {
		return nil, nil, err
	}
	closers = append(closers, l.Close)
	return loops, closeAll, nil
}
