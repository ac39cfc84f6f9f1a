package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	rpc "keelson.io/keelson/internal/api/keelsonv1/keelsonv1connect"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// access is who may call a method, and whether it changes anything: then it is in the audit log.
type access struct {
	who     level
	changes bool
}

// level is what a caller must be. Each may do all that the ones before it may.
type level int

const (
	nobody level = iota // what a method has that isn't in the table
	anybody
	viewer
	operator
	admin
	node // only by a node's certificate
)

// methods says of each method of the API who may call it. One that isn't here is refused to everybody.
var methods = map[string]access{
	rpc.ClusterServiceStatusProcedure:           {viewer, false},
	rpc.ClusterServiceGetSettingsProcedure:      {viewer, false},
	rpc.ClusterServiceSetSettingsProcedure:      {admin, true},
	rpc.ClusterServiceListEventsProcedure:       {viewer, false},
	rpc.ClusterServiceCreateTokenProcedure:      {admin, true},
	rpc.ClusterServiceListTokensProcedure:       {admin, false},
	rpc.ClusterServiceDeleteTokenProcedure:      {admin, true},
	rpc.ClusterServiceAddMemberProcedure:        {node, true},
	rpc.ClusterServicePromoteMemberProcedure:    {node, true},
	rpc.ClusterServiceRenewCertificateProcedure: {node, true},

	rpc.NodeServiceListNodesProcedure:   {viewer, false},
	rpc.NodeServiceGetNodeProcedure:     {viewer, false},
	rpc.NodeServiceCordonNodeProcedure:  {operator, true},
	rpc.NodeServiceRemoveNodeProcedure:  {admin, true},
	rpc.NodeServiceNodeStatusProcedure:  {viewer, false},
	rpc.NodeServiceServeVolumeProcedure: {node, true},
	rpc.NodeServiceClosePoolProcedure:   {node, true},

	rpc.PoolServiceAddPoolProcedure:   {admin, true},
	rpc.PoolServiceListPoolsProcedure: {viewer, false},
	rpc.PoolServiceGetPoolProcedure:   {viewer, false},

	rpc.VolumeServiceCreateVolumeProcedure: {operator, true},
	rpc.VolumeServiceListVolumesProcedure:  {viewer, false},
	rpc.VolumeServiceGetVolumeProcedure:    {viewer, false},
	// With accept_loss it needs an administrator: see AttachVolume.
	rpc.VolumeServiceAttachVolumeProcedure: {operator, true},
	rpc.VolumeServiceDetachVolumeProcedure: {operator, true},
	rpc.VolumeServiceDeleteVolumeProcedure: {operator, true},
	rpc.VolumeServiceScrubVolumeProcedure:  {operator, true},
	// With prefer it needs an administrator: see ScrubVolume.
	rpc.VolumeServiceSetVolumeProcedure:    {operator, true},
	rpc.VolumeServiceRecordTrimProcedure:   {node, true},
	rpc.VolumeServiceRecordImportProcedure: {operator, true},

	rpc.UpkeepServiceResizeVolumeProcedure: {operator, true},
	rpc.UpkeepServiceMoveReplicasProcedure: {operator, true},
	rpc.UpkeepServiceExpandPoolProcedure:   {admin, true},
	rpc.UpkeepServiceDrainPoolProcedure:    {operator, true},
	rpc.UpkeepServiceRemovePoolProcedure:   {admin, true},
	rpc.UpkeepServiceSetUpkeepProcedure:    {operator, true},
	rpc.UpkeepServiceGetProgressProcedure:  {viewer, false},

	rpc.SnapshotServiceCreateSnapshotProcedure: {operator, true},
	rpc.SnapshotServiceListSnapshotsProcedure:  {viewer, false},
	rpc.SnapshotServiceDeleteSnapshotProcedure: {operator, true},
	rpc.SnapshotServiceRestoreVolumeProcedure:  {operator, true},
	rpc.SnapshotServiceCloneVolumeProcedure:    {operator, true},
	rpc.SnapshotServiceSetScheduleProcedure:    {operator, true},
	rpc.SnapshotServiceCreateGroupProcedure:    {operator, true},
	rpc.SnapshotServiceGetGroupProcedure:       {viewer, false},
	rpc.SnapshotServiceDeleteGroupProcedure:    {operator, true},
	rpc.SnapshotServiceAttachSnapshotProcedure: {operator, true},
	rpc.SnapshotServiceDetachSnapshotProcedure: {operator, true},

	rpc.KeyServiceListKeysProcedure:   {viewer, false},
	rpc.KeyServiceRotateKeysProcedure: {admin, true},

	rpc.CAServiceGetCAProcedure:    {viewer, false},
	rpc.CAServiceRotateCAProcedure: {admin, true},

	rpc.AccessServiceCreateAPITokenProcedure: {admin, true},
	rpc.AccessServiceListAPITokensProcedure:  {admin, false},
	rpc.AccessServiceRevokeAPITokenProcedure: {admin, true},
	rpc.AccessServiceListAuditProcedure:      {admin, false},

	rpc.JoinServiceJoinProcedure: {anybody, true},
}

// caller is who calls.
type caller struct {
	level level
	name  string // "node/n1" or "api-token/NAME/ID"; "" for one that is nobody
	via   string // the node that passed the call on
}

// callerKey is the context key of a caller, identityKey that of the certificate's pki.Identity.
type (
	callerKey   struct{}
	identityKey struct{}
)

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

var levels = map[spec.APIRole]level{spec.RoleViewer: viewer, spec.RoleOperator: operator, spec.RoleAdmin: admin}

// onBehalfHeader names the caller of a call that a node passes on. It counts only with a node's certificate.
const onBehalfHeader = "Keelson-On-Behalf-Of"

