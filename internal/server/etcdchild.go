package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/server/fdstore"
)

// etcdQuota bounds the metadata, in bytes. 10,000 volumes take some 20 MB.
const etcdQuota = 1 << 30

// RunEtcd is the child etcd: a member of the metadata. It returns when ctx ends or the supervisor is gone.
func RunEtcd(ctx context.Context, cfg Config, line *fdstore.Line) error {
	log := cfg.Logger("etcd")
	defer settleLater(log)()
	st, err := cfg.ownState()
	if err != nil {
		return err
	}
	unix.Umask(0o077) // etcd makes its sockets for everybody
	if err := os.Remove(peersCA(cfg)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // nothing runs that trusts those
	}
	if st, err = recoverIfAsked(ctx, cfg, st, log); err != nil {
		return err
	}
	if st, err = leavePast(ctx, cfg, st, log); err != nil {
		return err
	}
	ec, err := cfg.etcdConfig(st, log)
	if err != nil {
		return err
	}
	joins := false
	switch has := hasMember(ec.Dir); {
	case has || st.Founder && !st.Served:
		ec.InitialCluster = st.Node + "=" + cfg.etcdPeerURL()
	default:
		// The cluster has its metadata elsewhere: the other processes needn't wait until this node is let in.
		if err := sayReady(ctx, line); err != nil {
			return err
		}
		// Asked for each time until the member has data of its own: the others may have changed.
		if ec.InitialCluster, err = joinMembers(ctx, cfg, st, log); err != nil {
			return err
		}
		ec.ClusterState = embed.ClusterStateFlagExisting
		joins = true
	}
	if err := takePeersCA(cfg); err != nil {
		return err
	}
	e, err := embed.StartEtcd(ec)
	if err != nil {
		err = fmt.Errorf("metadata member: %w", err)
		if !joins {
			err = errors.Join(err, leaveReplaced(ctx, cfg)) // one that was removed may stop before it has started
		}
		return err
	}
	defer closeEtcd(e)
	gates, err := openGates(ctx, cfg, e.Server, log)
	if err != nil {
		return err
	}
	defer gates.close()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	past := make(chan error, 2)
	wg.Go(func() { past <- watchForRecovery(ctx, cfg, e.Server, st, log) })
	wg.Go(func() { past <- awaitTurn(ctx, cfg, e.Server.KV()) })
	if err := serveEtcd(ctx, cfg, e, past, func() error {
		log.Info("metadata member serves", "url", cfg.etcdClientURL())
		if err := errors.Join(noteServed(cfg.DataDir), noteOwnRecovery(ec.Dir, e.Server)); err != nil {
			return err
		}
		if err := sayReady(ctx, line); err != nil {
			return err
		}
		if joins || !st.Founder && !st.Promoted {
			// Not before: a member that is promoted while it makes itself known loses that message, and seconds.
			wg.Go(func() { promote(ctx, cfg, st, log) })
		}
		return nil
	}); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// serveEtcd waits until the member serves, calls ready, and waits until it ends, or ctx does.
func serveEtcd(ctx context.Context, cfg Config, e *embed.Etcd, past <-chan error, ready func() error) error {
	begun := e.Server.ReadyNotify()
	for {
		select {
		case <-begun:
			if err := ready(); err != nil {
				return err
			}
			begun = nil
		case <-ctx.Done():
			return nil
		case err := <-past:
			return err
		case err := <-e.Err():
			return errors.Join(fmt.Errorf("metadata member: %w", err), leaveReplaced(ctx, cfg))
		case <-e.Server.StopNotify():
			if ctx.Err() != nil {
				return nil
			}
			return errors.Join(errors.New("metadata member stopped"), leaveReplaced(ctx, cfg))
		}
	}
}

// closeEtcd ends a member. One that has no quorum would wait for it before it lets itself be closed.
func closeEtcd(e *embed.Etcd) {
	select {
	case <-e.Server.ReadyNotify():
	default:
		e.Server.Stop()
	}
	e.Close()
}

// hasMember reports whether etcd's directory has a member's data.
func hasMember(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "member", "wal"))
	return err == nil
}

// noteServed writes down that this node's member has served: if its data is gone later, it isn't made anew, but asked for.
func noteServed(dataDir string) error {
	st, err := ReadState(dataDir)
	if err != nil || st.Served {
		return err
	}
	st.Served = true
	return st.write(dataDir)
}

func (c *Config) etcdConfig(st State, log *slog.Logger) (*embed.Config, error) {
	ec := embed.NewConfig()
	ec.Name = st.Node
	ec.Dir = etcdDir(c.DataDir)
	ec.InitialClusterToken = st.ClusterID
	// The leader's heartbeats are most of what an idle member does: as seldom as etcd allows for elections after a second.
	ec.TickMs, ec.ElectionMs = 200, 1000
	// What was acknowledged is in the log; this is how often it is looked whether the database behind it has something to write.
	ec.BackendBatchInterval = 200 * time.Millisecond
	ec.QuotaBackendBytes = etcdQuota
	ec.AutoCompactionMode, ec.AutoCompactionRetention = "periodic", "5m"
	ec.SnapshotCount = 5000
	ec.MaxSnapFiles, ec.MaxWalFiles = 2, 2
	ec.EnableGRPCGateway = false
	ec.LogLevel = "warn"
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(etcdLogger(log, zapcore.WarnLevel))
	// For connections to other members. Those from outside come through the gates.
	ec.PeerTLSInfo = transport.TLSInfo{CertFile: certPath(c.DataDir), KeyFile: keyPath(c.DataDir), TrustedCAFile: peersCA(*c)}
	ec.ListenClientUrls = []url.URL{{Scheme: "unix", Host: c.etcdSocket("client")}}
	ec.ListenPeerUrls = []url.URL{{Scheme: "unix", Host: c.etcdSocket("peer")}}
	ec.AdvertiseClientUrls = []url.URL{{Scheme: "https", Host: net.JoinHostPort(c.Address, strconv.Itoa(c.EtcdClientPort))}}
	ec.AdvertisePeerUrls = []url.URL{{Scheme: "https", Host: net.JoinHostPort(c.Address, strconv.Itoa(c.EtcdPeerPort))}}
	return ec, errors.Join(os.MkdirAll(ec.Dir, 0o700), os.MkdirAll(c.RunDir, 0o700))
}

