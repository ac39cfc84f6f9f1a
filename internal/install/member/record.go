package member

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// record is what the ConfigMap says.
type record struct {
	cluster, founder string
	metadata         []string
	since            time.Time
	nodes            map[string]string
	joined           map[string]bool // nodes that are members
	other            map[string]string
}

func parse(data map[string]string) record {
	r := record{nodes: map[string]string{}, joined: map[string]bool{}, other: map[string]string{}}
	for k, v := range data {
		switch {
		case k == fieldCluster:
			r.cluster = v
		case k == fieldFounder:
			r.founder = v
		case k == fieldMetadata:
			r.metadata = strings.Fields(v)
		case k == fieldSince:
			// What can't be read is as if nobody had asked yet.
			r.since, _ = time.Parse(time.RFC3339, v)
		case strings.HasPrefix(k, nodePrefix):
			name := strings.TrimPrefix(k, nodePrefix)
			r.nodes[name] = v
			r.joined[name] = strings.HasPrefix(v, "in ")
		default:
			r.other[k] = v
		}
	}
	return r
}

func (r *record) fields() map[string]string {
	out := maps.Clone(r.other)
	for k, v := range map[string]string{fieldCluster: r.cluster, fieldFounder: r.founder, fieldMetadata: strings.Join(r.metadata, " ")} {
		if v != "" {
			out[k] = v
		}
	}
	if !r.since.IsZero() && r.cluster == "" {
		out[fieldSince] = r.since.UTC().Format(time.RFC3339)
	}
	for n, v := range r.nodes {
		out[nodePrefix+n] = v
	}
	return out
}

// ask notes that a node without a cluster is there, and reports whether that is new.
func (r *record) ask(self Self) bool {
	mine := "new " + self.ID
	if r.nodes[self.Node] == mine {
		return false
	}
	if r.joined[self.Node] {
		// It lost its data directory. Its place among the metadata goes with what it was, when the cluster forgets that.
		r.joined[self.Node] = false
	}
	r.nodes[self.Node] = mine
	return true
}

func (r *record) names() []string { return slices.Collect(maps.Keys(r.nodes)) }

// newIDs are the nodes that ask to join, with their ids.
func (r *record) newIDs() map[string]string {
	out := map[string]string{}
	for n, v := range r.nodes {
		if id, ok := strings.CutPrefix(v, "new "); ok {
			out[n] = id
		}
	}
	return out
}
