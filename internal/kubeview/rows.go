package kubeview

import (
	"cmp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// driver is Keelson's own name in Kubernetes; aliases are others under which it may be registered, and somebody else too.
const driver = "csi.keelson.io"

var aliases = []string{"pure-csi", "pxd.portworx.com"}

// inTree are the names that volumes of before CSI have, by the driver that serves them.
const inTreePortworx = "kubernetes.io/portworx-volume"

// key names an object in a namespace.
type key struct{ namespace, name string }

// index is what a cluster has, as rows are made of it.
type index struct {
	*objects
	ours    map[string]bool // drivers that are Keelson's
	classes map[string]*storagev1.StorageClass
	volumes map[string]*corev1.PersistentVolume
	claims  map[key]*corev1.PersistentVolumeClaim
	nodes   map[string]*corev1.Node
	drivers map[string]map[string]bool // of each node
	events  map[eventKey]*corev1.Event
}

// ownDrivers are the names under which Keelson is registered: an alias counts if a node has it with the same id as Keelson's own
// name. If nothing is registered, or may be read, only the own name counts.
func ownDrivers(list []storagev1.CSINode) map[string]bool {
	out := map[string]bool{driver: true}
	for _, n := range list {
		ids := map[string]string{}
		for _, d := range n.Spec.Drivers {
			ids[d.Name] = d.NodeID
		}
		for _, a := range aliases {
			if id, ok := ids[a]; ok && ids[driver] == id {
				out[a] = true
			}
		}
	}
	return out
}

func (o *objects) index() *index {
	x := &index{
		objects: o, ours: ownDrivers(o.csiNodes), classes: map[string]*storagev1.StorageClass{}, volumes: map[string]*corev1.PersistentVolume{},
		claims: map[key]*corev1.PersistentVolumeClaim{}, nodes: map[string]*corev1.Node{}, drivers: map[string]map[string]bool{}, events: newest(o.events),
	}
	for i := range o.classes {
		x.classes[o.classes[i].Name] = &o.classes[i]
	}
	for i := range o.volumes {
		x.volumes[o.volumes[i].Name] = &o.volumes[i]
	}
	for i := range o.claims {
		x.claims[key{o.claims[i].Namespace, o.claims[i].Name}] = &o.claims[i]
	}
	for i := range o.nodes {
		x.nodes[o.nodes[i].Name] = &o.nodes[i]
	}
	for _, n := range o.csiNodes {
		x.drivers[n.Name] = map[string]bool{}
		for _, d := range n.Spec.Drivers {
			x.drivers[n.Name][d.Name] = true
		}
	}
	return x
}

// driverOf returns the driver of a claim: its volume's, that which Kubernetes has chosen, or that of its class.
func (x *index) driverOf(c *corev1.PersistentVolumeClaim) string {
	if pv := x.volumes[c.Spec.VolumeName]; pv != nil && c.Spec.VolumeName != "" {
		if pv.Spec.CSI != nil {
			return pv.Spec.CSI.Driver
		}
		if pv.Spec.PortworxVolume != nil {
			return "pxd.portworx.com"
		}
		return ""
	}
	d := cmp.Or(c.Annotations["volume.kubernetes.io/storage-provisioner"], c.Annotations["volume.beta.kubernetes.io/storage-provisioner"])
	if d == "" && c.Spec.StorageClassName != nil {
		if class := x.classes[*c.Spec.StorageClassName]; class != nil {
			d = class.Provisioner
		}
	}
	if d == inTreePortworx {
		d = "pxd.portworx.com"
	}
	return d
}

// rows are the rows of a cluster, in no order.
func (o *objects) rows(opts Options) []Row {
	x := o.index()
	var out []Row
	used := map[key]bool{}
	for i := range o.pods {
		p := &o.pods[i]
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, v := range p.Spec.Volumes {
			switch {
			case v.CSI != nil && x.ours[v.CSI.Driver] && opts.Selector == "":
				out = append(out, x.inline(p, v, opts))
			case claimName(p, v) != "":
				k := key{p.Namespace, claimName(p, v)}
				c := x.claims[k]
				if c == nil || !x.ours[x.driverOf(c)] {
					continue
				}
				used[k] = true
				out = append(out, x.row(c, p, opts))
			}
		}
	}
	for i := range o.claims {
		c := &o.claims[i]
		if x.ours[x.driverOf(c)] && !used[key{c.Namespace, c.Name}] {
			out = append(out, x.row(c, nil, opts))
		}
	}
	if opts.Namespace == "" && opts.Selector == "" {
		out = append(out, x.unclaimed(opts)...)
	}
	return out
}

// claimName is the claim of a pod's volume, "" if it is none.
func claimName(p *corev1.Pod, v corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return p.Name + "-" + v.Name
	}
	return ""
}