// errUnauthenticated: neither a certificate nor a token of the cluster.
var errUnauthenticated = errors.New("a certificate or an API token of this cluster is needed: run the command as root on a node of it, or give a token with --token-file")

// authenticate finds out who calls: by the certificate of the connection, or by the token of the request.
// A caller without either is nobody, which is no error yet.
func (s *Server) authenticate(r *http.Request) (context.Context, error) {
	ctx := r.Context()
	text, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if bearer {
		t, err := pki.ParseAPIToken(text)
		if err != nil {
			return ctx, err
		}
		rec, err := s.cfg.Store.APIToken(ctx, t.ID)
		if errors.Is(err, meta.ErrNotFound) {
			return ctx, pki.ErrAPITokenUnknown
		}
		if err != nil {
			return ctx, fmt.Errorf("the API token can't be checked: %w", err)
		}
		if err := t.Check(rec.Value, s.cfg.Now()); err != nil {
			return ctx, err
		}
		c := caller{level: levels[rec.Value.Role], name: "api-token/" + rec.Value.Name + "/" + rec.Value.ID}
		return context.WithValue(ctx, callerKey{}, c), nil
	}
	// A connection whose certificate wasn't verified isn't there: see pki.ServerTLS.
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		if id, ok := pki.PeerIdentity(*r.TLS); ok {
			if now := s.cfg.Now(); now.After(r.TLS.PeerCertificates[0].NotAfter) {
				// It was valid when the connection was made.
				return ctx, fmt.Errorf("%w: the certificate of node %s ended at %s", errUnauthenticated, id.Node, r.TLS.PeerCertificates[0].NotAfter.Format(time.RFC3339))
			}
			if err := s.refuses(ctx, id.Node, r.TLS.PeerCertificates[0]); err != nil {
				return ctx, err
			}
			c := caller{level: node, name: "node/" + id.Node}
			if behalf := r.Header.Get(onBehalfHeader); behalf != "" {
				c.name, c.via = behalf, id.Node
			}
			ctx = context.WithValue(ctx, identityKey{}, id)
			return context.WithValue(ctx, callerKey{}, c), nil
		}
	}
	return ctx, nil
}

// authenticated has next see who calls. Of a request by nobody, or with a wrong token, nothing more is read than its head.
func (s *Server) authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, err := s.authenticate(r)
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 && pki.NeedsRenewal(r.TLS.PeerCertificates[0], s.cfg.Now(), s.cfg.RenewBefore) {
			// The node has a newer one by now, or soon: it shows that on its next connection.
			w.Header().Set("Connection", "close")
		}
		if err == nil && callerOf(ctx).level == nobody && methods[r.URL.Path].who != anybody {
			err = errUnauthenticated
		}
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// page lets only callers of that level see a page that is no method of a service.
func (s *Server) page(who level, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := allowed(callerOf(r.Context()), access{who: who}, r.URL.Path); err != nil {
			s.refuse(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// refuse answers in the protocol of the request.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	s.strangers.note(s.cfg.Log, r.RemoteAddr, r.URL.Path, err)
	var ce *connect.Error
	if !errors.As(ToConnect(err), &ce) {
		ce = connect.NewError(connect.CodeUnauthenticated, err)
	}
	if ew := connect.NewErrorWriter(); ew.IsSupported(r) {
		_ = ew.Write(w, r, ce)
		return
	}
	status := http.StatusUnauthorized
	switch ce.Code() {
	case connect.CodePermissionDenied:
		status = http.StatusForbidden
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded:
		status = http.StatusServiceUnavailable
	}
	http.Error(w, ce.Message(), status)
}

// allowed says why a caller may not call a method.
func allowed(c caller, a access, method string) error {
	switch {
	case a.who == nobody:
		return errorf(errDenied, "%s is for nobody", method)
	case a.who == anybody || c.level >= a.who:
		return nil
	case c.level == nobody:
		return errUnauthenticated
	case a.who == node:
		return errorf(errDenied, "%s is for the nodes of the cluster alone", method)
	}
	return errorf(errDenied, "%s may not do this: it takes a token with the role %s (keelson api-token create --role %s)", c.name, a.who, a.who)
}

func (l level) String() string {
	for r, x := range levels {
		if x == l {
			return string(r)
		}
	}
	return map[level]string{anybody: "anybody", node: "node"}[l]
}

// authorizer is the interceptor that refuses what the table of methods doesn't allow, and has changes audited.
type authorizer struct{ s *Server }

// WrapUnary implements connect.Interceptor.
func (z authorizer) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		method, c := r.Spec().Procedure, callerOf(ctx)
		a := methods[method]
		if err := allowed(c, a, method); err != nil {
			z.s.strangers.note(z.s.cfg.Log, r.Peer().Addr, method, err)
			if a.changes && c.level != nobody {
				z.s.auditRefused(c, r, err)
			}
			return nil, err
		}
		if !a.changes {
			return next(ctx, r)
		}
		return z.s.audited(ctx, r, next)
	}
}

// WrapStreamingHandler implements connect.Interceptor. A stream changes nothing: its arguments couldn't be audited.
func (z authorizer) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		method := conn.Spec().Procedure
		a := methods[method]
		if a.changes {
			a.who = nobody
		}
		if err := allowed(callerOf(ctx), a, method); err != nil {
			z.s.strangers.note(z.s.cfg.Log, conn.Peer().Addr, method, err)
			return ToConnect(err)
		}
		return next(ctx, conn)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (authorizer) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// passOn is the interceptor of clients that tells the other node for whom this one calls.
func passOn() connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			if c := callerOf(ctx); c.name != "" && r.Spec().IsClient {
				r.Header().Set(onBehalfHeader, c.name)
			}
			return next(ctx, r)
		}
	}
}
