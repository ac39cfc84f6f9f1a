// Package api is the API of a node: its handlers, the client for it, and the words in which
// errors travel. The messages and services are in proto/, generated code in keelsonv1/.
//
// Every node answers every call from the metadata; what has to happen on a certain node is
// forwarded to that node's API with this node's certificate.
//
// Invariants: who may call what is in the table of access.go, and nothing else answers; every call
// that changes something leaves its entries in the audit log; no call changes anything before all of its arguments were checked; every
// change of a noun compares the revision that it was decided on.
//
// The package owns no goroutine beyond those that a call waits for.
package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	rpc "keelson.io/keelson/internal/api/keelsonv1/keelsonv1connect"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// Engine is this node's engine.
type Engine interface {
	Attach(ctx context.Context, r *pb.EngineAttachRequest) (*pb.EngineAttachResponse, error)
	Detach(ctx context.Context, r *pb.EngineDetachRequest) (*pb.EngineDetachResponse, error)
	AddPool(ctx context.Context, r *pb.AddPoolRequest) (*pb.Pool, error)
	ExpandPool(ctx context.Context, r *pb.ExpandPoolRequest) (*pb.Pool, error)
	ClosePool(ctx context.Context, r *pb.ClosePoolRequest) (*pb.ClosePoolResponse, error)
	Status(ctx context.Context, r *pb.EngineStatusRequest) (*pb.NodeStatusResponse, error)
}

// Members is the membership of the metadata store.
type Members interface {
	List(ctx context.Context) ([]*pb.MetadataMember, error)
	// Add makes name a learner, or finds it. It returns "name=url,…" of all members.
	Add(ctx context.Context, name, peerURL string) (id uint64, initialCluster string, err error)
	// Promote makes the learner name a voter; ErrNotCaughtUp while it is behind.
	Promote(ctx context.Context, name string) error
	Remove(ctx context.Context, name string) error
}

// ErrNotCaughtUp: the learner can't be promoted yet; ask again.
var ErrNotCaughtUp = errors.New("the new metadata member has not caught up yet")

// errNoCAKey: this node can't sign, because it has no metadata role.
var errNoCAKey = errors.New("this node doesn't have the key of the cluster's CA")

// Config is what the API needs.
type Config struct {
	Node    string
	Version string
	Store   meta.Store
	Engine  Engine // nil on a node without the storage role
	Members Members
	// CA is the cluster's CA as it is now, without its key on a node without the metadata role.
	CA func() (*pki.CA, error)
	// Rotation changes the CA; nil where it can't be.
	Rotation Rotation
	// Dial returns the client for another node's API.
	Dial func(n spec.Node) *Client
	// Endpoints returns the client URLs of the metadata.
	Endpoints func() []string
	External  bool // the metadata is not run by Keelson
	// Pages are further HTTP handlers by their paths, such as /metrics, for whoever may see the nouns.
	Pages map[string]http.Handler
	// Removed are the nodes that were removed, as far as is known before the metadata can be asked.
	Removed map[string]time.Time
	// RenewBefore is how long before its end a node replaces its certificate; 0 is pki.RenewBefore.
	RenewBefore time.Duration
	Keys        Keys  // nil if this node has no wrapping keys
	Audit       Audit // nil keeps entries in the log alone
	Log         *slog.Logger
	Now         func() time.Time
}

// Server answers the calls.
type Server struct {
	cfg       Config
	strangers strangers
	removed   removed
	rotating  sync.Mutex // held while a change of the CA is planned here
}

// New returns a server.
func New(cfg Config) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.RenewBefore == 0 {
		cfg.RenewBefore = pki.RenewBefore
	}
	return &Server{cfg: cfg, removed: removed{cluster: spec.Cluster{Removed: cfg.Removed}}}
}

// Handler returns the HTTP handler of all services and pages. It needs to be served over TLS.
func (s *Server) Handler() http.Handler { return s.authenticated(s.services()) }

// maxRequest bounds the size of a request, in bytes.
const maxRequest = 1 << 20

// services are the handlers of all services and pages, which look at the caller in the context.
func (s *Server) services() http.Handler {
	mux := http.NewServeMux()
	opts := []connect.HandlerOption{connect.WithInterceptors(s.errors(), authorizer{s}), connect.WithReadMaxBytes(maxRequest)}
	handle := func(path string, h http.Handler) { mux.Handle(path, h) }
	handle(rpc.NewClusterServiceHandler(clusterService{s}, opts...))
	handle(rpc.NewNodeServiceHandler(nodeService{s}, opts...))
	handle(rpc.NewPoolServiceHandler(poolService{s}, opts...))
	handle(rpc.NewVolumeServiceHandler(volumeService{s}, opts...))
	handle(rpc.NewSnapshotServiceHandler(snapshotService{s}, opts...))
	handle(rpc.NewUpkeepServiceHandler(upkeepService{s}, opts...))
	handle(rpc.NewKeyServiceHandler(keyService{s}, opts...))
	handle(rpc.NewCAServiceHandler(caService{s}, opts...))
	handle(rpc.NewAccessServiceHandler(accessService{s}, opts...))
	handle(rpc.NewJoinServiceHandler(joinService{s}, opts...))
	for path, h := range s.cfg.Pages {
		handle(path, s.page(viewer, h))
	}
	mux.Handle("/", s.page(viewer, http.NotFoundHandler()))
	return mux
}

// errors is the interceptor that turns what handlers return into connect's errors, and
// logs what nobody expected.
func (s *Server) errors() connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			resp, err := next(ctx, r)
			if err == nil {
				return resp, nil
			}
			err = ToConnect(err)
			if c := connect.CodeOf(err); c == connect.CodeUnknown || c == connect.CodeInternal {
				s.cfg.Log.Error("call failed", "call", r.Spec().Procedure, "err", err)
			}
			return nil, err
		}
	}
}
