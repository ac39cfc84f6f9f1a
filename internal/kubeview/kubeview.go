// Package kubeview shows volumes, claims, pods and nodes of all clusters of a kubeconfig together: a row for each pod that uses a
// Keelson volume, each claim that none uses, and each volume that no claim has. It asks Kubernetes alone: the rights of the kubeconfig
// suffice.
//
// Invariants: clusters are asked at the same time, each within its time limit; one that can't be reached, or that lets itself be seen
// in part only, takes nothing from the others and is named in the result. Nothing is changed anywhere. Goroutines: those of Collect,
// which returns when they have ended.
package kubeview

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientapi "k8s.io/client-go/tools/clientcmd/api"
)

// Row is a pod's use of a volume; Pod is "" for a claim, or a volume, that none uses.
type Row struct {
	Context   string   `json:"context"`
	Namespace string   `json:"namespace"`
	Claim     string   `json:"claim"`
	Volume    string   `json:"volume"` // the PersistentVolume; "" of a claim that has none yet, and of inline volumes
	Handle    string   `json:"handle"` // the volume in Keelson
	Size      string   `json:"size"`
	Pod       string   `json:"pod"`
	Node      string   `json:"node"`
	Health    string   `json:"health"` // "ok", or what is wrong, in words
	Status    string   `json:"status"` // phase of the claim, or of the volume
	Class     string   `json:"class"`
	Access    []string `json:"access"`
	Driver    string   `json:"driver"`
	Copies    string   `json:"copies"` // that the class asks for; "" if that isn't known
	// Created is that of the claim, or the volume.
	Created time.Time `json:"created"`
}

// Cluster is how a context was found.
type Cluster struct {
	Context string `json:"context"`
	Server  string `json:"server"`
	// Error says why nothing of it is shown; "" if it was reached.
	Error string `json:"error,omitempty"`
	// Partial says what of it couldn't be read.
	Partial []string `json:"partial,omitempty"`
	// SameAs is the context under which its rows are, as cluster and user are the same.
	SameAs string `json:"sameAs,omitempty"`
}

// View is what was found.
type View struct {
	Rows     []Row     `json:"rows"`
	Clusters []Cluster `json:"clusters"`
}

// Unreachable returns the contexts of which nothing is shown.
func (v *View) Unreachable() (out []Cluster) {
	for _, c := range v.Clusters {
		if c.Error != "" {
			out = append(out, c)
		}
	}
	return out
}

// Options say what is looked at.
type Options struct {
	Kubeconfig string   // "" is KUBECONFIG, or ~/.kube/config
	Contexts   []string // empty is all
	Namespace  string   // "" is all
	Selector   string   // of claims, by their labels
	Timeout    time.Duration
	Now        time.Time
}

// ErrInvalid: the options, or the kubeconfig, make no sense.
var ErrInvalid = errors.New("invalid")

// defaultTimeout is how long a cluster may take, if nothing else is said.
const defaultTimeout = 10 * time.Second

// atOnce bounds the clusters that are asked at the same time.
const atOnce = 32

// Collect asks the clusters. Its error is an ErrInvalid; what a cluster doesn't answer is in the View.
func Collect(ctx context.Context, o Options) (View, error) {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	raw, err := load(o.Kubeconfig)
	if err != nil {
		return View{}, err
	}
	names, err := chosen(raw, o.Contexts)
	if err != nil {
		return View{}, err
	}
	clusters := make([]Cluster, len(names))
	rows := make([][]Row, len(names))
	type login struct{ cluster, user string }
	first := map[login]string{}
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i, name := range names {
		clusters[i].Context = name
		c := raw.Contexts[name]
		if cl := raw.Clusters[c.Cluster]; cl != nil {
			clusters[i].Server = cl.Server
		}
		who := login{c.Cluster, c.AuthInfo}
		if same, ok := first[who]; ok {
			clusters[i].SameAs = same
			continue
		}
		first[who] = name
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			var err error
			if rows[i], clusters[i].Partial, err = one(ctx, raw, name, o); err != nil {
				clusters[i].Error = err.Error()
			}
		})
	}
	wg.Wait()
	v := View{Clusters: clusters, Rows: []Row{}}
	for _, r := range rows {
		v.Rows = append(v.Rows, r...)
	}
	return v, nil
}

// load reads the kubeconfig, or several that KUBECONFIG names.
func load(path string) (*clientapi.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	if path != "" {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("%w kubeconfig: %w", ErrInvalid, err)
		}
		rules = &clientcmd.ClientConfigLoadingRules{ExplicitPath: path}
	}
	raw, err := rules.Load()
	if err != nil {
		return nil, fmt.Errorf("%w kubeconfig: %w", ErrInvalid, err)
	}
	if len(raw.Contexts) == 0 {
		return nil, fmt.Errorf("%w kubeconfig: there is no context in it; set KUBECONFIG, or give --kubeconfig", ErrInvalid)
	}
	return raw, nil
}

// chosen returns the contexts that are looked at, in the order of their names.
func chosen(raw *clientapi.Config, want []string) ([]string, error) {
	all := slices.Sorted(maps.Keys(raw.Contexts))
	if len(want) == 0 {
		return all, nil
	}
	for _, w := range want {
		if raw.Contexts[w] == nil {
			return nil, fmt.Errorf("%w: there is no context %q in the kubeconfig; there are %v", ErrInvalid, w, all)
		}
	}
	want = slices.Clone(want)
	slices.Sort(want)
	return slices.Compact(want), nil
}

// one asks the cluster of a context.
func one(ctx context.Context, raw *clientapi.Config, name string, o Options) ([]Row, []string, error) {
	cfg, err := clientcmd.NewNonInteractiveClientConfig(*raw, name, &clientcmd.ConfigOverrides{CurrentContext: name}, nil).ClientConfig()
	if err != nil {
		return nil, nil, err
	}
	if cfg.ExecProvider != nil {
		// Several would ask at the same time.
		cfg.ExecProvider.StdinUnavailable = true
		cfg.ExecProvider.StdinUnavailableMessage = "log in to the cluster with kubectl first"
	}
	cfg.UserAgent = "kubectl-keelson"
	h, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, nil, err
	}
	defer h.CloseIdleConnections()
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	f := &fetcher{http: h, base: base.String()}
	found, partial, err := f.all(ctx, o)
	if err != nil {
		if ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %s", o.Timeout)
		}
		return nil, nil, err
	}
	rows := found.rows(o)
	for i := range rows {
		rows[i].Context = name
	}
	slices.SortStableFunc(rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Claim, b.Claim), cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Pod, b.Pod))
	})
	return rows, partial, nil
}
