package csi

import (
	"maps"
	"slices"
	"strings"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.io/keelson/internal/csi/dialect"
)

// Topology of Kubernetes and of Pure Service Orchestrator.
const (
	keyKubernetesZone = "topology.kubernetes.io/zone"
	prefixTopology    = "topology."
	prefixPure        = "topology.purestorage.com/"
)

// segments are what a node is in the driver's topology: its name and zone, and its labels that are made for it. For
// pure-csi, where labels have no prefix, that is all of them.
func segments(n Node, driver string) map[string]string {
	out := map[string]string{dialect.KeyNode: n.Name}
	if n.Zone != "" {
		out[dialect.KeyZone] = n.Zone
		out[keyKubernetesZone] = n.Zone
	}
	for k, v := range n.Labels {
		if driver == dialect.DriverPure && !strings.Contains(k, "/") {
			out[prefixPure+k] = v
		}
	}
	for k, v := range n.Labels {
		if strings.HasPrefix(k, prefixTopology) {
			out[k] = v
		}
	}
	return out
}

// matches reports whether a node has all that a term asks for.
func matches(n Node, driver string, term map[string]string) bool {
	have := segments(n, driver)
	for k, v := range term {
		if have[k] != v {
			return false
		}
	}
	return true
}

// placementKey returns what placement calls a key of the driver's topology.
func placementKey(key string, nodes []Node) string {
	for _, n := range nodes {
		if _, label := n.Labels[key]; label {
			return key
		}
	}
	if key == keyKubernetesZone {
		return dialect.KeyZone
	}
	return strings.TrimPrefix(key, prefixPure)
}

// wish is what accessibility requirements come to.
type wish struct {
	// topology restricts where copies may lie; empty doesn't.
	topology []map[string]string
	// access is where the volume can be used; empty is everywhere.
	access []*pb.Topology
	near   string
}

// understand reads accessibility requirements. A volume can be used on every node, wherever its copies are. So terms that
// name a node, as they come for the node that a pod was given, ask for a copy near it at most. Terms that name
// something else, as they come from allowedTopologies, say where the copies, and the users, shall be.
func understand(r *pb.TopologyRequirement, nodes []Node, driver string) (wish, error) {
	var w wish
	if r == nil {
		return w, nil
	}
	for _, t := range r.GetPreferred() {
		if n := t.GetSegments()[dialect.KeyNode]; n != "" {
			w.near = n
			break
		}
	}
	terms := r.GetRequisite()
	if len(terms) == 0 {
		return w, nil
	}
	all, named := true, false
	reached := map[string]bool{}
	for _, t := range terms {
		for _, n := range nodes {
			if n.Storage && matches(n, driver, t.GetSegments()) {
				reached[n.Name] = true
			}
		}
		if _, node := t.GetSegments()[dialect.KeyNode]; node {
			named = true
		}
	}
	for _, n := range nodes {
		all = all && (!n.Storage || reached[n.Name])
	}
	if len(reached) == 0 {
		return w, status.Errorf(codes.ResourceExhausted, "no node with the storage role matches the accessibility requirements %s: see the labels and zones in `keelson node list -o yaml`", terms)
	}
	if all {
		return w, nil
	}
	w.access = terms
	if named {
		return w, nil
	}
	for _, t := range terms {
		term := map[string]string{}
		for k, v := range t.GetSegments() {
			term[placementKey(k, nodes)] = v
		}
		w.topology = append(w.topology, term)
	}
	return w, nil
}

// sameTerms reports whether two lists have the same terms, in whatever order.
func sameTerms(a, b []map[string]string) bool {
	in := func(list []map[string]string, t map[string]string) bool {
		return slices.ContainsFunc(list, func(x map[string]string) bool { return maps.Equal(x, t) })
	}
	missing := func(list []map[string]string) func(map[string]string) bool {
		return func(t map[string]string) bool { return !in(list, t) }
	}
	return !slices.ContainsFunc(a, missing(b)) && !slices.ContainsFunc(b, missing(a))
}

// maxTerms bounds the terms that constraints multiply to.
const maxTerms = 256

// within combines terms with constraints that must be met as well.
func within(terms []map[string]string, constraints []dialect.Constraint) ([]map[string]string, error) {
	for _, c := range constraints {
		if len(terms) == 0 {
			terms = []map[string]string{{}}
		}
		var next []map[string]string
		for _, t := range terms {
			for _, v := range c.Values {
				if old, ok := t[c.Key]; ok && old != v {
					continue
				}
				both := maps.Clone(t)
				both[c.Key] = v
				next = append(next, both)
			}
		}
		if len(next) == 0 {
			return nil, status.Errorf(codes.InvalidArgument, "no value of %s that the class allows, %v, is among the allowed topologies", c.Key, c.Values)
		}
		if len(next) > maxTerms {
			return nil, status.Errorf(codes.InvalidArgument, "the class's lists of nodes, zones, racks and regions make %d combinations; %d is the limit", len(next), maxTerms)
		}
		terms = next
	}
	return terms, nil
}