// etcdSocket is where etcd listens, behind the gate of that name.
func (c *Config) etcdSocket(name string) string { return filepath.Join(c.RunDir, "etcd-"+name+".sock") }

// listenHost is what to listen on: the address, or everything if that is a name.
func (c *Config) listenHost() string {
	if net.ParseIP(c.Address) == nil {
		return "0.0.0.0"
	}
	return c.Address
}

// joinMembers has the cluster take this node as a learner, and returns all members. It asks one peer after
// the other until one agrees: members are added one at a time.
func joinMembers(ctx context.Context, cfg Config, st State, log *slog.Logger) (string, error) {
	var initial string
	err := askPeers(ctx, cfg, st, log, "adding this node to the metadata", func(ctx context.Context, c *api.Client) error {
		r, err := c.Cluster.AddMember(ctx, &pb.AddMemberRequest{Name: st.Node, PeerUrl: cfg.etcdPeerURL()})
		initial = r.GetInitialCluster()
		return err
	})
	return initial, err
}

// promote makes this member a voting one as soon as it has caught up.
func promote(ctx context.Context, cfg Config, st State, log *slog.Logger) {
	err := askPeers(ctx, cfg, st, log, "making this metadata member a voting one", func(ctx context.Context, c *api.Client) error {
		_, err := c.Cluster.PromoteMember(ctx, &pb.PromoteMemberRequest{Name: st.Node})
		return err
	})
	if err != nil {
		return // ctx ended
	}
	log.Info("metadata member votes")
	if st, err = ReadState(cfg.DataDir); err == nil {
		st.Promoted = true
		err = st.write(cfg.DataDir)
	}
	if err != nil {
		log.Warn("that this member votes can't be written down; it is asked for again at the next start", "err", err)
	}
}

// How long askPeers waits between rounds: longer from some rounds on, as a node that rests asks until it is needed.
const (
	askAgain    = 500 * time.Millisecond
	askSeldom   = 5 * time.Second
	askPatience = 40 // rounds
)

// askPeers calls fn with one peer after the other until it succeeds or ctx ends, and logs why a peer doesn't agree when
// that changes.
func askPeers(ctx context.Context, cfg Config, st State, log *slog.Logger, what string, fn func(context.Context, *api.Client) error) error {
	said := map[string]string{}
	for round := 0; ; round++ {
		for _, peer := range st.Peers {
			c, err := peerClient(cfg.DataDir, peer)
			if err == nil {
				cctx, cancel := context.WithTimeout(ctx, 10*time.Second)
				err = fn(cctx, c)
				cancel()
			}
			if err == nil {
				return nil
			}
			if connect.CodeOf(err) == connect.CodeFailedPrecondition {
				log.Error(what+" was refused", "peer", peer, "err", err)
			} else if err.Error() != said[peer] {
				said[peer] = err.Error()
				log.Info(what+" has to wait", "peer", peer, "err", err)
			}
		}
		pause := askAgain
		if round >= askPatience {
			pause = askSeldom
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// slogCore is a zap core that writes to a slog.Logger.
type slogCore struct {
	zapcore.LevelEnabler
	log *slog.Logger
}

func (c slogCore) With(fs []zapcore.Field) zapcore.Core {
	return slogCore{c.LevelEnabler, c.log.With(attrs(fs)...)}
}

func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// noise is what etcd warns of though nothing is wrong: at every start, or about a connection that a probe of a dead
// member couldn't make, which is told by what the API says of the members.
var noise = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true,
	"simple token is not cryptographically signed":                                         true,
	"Failed to detect schema version":                                                      true,
	"failed to update storage version":                                                     true,
	"Validation on configuration change failed":                                            true,
	"failed to reach the peer URL":                                                         true,
	"rejecting member add request; local member has not been connected to majority peers, reconfigure breaks active quorum": true,
	"failed to get version":                                   true,
	"prober detected unhealthy status":                        true,
	"rejected stream from remote peer because it was removed": true,
	"setting up serving from embedded etcd failed.":           true,
	"stopping secure grpc server due to error":                true,
	"stopped secure grpc server due to error":                 true,
}

func (c slogCore) Write(e zapcore.Entry, fs []zapcore.Field) error {
	lv := slog.LevelWarn
	switch {
	case noise[e.Message]:
		lv = slog.LevelDebug
	case e.Level > zapcore.WarnLevel:
		lv = slog.LevelError
	case e.Level < zapcore.WarnLevel:
		lv = slog.LevelInfo
	}
	c.log.Log(context.Background(), lv, e.Message, attrs(fs)...)
	return nil
}

func (slogCore) Sync() error { return nil }

func attrs(fs []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	out := make([]any, 0, len(fs))
	for _, f := range fs {
		f.AddTo(enc)
		if v, ok := enc.Fields[f.Key]; ok {
			out = append(out, slog.Any(f.Key, v))
		}
	}
	return out
}
