package api

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/place"
	"keelson.io/keelson/internal/seal"
	"keelson.io/keelson/internal/spec"
)

// Kinds of errors that handlers make themselves. Errors of the packages below have kinds of
// their own; ToConnect knows them all.
var (
	errInvalid = errors.New("invalid request")
	errRefused = errors.New("refused")     // the state of things forbids it; the message says what to do
	errAgain   = errors.New("not yet")     // the same call may succeed soon
	errGone    = errors.New("unreachable") // a node, or its engine
	errDenied  = errors.New("denied")      // token
	errMissing = errors.New("not found")
	errFull    = errors.New("no room")
)

// kinds is looked through in order. A sentinel that only marks the kind, and would
// read badly in the message, is dropped from it by kindError.
var kinds = []struct {
	err  error
	code connect.Code
}{
	{errInvalid, connect.CodeInvalidArgument},
	{errRefused, connect.CodeFailedPrecondition},
	{errAgain, connect.CodeAborted},
	{ErrNotCaughtUp, connect.CodeAborted},
	{errGone, connect.CodeUnavailable},
	{errDenied, connect.CodePermissionDenied},
	{errMissing, connect.CodeNotFound},
	{errFull, connect.CodeResourceExhausted},
	{errUnauthenticated, connect.CodeUnauthenticated},
	{pki.ErrAPITokenForm, connect.CodeUnauthenticated},
	{pki.ErrAPITokenUnknown, connect.CodeUnauthenticated},
	{pki.ErrAPITokenExpired, connect.CodeUnauthenticated},
	{errNoCAKey, connect.CodeFailedPrecondition},
	{pki.ErrTokenForm, connect.CodePermissionDenied},
	{pki.ErrTokenUnknown, connect.CodePermissionDenied},
	{pki.ErrTokenExpired, connect.CodePermissionDenied},
	{pki.ErrTokenCluster, connect.CodePermissionDenied},
	{seal.ErrNone, connect.CodeFailedPrecondition},
	{seal.ErrMissing, connect.CodeFailedPrecondition},
	{seal.ErrDamaged, connect.CodeFailedPrecondition},
	{seal.ErrAway, connect.CodeUnavailable},
	{meta.ErrNotFound, connect.CodeNotFound},
	{meta.ErrExists, connect.CodeAlreadyExists},
	{meta.ErrConflict, connect.CodeAborted},
	{meta.ErrUnavailable, connect.CodeUnavailable},
	{context.DeadlineExceeded, connect.CodeDeadlineExceeded},
	{context.Canceled, connect.CodeCanceled},
}

// retryKey is the metadata of an error that may go by itself: the caller may ask again soon.
const retryKey = "Keelson-Retry"

// Retryable reports whether the same call may succeed soon without anybody doing anything.
func Retryable(err error) bool {
	var ce *connect.Error
	return errors.As(err, &ce) && ce.Meta().Get(retryKey) != ""
}

// ToConnect gives an error the code of its kind. One that has a code keeps it.
func ToConnect(err error) error {
	var ce *connect.Error
	if errors.As(err, &ce) {
		// Made anew also when it came from another node as it is: the metadata of that answer isn't this one's.
		msg := ce.Message()
		if err != error(ce) {
			msg = err.Error()
		}
		out := connect.NewError(ce.Code(), errors.New(msg))
		if Retryable(err) {
			out.Meta().Set(retryKey, "1")
		}
		return out
	}
	out := connect.NewError(codeOf(err), err)
	if errors.Is(err, errAgain) || errors.Is(err, meta.ErrUnavailable) || errors.Is(err, ErrNotCaughtUp) ||
		errors.Is(err, seal.ErrMissing) || errors.Is(err, seal.ErrAway) {
		out.Meta().Set(retryKey, "1")
	}
	return out
}

func codeOf(err error) connect.Code {
	var invalid *spec.InvalidError
	var impossible *place.ImpossibleError
	switch {
	case errors.As(err, &invalid):
		return connect.CodeInvalidArgument
	case errors.As(err, &impossible):
		return connect.CodeResourceExhausted
	}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.code
		}
	}
	return connect.CodeUnknown
}

// kindError is a message of a kind.
type kindError struct {
	kind error
	msg  string
}

func (e *kindError) Error() string { return e.msg }
func (e *kindError) Unwrap() error { return e.kind }

func errorf(kind error, format string, args ...any) error {
	return &kindError{kind, fmt.Sprintf(format, args...)}
}
