package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	rpc "keelson.io/keelson/internal/api/keelsonv1/keelsonv1connect"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/pki/pkitest"
	"keelson.io/keelson/internal/spec"
)

// described calls fn with the path of every method that the protobuf descriptors have.
func described(fn func(path string, m protoreflect.MethodDescriptor)) {
	protoregistry.GlobalFiles.RangeFilesByPackage("keelson.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				fn(fmt.Sprintf("/%s/%s", s.FullName(), s.Methods().Get(j).Name()), s.Methods().Get(j))
			}
		}
		return true
	})
}

// memoryAudit keeps entries in memory.
type memoryAudit struct {
	mu sync.Mutex
	es []*pb.AuditEntry
}

func (a *memoryAudit) Record(e *pb.AuditEntry) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.es = append(a.es, proto.CloneOf(e))
	return nil
}

func (a *memoryAudit) Entries(time.Time, int) ([]*pb.AuditEntry, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.es, nil
}

func (a *memoryAudit) take() []*pb.AuditEntry {
	a.mu.Lock()
	defer a.mu.Unlock()
	es := a.es
	a.es = nil
	return es
}

// post calls a method with empty arguments in JSON, and returns the code of the answer.
func post(t *testing.T, base, path string, header http.Header) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, base+path, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header.Clone()
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == http.StatusOK {
		return "ok"
	}
	var e struct{ Code string }
	if json.Unmarshal(b, &e) != nil {
		return resp.Status
	}
	return e.Code
}

func TestEveryMethodHasItsRole(t *testing.T) {
	seen := map[string]bool{}
	described(func(path string, m protoreflect.MethodDescriptor) {
		seen[path] = true
		if strings.HasPrefix(path, "/"+rpc.EngineServiceName+"/") {
			if _, ok := methods[path]; ok {
				t.Errorf("%s is asked over the engine's socket alone, and has a role", path)
			}
			return
		}
		a, ok := methods[path]
		if !ok || a.who == nobody {
			t.Errorf("%s has no role: say in the table who may call it", path)
		}
		// What isn't plainly a question changes something.
		question := strings.HasPrefix(string(m.Name()), "Get") || strings.HasPrefix(string(m.Name()), "List") || strings.HasSuffix(string(m.Name()), "Status")
		if a.changes == question {
			t.Errorf("%s: changes is %v", path, a.changes)
		}
		if a.changes && a.who < operator && path != rpc.JoinServiceJoinProcedure {
			t.Errorf("%s changes something and is for a %s", path, a.who)
		}
	})
	for path := range methods {
		if !seen[path] {
			t.Errorf("the table has %s, which there isn't", path)
		}
	}
}

// TestRolesAndAudit calls every method as each role, and looks for what the audit log has of it.
func TestRolesAndAudit(t *testing.T) {
	c := newTestCluster(t, "n1")
	audit := &memoryAudit{}
	s := New(Config{Node: "n1", Store: c.store, Engine: c.engines["n1"], CA: pkitest.Fixed(c.ca), Audit: audit, Members: noMembers{}, Log: slog.New(slog.DiscardHandler)})
	for _, who := range []caller{
		{}, {level: viewer, name: "api-token/v/1"}, {level: operator, name: "api-token/o/2"}, {level: admin, name: "api-token/a/3"}, {level: node, name: "node/n1"},
	} {
		hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.services().ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, who)))
		}))
		described(func(path string, _ protoreflect.MethodDescriptor) {
			audit.take()
			got, a := post(t, hs.URL, path, http.Header{}), methods[path]
			es := audit.take()
			switch {
			case who.level == nobody && a.who != anybody:
				if got != "unauthenticated" && !strings.HasPrefix(got, "401") || len(es) != 0 {
					t.Errorf("%s by nobody: %s, %v", path, got, es)
				}
			case a.who == nobody: // of the engine's socket
				if who.level >= viewer && !strings.HasPrefix(got, "404") {
					t.Errorf("%s by %s: %s", path, who.name, got)
				}
			case who.level < a.who && a.who != anybody:
				if got != "permission_denied" || a.changes != (len(es) == 1) || a.changes && es[0].Outcome != "permission_denied" {
					t.Errorf("%s by %s: %s, %v", path, who.name, got, es)
				}
			case !a.changes:
				if got == "permission_denied" || got == "unauthenticated" || len(es) != 0 {
					t.Errorf("%s by %s: %s, %v", path, who.name, got, es)
				}
			case path == rpc.JoinServiceJoinProcedure:
				if got != "permission_denied" || len(es) != 0 {
					t.Errorf("joining without a token, by %q: %s, %v", who.name, got, es)
				}
			default:
				if len(es) != 2 || es[0].Outcome != auditStarted || es[1].Outcome != got || es[0].Id != es[1].Id || es[1].Took == nil ||
					"/keelson.v1."+es[1].Call != path || es[1].Caller != who.name || es[1].Remote == "" || es[1].Node != "n1" || es[1].Time == nil {
					t.Errorf("%s by %s: %s, %v", path, who.name, got, es)
				}
			}
		})
		hs.Close()
	}
}

// noMembers has no member and takes none.
type noMembers struct{ Members }

func (noMembers) List(context.Context) ([]*pb.MetadataMember, error) { return nil, nil }
func (noMembers) Promote(context.Context, string) error              { return ErrNotCaughtUp }