// row is a claim and the pod that uses it, if one does.
func (x *index) row(c *corev1.PersistentVolumeClaim, p *corev1.Pod, opts Options) Row {
	r := Row{
		Namespace: c.Namespace, Claim: c.Name, Volume: c.Spec.VolumeName, Status: string(c.Status.Phase), Driver: x.driverOf(c),
		Access: modes(c.Spec.AccessModes), Created: c.CreationTimestamp.Time,
	}
	size := c.Status.Capacity.Storage()
	if size.IsZero() {
		size = c.Spec.Resources.Requests.Storage()
	}
	r.Size = size.String()
	if c.Spec.StorageClassName != nil {
		r.Class = *c.Spec.StorageClassName
	}
	r.Copies = x.copies(r.Class)
	if pv := x.volumes[c.Spec.VolumeName]; pv != nil && pv.Spec.CSI != nil {
		r.Handle = pv.Spec.CSI.VolumeHandle
	}
	if p != nil {
		r.Pod, r.Node = p.Name, p.Spec.NodeName
	}
	r.Health = x.health(c, p, r.Driver, opts.Now)
	return r
}

// inline is a volume that is written into a pod.
func (x *index) inline(p *corev1.Pod, v corev1.Volume, opts Options) Row {
	r := Row{
		Namespace: p.Namespace, Claim: "(" + v.Name + ")", Size: v.CSI.VolumeAttributes["size"], Pod: p.Name, Node: p.Spec.NodeName,
		Status: "Inline", Driver: v.CSI.Driver, Access: []string{"RWO"}, Created: p.CreationTimestamp.Time,
		Copies: cmp.Or(v.CSI.VolumeAttributes["replicas"], v.CSI.VolumeAttributes["repl"]),
	}
	if strings.EqualFold(v.CSI.VolumeAttributes["medium"], "memory") {
		r.Copies, r.Class = "", "memory"
	}
	r.Health = x.health(nil, p, r.Driver, opts.Now)
	return r
}

// unclaimed are the volumes that no claim has.
func (x *index) unclaimed(opts Options) (out []Row) {
	for i := range x.objects.volumes {
		pv := &x.objects.volumes[i]
		if pv.Spec.CSI == nil || !x.ours[pv.Spec.CSI.Driver] {
			continue
		}
		if ref := pv.Spec.ClaimRef; ref != nil {
			if c := x.claims[key{ref.Namespace, ref.Name}]; c != nil && c.Spec.VolumeName == pv.Name {
				continue
			}
		}
		r := Row{
			Volume: pv.Name, Handle: pv.Spec.CSI.VolumeHandle, Size: pv.Spec.Capacity.Storage().String(), Status: string(pv.Status.Phase), Class: pv.Spec.StorageClassName,
			Driver: pv.Spec.CSI.Driver, Access: modes(pv.Spec.AccessModes), Copies: x.copies(pv.Spec.StorageClassName), Created: pv.CreationTimestamp.Time,
		}
		if ref := pv.Spec.ClaimRef; ref != nil && pv.Status.Phase != corev1.VolumeBound {
			r.Namespace, r.Claim = ref.Namespace, ref.Name // that had it, or shall have it
		}
		r.Health = unclaimedHealth(pv)
		out = append(out, r)
	}
	return out
}

// copies is how many copies a class asks for.
func (x *index) copies(class string) string {
	c := x.classes[class]
	if c == nil {
		return ""
	}
	if n := cmp.Or(c.Parameters["replicas"], c.Parameters["repl"]); n != "" {
		return n
	}
	if c.Provisioner == driver || c.Provisioner == "pure-csi" {
		return "2"
	}
	return "1"
}

var shortModes = map[corev1.PersistentVolumeAccessMode]string{
	corev1.ReadWriteOnce: "RWO", corev1.ReadOnlyMany: "ROX", corev1.ReadWriteMany: "RWX", corev1.ReadWriteOncePod: "RWOP",
}

func modes(list []corev1.PersistentVolumeAccessMode) []string {
	out := make([]string, 0, len(list))
	for _, m := range list {
		out = append(out, cmp.Or(shortModes[m], string(m)))
	}
	slices.Sort(out)
	return out
}
