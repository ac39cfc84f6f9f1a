package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	extender "k8s.io/kube-scheduler/extender/v1"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// ExtenderPath is the prefix of the extender's URLs: filter and prioritize are below it.
const ExtenderPath = "/scheduler"

// Limits of the extender.
const (
	maxExtenderBody = 64 << 20 // a pod, and the names, or objects, of thousands of nodes
	extenderWait    = 4 * time.Second
)

// Extender answers kube-scheduler. It is served without TLS, so only on an address that nobody outside of the machine reaches:
// what it tells is where volumes lie.
type Extender struct {
	API     API
	Store   Store
	Log     *slog.Logger
	Drivers []string

	names *nodeNames
}

// CheckExtenderAddress returns an error unless address is host:port on a loopback address.
func CheckExtenderAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT", address)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("%q is not on a loopback address such as 127.0.0.1: what it tells isn't encrypted, and is for the scheduler on this machine", address)
	}
	if n, err := net.LookupPort("tcp", port); err != nil || n == 0 {
		return fmt.Errorf("%q has no port from 1 to 65535", address)
	}
	return nil
}

// Serve answers on an address until ctx ends.
func (x *Extender) Serve(ctx context.Context, address string) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("scheduler extender: %w", err)
	}
	s := &http.Server{Handler: x.Handler(), ReadHeaderTimeout: extenderWait, ReadTimeout: 2 * extenderWait, IdleTimeout: 2 * time.Minute, ErrorLog: slog.NewLogLogger(x.Log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("scheduler extender: %w", err)
	}
	return nil
}

// Handler returns what answers kube-scheduler.
func (x *Extender) Handler() http.Handler {
	x.names = newNodeNames(x.API, x.Drivers)
	m := http.NewServeMux()
	m.HandleFunc("POST "+ExtenderPath+"/filter", func(w http.ResponseWriter, r *http.Request) { reply(w, r, x.filter) })
	m.HandleFunc("POST "+ExtenderPath+"/prioritize", func(w http.ResponseWriter, r *http.Request) { reply(w, r, x.prioritize) })
	return m
}

// reply answers one question of the scheduler's.
func reply[T any](w http.ResponseWriter, r *http.Request, fn func(context.Context, *extender.ExtenderArgs) (T, error)) {
	var args extender.ExtenderArgs
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxExtenderBody)).Decode(&args); err != nil {
		http.Error(w, "the arguments of the extender can't be read: "+err.Error(), http.StatusBadRequest)
		return
	}
	if args.Pod == nil || args.NodeNames == nil && args.Nodes == nil {
		http.Error(w, "the arguments of the extender name no pod, or no nodes", http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), extenderWait)
	defer cancel()
	out, err := fn(ctx, &args)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out) // the scheduler is gone if it fails
}

// candidates returns the names of the nodes that are asked for.
func candidates(args *extender.ExtenderArgs) []string {
	if args.NodeNames != nil {
		return *args.NodeNames
	}
	out := make([]string, len(args.Nodes.Items))
	for i := range args.Nodes.Items {
		out[i] = args.Nodes.Items[i].Name
	}
	return out
}

// question is what the scheduler asks, with what is needed to answer.
type question struct {
	site    site
	uses    []use
	volumes []spec.Volume
	// ours are the names in Keelson of the candidates on which the driver is registered.
	ours map[string]string
}

func (x *Extender) read(ctx context.Context, args *extender.ExtenderArgs) (q question, err error) {
	if q.uses, err = newFinder(x.API, x.Drivers).uses(ctx, args.Pod); err != nil || len(q.uses) == 0 {
		return q, err
	}
	if q.ours, err = x.names.registered(ctx, candidates(args)); err != nil {
		return q, err
	}
	c := Controller{cfg: Config{Store: x.Store}}
	if q.volumes, err = c.volumes(ctx, q.uses); err != nil {
		return q, err
	}
	q.site.nodes, q.site.alive, err = c.cluster(ctx)
	return q, err
}

// filter leaves out the nodes where none of Keelson's volumes can be used.
func (x *Extender) filter(ctx context.Context, args *extender.ExtenderArgs) (*extender.ExtenderFilterResult, error) {
	out := &extender.ExtenderFilterResult{NodeNames: args.NodeNames, Nodes: args.Nodes}
	q, err := x.read(ctx, args)
	if err != nil || len(q.uses) == 0 {
		return out, err
	}
	out.FailedAndUnresolvableNodes = extender.FailedNodesMap{}
	var names []string
	for _, name := range candidates(args) {
		ours, ok := q.ours[name]
		if !ok {
			out.FailedAndUnresolvableNodes[name] = "Keelson's CSI driver isn't registered on this node"
			continue
		}
		if why := q.site.refuse(ours); why != "" {
			out.FailedAndUnresolvableNodes[name] = why
			continue
		}
		names = append(names, name)
	}
	if args.NodeNames != nil {
		out.NodeNames = &names
		return out, nil
	}
	keep := make(map[string]bool, len(names))
	for _, n := range names {
		keep[n] = true
	}
	out.Nodes = &corev1.NodeList{}
	for i := range args.Nodes.Items {
		if keep[args.Nodes.Items[i].Name] {
			out.Nodes.Items = append(out.Nodes.Items, args.Nodes.Items[i])
		}
	}
	return out, nil
}

// prioritize scores the nodes by where the data is.
func (x *Extender) prioritize(ctx context.Context, args *extender.ExtenderArgs) (*extender.HostPriorityList, error) {
	q, err := x.read(ctx, args)
	if err != nil {
		return nil, err
	}
	out := make(extender.HostPriorityList, 0)
	for _, name := range candidates(args) {
		p := extender.HostPriority{Host: name}
		if ours, ok := q.ours[name]; ok {
			p.Score = q.site.scores(q.volumes, ours)
		}
		out = append(out, p)
	}
	return &out, nil
}

var _ Store = meta.Store(nil)