func TestAuditHasNoSecrets(t *testing.T) {
	for _, tc := range []struct {
		m    proto.Message
		want string
	}{
		{&pb.JoinRequest{Token: "K1secret", Name: "n2", Csr: []byte("secret")}, `{"name":"n2"}`},
		{&pb.CreateAPITokenResponse{Token: "KA1secret", Info: &pb.APIToken{Name: "x"}}, `{"info":{"name":"x"}}`},
		{&pb.JoinResponse{CaKeyPem: []byte("secret"), ClusterId: "1"}, `{"clusterId":"1"}`},
		{&pb.CreateVolumeRequest{Name: "v", NodeSelector: map[string]string{"a": "b"}}, `{"name":"v","nodeSelector":{"a":"b"}}`},
		{&pb.ListVolumesResponse{Volumes: []*pb.Volume{{Name: "v"}}}, `{"volumes":[{"name":"v"}]}`},
	} {
		if got := arguments(tc.m); got != tc.want {
			t.Errorf("%s, want %s", got, tc.want)
		}
	}
	if got := arguments(&pb.CreateVolumeRequest{Name: strings.Repeat("ü", 5000)}); len(got) > maxArguments+len("…") || strings.Contains(got, "\ufffd") {
		t.Errorf("%d bytes", len(got))
	}
}

func TestAPITokensInUse(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1")
	now := time.Now()
	audit := &memoryAudit{}
	s := New(Config{
		Node: "n1", Store: c.store, Engine: c.engines["n1"], CA: pkitest.Fixed(c.ca), Audit: audit, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now },
		Pages: map[string]http.Handler{"/metrics": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "1") })},
	})
	hs := httptest.NewServer(s.Handler())
	defer hs.Close()
	made := map[string]*pb.CreateAPITokenResponse{}
	for _, role := range []string{"viewer", "operator", "admin"} {
		r, err := accessService{s}.CreateAPIToken(ctx, &pb.CreateAPITokenRequest{Name: "x", Role: role})
		if err != nil || r.Info.Expires.AsTime().Sub(now).Round(time.Hour) != DefaultAPITokenTTL {
			t.Fatal(r, err)
		}
		made[role] = r
	}
	bearer := func(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }
	check := func(what, token, path, want string) {
		t.Helper()
		if got := post(t, hs.URL, path, bearer(token)); got != want {
			t.Errorf("%s: %s: %s, want %s", what, path, got, want)
		}
	}
	for role, r := range made {
		check(role, r.Token, rpc.ClusterServiceGetSettingsProcedure, "ok")
		check(role, r.Token, rpc.ClusterServiceListTokensProcedure, map[bool]string{true: "ok", false: "permission_denied"}[role == "admin"])
		check(role, r.Token, rpc.ClusterServicePromoteMemberProcedure, "permission_denied")
	}
	v, op := made["viewer"].Token, made["operator"].Token
	check("not known", v[:len(v)-4]+"0000", rpc.ClusterServiceGetSettingsProcedure, "unauthenticated")
	check("no token at all", "x", rpc.ClusterServiceGetSettingsProcedure, "unauthenticated")
	join, _ := pki.NewToken(c.ca.Cert, []spec.Role{spec.RoleMetadata}, time.Hour, now)
	check("a join token", join.String(), rpc.ClusterServiceGetSettingsProcedure, "unauthenticated")
	// Nobody but a node calls for others.
	h := bearer(op)
	h.Set(onBehalfHeader, "node/n1")
	audit.take()
	post(t, hs.URL, rpc.VolumeServiceDeleteVolumeProcedure, h)
	if es := audit.take(); len(es) != 2 || es[0].Caller != "api-token/x/"+made["operator"].Info.Id || es[0].Via != "" {
		t.Errorf("%v", es)
	}
	// Loss that is accepted takes an administrator.
	for role, want := range map[string]connect.Code{"operator": connect.CodePermissionDenied, "admin": connect.CodeNotFound} {
		ctx := context.WithValue(ctx, callerKey{}, caller{level: levels[spec.APIRole(role)], name: role})
		_, err := volumeService{s}.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "v", AcceptLoss: true})
		if got := connect.CodeOf(ToConnect(err)); got != want {
			t.Errorf("%s: %v", role, err)
		}
	}
	for path, want := range map[string]int{"/metrics": 200, "/": 404, "/nosuch": 404} {
		for token, want := range map[string]int{v: want, "": 401, "x": 401} {
			req, _ := http.NewRequest(http.MethodGet, hs.URL+path, nil)
			if token != "" {
				req.Header = bearer(token)
			}
			r, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			if r.StatusCode != want {
				t.Errorf("%s with %q: %s", path, token, r.Status)
			}
		}
	}
	if _, err := (accessService{s}).RevokeAPIToken(ctx, &pb.RevokeAPITokenRequest{Id: made["operator"].Info.Id}); err != nil {
		t.Fatal(err)
	}
	check("revoked", op, rpc.ClusterServiceGetSettingsProcedure, "unauthenticated")
	now = now.Add(DefaultAPITokenTTL)
	check("expired", v, rpc.ClusterServiceGetSettingsProcedure, "unauthenticated")
	c.store.SetUnavailable(true)
	check("nobody can tell", v, rpc.ClusterServiceGetSettingsProcedure, "unavailable")
}
