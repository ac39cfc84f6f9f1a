package csi

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// announceMost bounds how long a driver that kubelet refused waits until it is announced again.
const announceMost = time.Minute

// registrar tells kubelet where the driver is.
type registrar struct {
	registration.UnimplementedRegistrationServer
	endpoint Endpoint
	log      *slog.Logger
	answers  chan bool // kubelet's, as far as somebody takes them
}

// announce serves the driver's registration socket. Kubelet looks at a socket when it appears, and once: a driver that it refused, because its
// API server was away perhaps, would stay unknown to it, and pods of this node with volumes could neither start nor end. So the
// socket appears again a while later, until kubelet takes it.
func (s *Server) announce(ctx context.Context, e Endpoint, log *slog.Logger) error {
	r := &registrar{endpoint: e, log: log, answers: make(chan bool, 1)}
	g, err := s.serveRegistrar(ctx, r)
	if err != nil {
		return err
	}
	s.wg.Go(func() {
		wait := s.cfg.AnnounceAgain
		for {
			select {
			case <-ctx.Done():
				return
			case taken := <-r.answers:
				if taken {
					wait = s.cfg.AnnounceAgain
					continue
				}
			}
			for again := false; !again; wait = min(2*wait, announceMost) {
				select {
				case <-ctx.Done():
					return
				case <-time.After(wait):
				}
				s.withdraw(g)
				if g, err = s.serveRegistrar(ctx, r); err != nil {
					log.Error("the CSI driver can't be announced to kubelet; it is tried again", "err", err)
				}
				again = err == nil
			}
		}
	})
	return nil
}

func (s *Server) serveRegistrar(ctx context.Context, r *registrar) (*grpc.Server, error) {
	g := grpc.NewServer()
	registration.RegisterRegistrationServer(g, r)
	return g, s.serve(ctx, g, r.endpoint.registrationSocket())
}

// withdraw ends a server, and its socket.
func (s *Server) withdraw(g *grpc.Server) {
	g.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.servers = slices.DeleteFunc(s.servers, func(other *grpc.Server) bool { return other == g })
}

// GetInfo is asked by kubelet when it finds the socket.
func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: r.endpoint.Driver, Endpoint: r.endpoint.Socket, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus is what kubelet says then.
func (r *registrar) NotifyRegistrationStatus(_ context.Context, st *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if st.PluginRegistered {
		r.log.Info("kubelet has registered the CSI driver")
	} else {
		r.log.Error("kubelet refuses the CSI driver; it is announced again in a while", "err", st.Error)
	}
	select {
	case <-r.answers: // the newest counts
	default:
	}
	select {
	case r.answers <- st.PluginRegistered:
	default:
	}
	return &registration.RegistrationStatusResponse{}, nil
}
