package kube

import (
	"fmt"
	"testing"
)

// cordon does what `kubectl cordon` and `kubectl uncordon` do.
func (r *rig) cordon(node string, is bool) {
	r.t.Helper()
	// Kubernetes itself taints such a node, which is of no concern here.
	r.ok(r.PatchNode(r.t.Context(), "kube-"+node, fmt.Appendf(nil, `{"spec":{"unschedulable":%v}}`, is)))
}

// person does what `keelson node cordon` does.
func (r *rig) person(node string, cordoned bool) {
	r.t.Helper()
	n, err := r.store.Node(r.t.Context(), node)
	r.ok(err)
	n.Value.Cordoned = cordoned
	_, err = r.store.PutNode(r.t.Context(), n.Value, n.Rev)
	r.ok(err)
}

func (r *rig) closed(node string) bool {
	r.t.Helper()
	n, err := r.store.Node(r.t.Context(), node)
	r.ok(err)
	return n.Value.Closed()
}

func testCordon(t *testing.T, r *rig) {
	r.cordon("n1", true) // before anybody leads
	stop := r.lead()
	r.await("n1 is closed", func() bool { return r.closed("n1") })
	r.cordon("n2", true)
	r.await("n2 is closed", func() bool { return r.closed("n2") })

	r.person("n2", true)
	r.cordon("n2", false)
	r.cordon("n1", false)
	r.await("n1 is open again", func() bool { return !r.closed("n1") })
	r.await("n2's mark is taken back", func() bool {
		n, err := r.store.Node(t.Context(), "n2")
		r.ok(err)
		return !n.Value.Unschedulable
	})
	if !r.closed("n2") {
		t.Error("what a person cordoned was undone by Kubernetes")
	}
	r.person("n2", false)

	r.cordon("n3", true)
	r.await("n3 is closed", func() bool { return r.closed("n3") })
	stop()
	r.cordon("n3", false)
	r.lead()
	r.await("a new leader opens what was uncordoned meanwhile", func() bool { return !r.closed("n3") })
	if r.closed("n1") || r.closed("n2") {
		t.Error("nodes are closed that nobody cordoned")
	}
}
