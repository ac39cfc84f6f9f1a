package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"keelson.io/keelson/internal/csi/dialect"
)

// DefaultMaxVolumes is how many volumes a node takes unless told otherwise.
const DefaultMaxVolumes = 256

// Config says what the driver serves and where.
type Config struct {
	Node    string // the name of this node
	Version string
	Keelson Keelson
	// Endpoints are driver names with their sockets; each speaks the dialect of its name.
	Endpoints []Endpoint
	// MaxVolumes is how many volumes can be attached to this node; 0 is DefaultMaxVolumes.
	MaxVolumes int64
	// AttachWait is how long staging waits for the end of the lease of a node that can't be reached; 0 is 45 s.
	AttachWait time.Duration
	// CollectEvery is how often volumes are looked for whose pods are gone; 0 is every ten minutes.
	CollectEvery time.Duration
	// AnnounceAgain is how long after kubelet refused the driver it is told of it again, and twice as long each time after that, up to a
	// minute; 0 is 5 s.
	AnnounceAgain time.Duration
	// TrimLook is how often volumes are looked for that are due to be trimmed; 0 is every ten minutes.
	TrimLook time.Duration
	Log      *slog.Logger
}

// Endpoint is a driver name and where it is served.
type Endpoint struct {
	Driver string
	Socket string // absolute path
	// RegistrationDir is kubelet's directory for plugins; "" doesn't register.
	RegistrationDir string
}

func (e Endpoint) registrationSocket() string {
	if e.RegistrationDir == "" {
		return ""
	}
	return filepath.Join(e.RegistrationDir, e.Driver+"-reg.sock")
}

// Validate checks what a person may have got wrong.
func (c *Config) Validate() error {
	seen := map[string]bool{}
	for _, e := range c.Endpoints {
		if e.Driver == "" || len(e.Driver) > 63 {
			return fmt.Errorf("CSI driver name %q: it must have 1 to 63 characters", e.Driver)
		}
		for _, p := range []string{e.Socket, e.registrationSocket()} {
			if p == "" && p != e.Socket {
				continue
			}
			// The kernel takes 107.
			if !filepath.IsAbs(p) || len(p) > 107 {
				return fmt.Errorf("CSI driver %s: socket %q: it must be an absolute path of at most 107 characters", e.Driver, p)
			}
			if seen[p] {
				return fmt.Errorf("CSI driver %s: socket %s is that of another driver", e.Driver, p)
			}
			seen[p] = true
		}
	}
	return nil
}

// Server serves the driver's sockets.
type Server struct {
	cfg   Config
	locks *locks
	ready atomic.Bool // this node was seen in the metadata
	stop  func()      // ends the collector, the trimmer, and who waits to announce the driver again

	mu      sync.Mutex
	servers []*grpc.Server
	closed  bool
	wg      sync.WaitGroup
}

// New returns a server that isn't open yet.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxVolumes == 0 {
		cfg.MaxVolumes = DefaultMaxVolumes
	}
	if cfg.AttachWait == 0 {
		cfg.AttachWait = 45 * time.Second
	}
	if cfg.CollectEvery == 0 {
		cfg.CollectEvery = collectEvery
	}
	if cfg.AnnounceAgain == 0 {
		cfg.AnnounceAgain = 5 * time.Second
	}
	if cfg.TrimLook == 0 {
		cfg.TrimLook = trimLook
	}
	return &Server{cfg: cfg, locks: newLocks(), stop: func() {}}
}

// Open listens on all sockets. On an error none is left.
func (s *Server) Open(ctx context.Context) error {
	if err := s.cfg.Validate(); err != nil {
		return err
	}
	ctx, s.stop = context.WithCancel(ctx)
	for _, e := range s.cfg.Endpoints {
		if err := s.open(ctx, e); err != nil {
			return errors.Join(err, s.Close())
		}
	}
	if len(s.cfg.Endpoints) > 0 {
		e := s.cfg.Endpoints[0]
		n := newNode(&driver{cfg: s.cfg, endpoint: e, log: s.cfg.Log})
		s.wg.Go(func() { s.collect(ctx, n) })
		s.wg.Go(func() { s.trim(ctx) })
	}
	return nil
}

// closeWait is how long Close waits for calls: one that hangs on a device in the kernel can't be ended.
const closeWait = 20 * time.Second

// Close takes no new calls, and waits for those in flight, at most closeWait: a mount that has begun is finished.
func (s *Server) Close() error {
	s.stop()
	s.mu.Lock()
	s.closed = true
	servers := s.servers
	s.servers = nil
	s.mu.Unlock()
	late := time.AfterFunc(closeWait, func() {
		s.cfg.Log.Error("CSI calls are still under way; they are left behind")
		for _, g := range servers {
			g.Stop()
		}
	})
	defer late.Stop()
	for _, g := range servers {
		g.GracefulStop()
	}
	s.wg.Wait()
	return nil
}

// open serves a driver, and then tells kubelet of it.
func (s *Server) open(ctx context.Context, e Endpoint) error {
	log := s.cfg.Log.With("driver", e.Driver)
	d := &driver{cfg: s.cfg, endpoint: e, log: log}
	g := grpc.NewServer(grpc.ChainUnaryInterceptor(answered(log), s.locks.intercept))
	pb.RegisterIdentityServer(g, &identity{driver: d, ready: &s.ready})
	pb.RegisterControllerServer(g, &controller{driver: d, dialect: dialect.ForDriver(e.Driver)})
	pb.RegisterGroupControllerServer(g, &groupController{driver: d})
	pb.RegisterNodeServer(g, newNode(d))
	if err := s.serve(ctx, g, e.Socket); err != nil {
		return fmt.Errorf("CSI driver %s: %w", e.Driver, err)
	}
	log.Info("CSI driver serves", "socket", e.Socket)
	if e.RegistrationDir == "" {
		return nil
	}
	if err := s.announce(ctx, e, log); err != nil {
		return fmt.Errorf("CSI driver %s: registration: %w", e.Driver, err)
	}
	return nil
}

func (s *Server) serve(ctx context.Context, g *grpc.Server, path string) error {
	l, err := listen(ctx, path)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.Join(errors.New("it is closed"), l.Close())
	}
	s.servers = append(s.servers, g)
	s.wg.Go(func() {
		if err := g.Serve(l); err != nil {
			s.cfg.Log.Error("CSI socket fails", "socket", path, "err", err)
		}
	})
	return nil
}

// listen opens a socket. The file of one that nobody serves any more is replaced.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	if c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s is served by another process; give this one another path, or end that one", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
