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
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/server/fdstore"
)

// etcdQuota bounds the metadata, in bytes. 10,000 volumes take some 20 MB.
const etcdQuota = 1 << 30

// RunEtcd is the child etcd: a member of the metadata. It returns when ctx ends or the supervisor is gone.
func RunEtcd(ctx context.Context, cfg Config, line *fdstore.Line) error {
	log := cfg.Logger("etcd")
	st, err := cfg.ownState()
	if err != nil {
		return err
	}
	ec, err := cfg.etcdConfig(st, log)
	if err != nil {
		return err
	}
	if st.Founder {
		ec.InitialCluster = st.Node + "=" + cfg.etcdPeerURL()
	} else if _, err := os.Stat(filepath.Join(ec.Dir, "member")); err != nil {
		// The cluster has its metadata elsewhere: the other processes needn't wait until this node is let in.
		if err := sayReady(ctx, line); err != nil {
			return err
		}
		// Asked for each time until the member has data of its own: the others may have changed.
		if ec.InitialCluster, err = joinMembers(ctx, cfg, st, log); err != nil {
			return err
		}
		ec.ClusterState = embed.ClusterStateFlagExisting
	}
	e, err := embed.StartEtcd(ec)
	if err != nil {
		return fmt.Errorf("metadata member: %w", err)
	}
	defer e.Close()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	select {
	case <-e.Server.ReadyNotify():
		log.Info("metadata member serves", "url", cfg.etcdClientURL())
		if err := sayReady(ctx, line); err != nil {
			return err
		}
		if !st.Founder && !st.Promoted {
			// Not before: a member that is promoted while it makes itself known loses that message, and seconds.
			wg.Go(func() { promote(ctx, cfg, st, log) })
		}
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return fmt.Errorf("metadata member: %w", err)
	case <-e.Server.StopNotify():
		return errors.New("metadata member stopped before it served")
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return fmt.Errorf("metadata member: %w", err)
	case <-e.Server.StopNotify():
		return errors.New("metadata member stopped; was the node removed from the cluster?")
	}
}

func (c *Config) etcdConfig(st State, log *slog.Logger) (*embed.Config, error) {
	ec := embed.NewConfig()
	ec.Name = st.Node
	ec.Dir = filepath.Join(c.DataDir, "etcd")
	ec.InitialClusterToken = st.ClusterID
	ec.TickMs, ec.ElectionMs = 100, 1000
	ec.QuotaBackendBytes = etcdQuota
	ec.AutoCompactionMode, ec.AutoCompactionRetention = "periodic", "5m"
	ec.SnapshotCount = 5000
	ec.MaxSnapFiles, ec.MaxWalFiles = 2, 2
	ec.EnableGRPCGateway = false
	ec.LogLevel = "warn"
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(slogCore{log: log, LevelEnabler: zapcore.WarnLevel}))
	tlsInfo := transport.TLSInfo{
		CertFile: certPath(c.DataDir), KeyFile: keyPath(c.DataDir), TrustedCAFile: caPath(c.DataDir),
		ClientCertAuth: true, SkipClientSANVerify: true,
	}
	ec.ClientTLSInfo, ec.PeerTLSInfo = tlsInfo, tlsInfo
	var err error
	for _, u := range []struct {
		listen, advertise *[]url.URL
		port              int
	}{
		{&ec.ListenClientUrls, &ec.AdvertiseClientUrls, c.EtcdClientPort},
		{&ec.ListenPeerUrls, &ec.AdvertisePeerUrls, c.EtcdPeerPort},
	} {
		port := strconv.Itoa(u.port)
		*u.listen = []url.URL{{Scheme: "https", Host: net.JoinHostPort(c.listenHost(), port)}}
		*u.advertise = []url.URL{{Scheme: "https", Host: net.JoinHostPort(c.Address, port)}}
	}
	if err = os.MkdirAll(ec.Dir, 0o700); err != nil {
		return nil, err
	}
	return ec, nil
}

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

// askPeers calls fn with one peer after the other until it succeeds or ctx ends, and logs why it doesn't when
// that changes.
func askPeers(ctx context.Context, cfg Config, st State, log *slog.Logger, what string, fn func(context.Context, *api.Client) error) error {
	said := ""
	for {
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
			} else if err.Error() != said {
				said = err.Error()
				log.Info(what+" has to wait", "peer", peer, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
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
	"failed to get version":                         true,
	"setting up serving from embedded etcd failed.": true,
	"stopping secure grpc server due to error":      true,
	"stopped secure grpc server due to error":       true,
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
