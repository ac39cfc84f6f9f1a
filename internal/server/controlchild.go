package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	rpc "keelson.io/keelson/internal/api/keelsonv1/keelsonv1connect"
	"keelson.io/keelson/internal/meta/etcd"
	"keelson.io/keelson/internal/reconcile"
	"keelson.io/keelson/internal/server/auditlog"
	"keelson.io/keelson/internal/server/fdstore"
	"keelson.io/keelson/internal/spec"
)

// RunControl is the child control: the API, the metrics, and the reconcilers while this node leads.
// It returns when ctx ends or the supervisor is gone.
func RunControl(ctx context.Context, cfg Config, line *fdstore.Line) error {
	log := cfg.Logger("control")
	defer settleLater(log)()
	st, err := cfg.ownState()
	if err != nil {
		return err
	}
	store, err := openStore(cfg, st, log)
	if err != nil {
		return err
	}
	defer store.Close()
	id, err := loadIdentity(cfg.DataDir)
	if err != nil {
		return err
	}
	id.signFor(cfg.Certificates.Valid)
	c := &control{cfg: cfg, st: st, store: store, log: log, dialer: newDialer(id)}
	return c.serve(ctx, id, line)
}

type control struct {
	cfg    Config
	st     State
	store  *etcd.Store
	log    *slog.Logger
	dialer *dialer
	api    *api.Server
	probes probes
	// answered is when this process has last answered a call to hold the metadata. Touched by awaitCall alone.
	answered time.Time
}

// serve opens the API at once, so that what is wrong can be asked, and begins the rest when this
// node is in the metadata.
func (c *control) serve(ctx context.Context, id *identity, line *fdstore.Line) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	st, err := id.server(true)
	if err != nil {
		return err
	}
	audit, err := auditlog.Open(c.cfg.DataDir, auditlog.MaxSize, auditlog.MaxFiles)
	if err != nil {
		return err
	}
	defer audit.Close()
	ac := api.Config{
		Node: c.st.Node, Version: Version, Store: c.store, CA: id.authority, Rotation: rotation{pkiDir(c.cfg.DataDir)}, Dial: c.dialer.dial,
		Endpoints: c.endpoints, External: c.st.External, RenewBefore: c.cfg.Certificates.RenewBefore, Audit: audit, Log: c.log,
		Pages: map[string]http.Handler{
			"/metrics": metricsHandler(func(ctx context.Context) *pb.NodeStatusResponse { return c.api.OwnStatus(ctx) }),
			"/healthz": http.HandlerFunc(c.probes.live), "/readyz": http.HandlerFunc(c.probes.ready),
			recoveryPage: showRecovery(c.cfg.DataDir, c.endpoints),
		},
	}
	if known, err := readRemoved(c.cfg.DataDir); err == nil {
		ac.Removed = known.Removed
	}
	if !c.st.External {
		ac.Members = members{c.store.Client()}
	}
	if c.cfg.HasRole(spec.RoleStorage) {
		ac.Engine = engineClient(c.cfg.EngineSocket())
	}
	keys, err := c.cfg.Encryption.open(c.log)
	if err != nil {
		return err
	}
	defer keys.close()
	if keys.Ring != nil {
		ac.Keys = keys
	}
	c.api = api.New(ac)
	c.probes.status = c.api.OwnStatus
	l, err := net.Listen("tcp", net.JoinHostPort(c.cfg.listenHost(), strconv.Itoa(c.cfg.APIPort)))
	if err != nil {
		return fmt.Errorf("API: %w", err)
	}
	hs := &http.Server{
		Handler: c.api.Handler(), TLSConfig: st, ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout: 2 * time.Minute, ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 2)
	wg.Go(func() { failed <- hs.ServeTLS(l, "", "") })
	defer hs.Close()
	wg.Go(func() {
		if err := c.background(ctx); err != nil {
			failed <- err
		}
	})
	wg.Go(func() { followMembers(ctx, c.cfg, c.st, c.store) })
	wg.Go(func() { c.serveCSI(ctx) })
	if err := sayReady(ctx, line); err != nil {
		return err
	}
	c.log.Info("API serves", "address", l.Addr().String())
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("API: %w", err)
	}
}

