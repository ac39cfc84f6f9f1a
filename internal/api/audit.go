package api

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

// Audit keeps the entries of the audit log of this node. Safe for concurrent use.
type Audit interface {
	// Record writes an entry so that it outlives this process.
	Record(e *pb.AuditEntry) error
	// Entries returns the newest entries since a time, at most limit, the oldest first.
	Entries(since time.Time, limit int) ([]*pb.AuditEntry, error)
}

// auditStarted is the outcome of a call that hasn't ended yet.
const auditStarted = "started"

// audited makes a call between two entries of the audit log: that it began, and how it ended. A process that is killed in
// between leaves the first.
func (s *Server) audited(ctx context.Context, r connect.AnyRequest, next connect.UnaryFunc) (connect.AnyResponse, error) {
	c := callerOf(ctx)
	if j, ok := r.Any().(*pb.JoinRequest); ok {
		t, err := joinService{s}.token(ctx, j.Token)
		if err != nil {
			// Of those who have no token nothing is kept: strangers must not be able to drive entries out.
			s.strangers.note(s.cfg.Log, r.Peer().Addr, r.Spec().Procedure, err)
			return nil, err
		}
		c.name = "join-token/" + t.ID
	}
	e := s.entry(c, r)
	e.Outcome = auditStarted
	s.record(e)
	began := s.cfg.Now()
	resp, err := next(ctx, r)
	e.Time, e.Took = timestamppb.New(s.cfg.Now()), durationpb.New(s.cfg.Now().Sub(began))
	if e.Outcome = "ok"; err != nil {
		e.Outcome, e.Error = connect.CodeOf(ToConnect(err)).String(), err.Error()
	}
	s.record(e)
	return resp, err
}

// auditRefused records a change that the caller may not make.
func (s *Server) auditRefused(c caller, r connect.AnyRequest, err error) {
	e := s.entry(c, r)
	e.Outcome, e.Error = connect.CodePermissionDenied.String(), err.Error()
	s.record(e)
}

func (s *Server) entry(c caller, r connect.AnyRequest) *pb.AuditEntry {
	e := &pb.AuditEntry{
		Time: timestamppb.New(s.cfg.Now()), Node: s.cfg.Node, Id: spec.NewID(), Caller: c.name, Via: c.via, Remote: r.Peer().Addr,
		Call: strings.TrimPrefix(r.Spec().Procedure, "/keelson.v1."),
	}
	if m, ok := r.Any().(proto.Message); ok {
		e.Object, e.Arguments = object(m.ProtoReflect()), arguments(m)
	}
	return e
}

// record writes an entry, and logs it: the log of the process is the second copy, for when the first can't be written.
func (s *Server) record(e *pb.AuditEntry) {
	if s.cfg.Audit != nil {
		if err := s.cfg.Audit.Record(e); err != nil {
			s.cfg.Log.Error("the audit log can't be written; the entry is in this log only", "id", e.Id, "err", err)
		}
	}
	if e.Outcome == auditStarted {
		return
	}
	s.cfg.Log.Info("audit", "id", e.Id, "caller", e.Caller, "via", e.Via, "remote", e.Remote, "call", e.Call, "object", e.Object,
		"arguments", e.Arguments, "outcome", e.Outcome, "err", e.Error)
}

// object is the noun that a request is about: the first of its fields that names one.
func object(m protoreflect.Message) string {
	for _, name := range []protoreflect.Name{"name", "volume", "volume_id", "id", "device", "file"} {
		if f := m.Descriptor().Fields().ByName(name); f != nil && f.Kind() == protoreflect.StringKind {
			if v := m.Get(f).String(); v != "" {
				return short(v)
			}
		}
	}
	return ""
}

// secretName matches the names of fields that hold secrets.
var secretName = regexp.MustCompile(`(^|_)(token|secret|key|password|passphrase|credential|pem|csr)s?($|_)`)

// maxArguments bounds what an entry says of the arguments, in bytes.
const maxArguments = 2048

// arguments are a request's fields in JSON, without secrets.
func arguments(m proto.Message) string {
	m = proto.Clone(m)
	redact(m.ProtoReflect())
	b, err := protojson.Marshal(m)
	if err != nil {
		return "?"
	}
	// protojson varies its spaces; entries shouldn't.
	var v any
	if json.Unmarshal(b, &v) == nil {
		b, _ = json.Marshal(v)
	}
	return short(string(b))
}

func short(s string) string {
	if len(s) <= maxArguments {
		return s
	}
	n := maxArguments
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// redact empties the fields that are secrets, by their names, and all that are bytes.
func redact(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Kind() == protoreflect.BytesKind, secretName.MatchString(string(f.Name())):
			m.Clear(f)
		case f.IsMap():
			if f.MapValue().Kind() == protoreflect.MessageKind {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { redact(v.Message()); return true })
			}
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			for i := range v.List().Len() {
				redact(v.List().Get(i).Message())
			}
		case f.Kind() == protoreflect.MessageKind:
			redact(v.Message())
		}
		return true
	})
}
