package server

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	pb "keelson.io/keelson/internal/api/keelsonv1"
)

func TestProbes(t *testing.T) {
	problem, asked := "", 0
	p := &probes{status: func(context.Context) *pb.NodeStatusResponse {
		asked++
		return &pb.NodeStatusResponse{Problem: problem}
	}}
	expect := func(page http.HandlerFunc, want int) {
		t.Helper()
		w := httptest.NewRecorder()
		page(w, httptest.NewRequest(http.MethodGet, "/", nil))
		if w.Code != want {
			t.Errorf("%d %s, want %d", w.Code, w.Body, want)
		}
	}
	expect(p.live, 200)
	expect(p.ready, 503)
	p.registered.Store(true)
	expect(p.ready, 200)
	expect(p.ready, 200)
	if asked != 1 {
		t.Errorf("the engine was asked %d times within a moment", asked)
	}
	problem, p.answered = "its engine doesn't answer", time.Time{}
	expect(p.ready, 503)
	expect(p.live, 200)
}
