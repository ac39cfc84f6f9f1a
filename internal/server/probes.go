package server

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	pb "keelson.io/keelson/internal/api/keelsonv1"
)

// probes are the pages by which the machinery that started a node's processes sees how they are: /healthz and /readyz on the API's
// port. As all of the API they need a certificate or a token; `keelson ready` shows the node's own.
type probes struct {
	// registered is set once this node has its place in the metadata.
	registered atomic.Bool
	// status says how the node is; Problem is "" if nothing is wrong.
	status func(ctx context.Context) *pb.NodeStatusResponse

	// mu guards what the engine said last. One question is asked at a time.
	mu       sync.Mutex
	answered time.Time
	well     bool
	asking   chan struct{} // closed with the answer; nil while nobody asks
}

// readyWait is how long the engine may take to answer, readyFor how long its answer counts.
const (
	readyWait = 3 * time.Second
	readyFor  = time.Second
)

// live answers as long as the process does: that the metadata or the engine is away is no reason to start it anew.
func (p *probes) live(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }

// ready answers 200 when this node takes work: it is in the metadata, and its engine answers if it has one.
func (p *probes) ready(w http.ResponseWriter, r *http.Request) {
	if !p.registered.Load() {
		http.Error(w, "this node isn't in the metadata yet", http.StatusServiceUnavailable)
		return
	}
	if !p.engineAnswers(r.Context()) {
		http.Error(w, "the engine doesn't answer", http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}

// engineAnswers asks the engine, or waits for the answer that somebody else has asked for.
func (p *probes) engineAnswers(ctx context.Context) bool {
	p.mu.Lock()
	if !p.answered.IsZero() && time.Since(p.answered) < readyFor {
		defer p.mu.Unlock()
		return p.well
	}
	if other := p.asking; other != nil {
		p.mu.Unlock()
		<-other
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.well
	}
	done := make(chan struct{})
	p.asking = done
	p.mu.Unlock()
	// Not ended by the caller: others wait for the same answer.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyWait)
	defer cancel()
	well := p.status(ctx).GetProblem() == ""
	p.mu.Lock()
	defer p.mu.Unlock()
	p.well, p.answered, p.asking = well, time.Now(), nil
	close(done)
	return well
}