// background is what needs the metadata. It returns when ctx ends, or at once if this node has no place in it.
func (c *control) background(ctx context.Context) error {
	if err := register(ctx, c.cfg, c.st, c.store, c.log); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	c.probes.registered.Store(true)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { c.refresh(ctx) })
	wg.Go(func() { c.keepRenewed(ctx) })
	wg.Go(func() { c.followCA(ctx) })
	wg.Go(func() { c.awaitCall(ctx) })
	wg.Go(func() { c.serveKube(ctx) })
	if !c.cfg.HasRole(spec.RoleStorage) {
		// Otherwise the engine holds it.
		wg.Go(func() { _ = c.store.HoldLease(ctx, c.st.Node, func() {}, func() {}) })
	}
	runner := reconcile.New(reconcile.Config{Store: c.store, Log: c.log, Serve: c.api.ServeDetached})
	wg.Go(func() {
		err := c.store.Lead(ctx, c.st.Node, func(ctx context.Context) {
			c.log.Info("this node leads")
			// They end with the reconcilers: only so does another node get to lead when these can't go on here.
			ctx, cancel := context.WithCancel(ctx)
			var led sync.WaitGroup
			defer led.Wait()
			defer cancel()
			led.Go(func() { c.keepMembership(ctx) })
			led.Go(func() { c.keepMembers(ctx) })
			led.Go(func() { c.leadCA(ctx) })
			led.Go(func() { c.leadKube(ctx) })
			runner.Run(ctx)
		})
		if err != nil && ctx.Err() == nil {
			c.log.Error("this node can't lead", "err", err)
		}
	})
	return nil
}

// refreshEvery is how often what a node should know when it starts again is written down, refreshFirst in the first such time: other
// nodes join just then.
const (
	refreshEvery = time.Minute
	refreshFirst = 2 * time.Second
)

// refresh keeps the addresses of the metadata and of other nodes in the state file.
func (c *control) refresh(ctx context.Context) {
	began := time.Now()
	for {
		if err := c.refreshOnce(ctx); err != nil && ctx.Err() == nil {
			c.log.Debug("addresses can't be refreshed", "err", err)
		}
		pause := refreshEvery
		if time.Since(began) < refreshEvery {
			pause = refreshFirst
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (c *control) refreshOnce(ctx context.Context) error {
	nodes, err := c.store.Nodes(ctx)
	if err != nil {
		return err
	}
	st, err := ReadState(c.cfg.DataDir)
	if err != nil {
		return err
	}
	var peers []string
	for _, n := range nodes {
		if n.Value.Name != st.Node {
			peers = append(peers, n.Value.APIAddr)
		}
	}
	cluster, err := c.store.Cluster(ctx)
	if err != nil {
		return err
	}
	if err := keepRemoved(c.cfg.DataDir, cluster.Value); err != nil {
		return err
	}
	endpoints, number := c.endpoints(), max(st.Recovery, cluster.Value.Recovery.Number)
	if slices.Equal(peers, st.Peers) && slices.Equal(endpoints, st.Endpoints) && st.Recovery == number {
		return nil
	}
	st.Peers, st.Endpoints, st.Recovery = peers, endpoints, number
	return st.write(c.cfg.DataDir)
}

// endpoints are the client URLs of the metadata, as far as this process knows.
func (c *control) endpoints() []string { return c.store.Client().Endpoints() }

// engineClient calls this node's engine over its socket.
func engineClient(path string) api.Engine {
	h := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path)
		},
		IdleConnTimeout: 30 * time.Second,
	}}
	return rpc.NewEngineServiceClient(h, "http://engine")
}
