package csi_test

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.io/keelson/internal/csi"
	"keelson.io/keelson/internal/csi/csitest"
)

func TestMemoryKeepsTheContract(t *testing.T) {
	m := csitest.NewMemory(nil)
	csitest.Contract(t, m.At("n1"), m.At("n2"))
}

func TestCreateIsIdempotent(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	req := request("pvc-1", 100)
	req.Parameters = map[string]string{"replicas": "3", "media": "ssd", "createOptions": "-q", "replcas": "2"}
	first := r.make(req)
	if first.VolumeId != "pvc-1" || first.CapacityBytes != 100<<20 || first.VolumeContext["createOptions"] != "-q" || first.VolumeContext["fsType"] != "ext4" {
		t.Errorf("%+v", first)
	}
	if w := first.VolumeContext["warnings"]; !strings.Contains(w, "replcas") {
		t.Errorf("the misspelt key isn't in the warnings %q", w)
	}
	if again := r.make(req); again.String() != first.String() {
		t.Errorf("the second answer %v isn't the first, %v", again, first)
	}
	for what, change := range map[string]func(q *pb.CreateVolumeRequest){
		"size":     func(q *pb.CreateVolumeRequest) { q.CapacityRange.RequiredBytes = 200 << 20 },
		"limit":    func(q *pb.CreateVolumeRequest) { q.CapacityRange = &pb.CapacityRange{LimitBytes: 50 << 20} },
		"replicas": func(q *pb.CreateVolumeRequest) { q.Parameters["replicas"] = "2" },
		"media":    func(q *pb.CreateVolumeRequest) { delete(q.Parameters, "media") },
		"selector": func(q *pb.CreateVolumeRequest) { q.Parameters["nodeSelector"] = "rack=rack-1" },
	} {
		other := request("pvc-1", 100)
		other.Parameters = maps.Clone(req.Parameters)
		change(other)
		_, err := r.CreateVolume(t.Context(), other)
		refused(t, what, err, codes.AlreadyExists, "pvc-1")
	}
	must(t, r.deleteVolume("pvc-1"), r.deleteVolume("pvc-1"), r.deleteVolume("never-there"), r.deleteVolume("No/Such*Name"))
}

func TestCreateAtOnce(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	var wg sync.WaitGroup
	var mu sync.Mutex
	answers := map[codes.Code]int{}
	for range 20 {
		wg.Go(func() {
			_, err := r.CreateVolume(t.Context(), request("pvc-1", 100))
			mu.Lock()
			defer mu.Unlock()
			answers[status.Code(err)]++
		})
	}
	wg.Wait()
	if answers[codes.OK] == 0 || answers[codes.OK]+answers[codes.Aborted] != 20 {
		t.Errorf("%v", answers)
	}
	if n := len(r.cluster.Requests()); n != 1 {
		t.Errorf("%d volumes were asked for", n)
	}
}

func TestCreateRefuses(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	for what, x := range map[string]struct {
		change func(q *pb.CreateVolumeRequest)
		code   codes.Code
		words  []string
	}{
		"no name":          {func(q *pb.CreateVolumeRequest) { q.Name = "" }, codes.InvalidArgument, []string{"name"}},
		"no capabilities":  {func(q *pb.CreateVolumeRequest) { q.VolumeCapabilities = nil }, codes.InvalidArgument, []string{"capabilities"}},
		"many nodes":       {func(q *pb.CreateVolumeRequest) { q.VolumeCapabilities[0] = mounted(rwx, "") }, codes.InvalidArgument, []string{"MULTI_NODE_MULTI_WRITER", "ReadWriteOnce"}},
		"file system":      {func(q *pb.CreateVolumeRequest) { q.VolumeCapabilities[0] = mounted(rwo, "btrfs") }, codes.InvalidArgument, []string{"btrfs", "ext4, xfs"}},
		"no access type":   {func(q *pb.CreateVolumeRequest) { q.VolumeCapabilities[0].AccessType = nil }, codes.InvalidArgument, nil},
		"bad value":        {func(q *pb.CreateVolumeRequest) { q.Parameters = map[string]string{"replicas": "9"} }, codes.InvalidArgument, []string{"replicas", "9", "1 to 5"}},
		"mutable":          {func(q *pb.CreateVolumeRequest) { q.MutableParameters = map[string]string{"iops": "9"} }, codes.InvalidArgument, []string{"iops"}},
		"from a snapshot":  {func(q *pb.CreateVolumeRequest) { q.VolumeContentSource = &pb.VolumeContentSource{} }, codes.InvalidArgument, []string{"dataSource"}},
		"beyond capacity":  {func(q *pb.CreateVolumeRequest) { q.CapacityRange.RequiredBytes = 60 << 40 }, codes.ResourceExhausted, []string{"replicas"}},
		"beyond the limit": {func(q *pb.CreateVolumeRequest) { q.CapacityRange.RequiredBytes = 65 << 40 }, codes.OutOfRange, []string{"64Ti"}},
		"no range":         {func(q *pb.CreateVolumeRequest) { q.CapacityRange.LimitBytes = 1 << 20 }, codes.InvalidArgument, []string{"range"}},
		"small xfs": {func(q *pb.CreateVolumeRequest) {
			q.CapacityRange.LimitBytes = 100 << 20
			q.VolumeCapabilities[0] = mounted(rwo, "xfs")
		}, codes.OutOfRange, []string{"300Mi"}},
		"nowhere": {func(q *pb.CreateVolumeRequest) {
			q.AccessibilityRequirements = &pb.TopologyRequirement{Requisite: []*pb.Topology{{Segments: map[string]string{"topology.keelson.io/zone": "moon"}}}}
		}, codes.ResourceExhausted, []string{"moon"}},
	} {
		q := request("pvc-1", 100)
		x.change(q)
		_, err := r.CreateVolume(t.Context(), q)
		refused(t, what, err, x.code, x.words...)
	}
	if v, err := r.ListVolumes(t.Context(), &pb.ListVolumesRequest{}); err != nil || len(v.Entries) > 0 {
		t.Errorf("something was made: %v, %v", v, err)
	}
}

func TestSizes(t *testing.T) {
	r := newRig(t, "pure-csi", false)
	for name, x := range map[string]struct {
		required, limit, want int64
		c                     *pb.VolumeCapability
	}{
		"xfs-min":  {1 << 20, 0, 300 << 20, mounted(rwo, "")}, // the dialect's default is xfs
		"ext4-min": {1, 0, 4 << 20, mounted(rwo, "ext4")},
		"block":    {5<<20 + 1, 0, 5<<20 + 4096, raw(rwo)},
		"default":  {0, 0, 1 << 30, mounted(rwo, "")},
		"limited":  {0, 500<<20 + 1, 500 << 20, mounted(rwo, "")},
	} {
		v := r.make(&pb.CreateVolumeRequest{Name: name, VolumeCapabilities: []*pb.VolumeCapability{x.c}, CapacityRange: &pb.CapacityRange{RequiredBytes: x.required, LimitBytes: x.limit}})
		if v.CapacityBytes != x.want {
			t.Errorf("%s: %d bytes, want %d", name, v.CapacityBytes, x.want)
		}
	}
}

func TestNamesThatVolumesCantHave(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	seen := map[string]bool{}
	for _, name := range []string{"a b", "a_b", "A B", strings.Repeat("x", 128), strings.Repeat("x", 127) + "y", "ü", "-", "pvc-ok"} {
		v := r.make(request(name, 100))
		if seen[v.VolumeId] || len(v.VolumeId) > 63 {
			t.Errorf("%q became %q", name, v.VolumeId)
		}
		seen[v.VolumeId] = true
		if again := r.make(request(name, 100)); again.VolumeId != v.VolumeId {
			t.Errorf("%q became %q, then %q", name, v.VolumeId, again.VolumeId)
		}
	}
	if !seen["pvc-ok"] {
		t.Error("a name that could be kept wasn't")
	}
}

func TestDeleteOfAnAttachedVolume(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	r.make(request("pvc-1", 100))
	if _, err := r.cluster.At("n2").Attach(t.Context(), "pvc-1"); err != nil {
		t.Fatal(err)
	}
	refused(t, "attached to a living node", r.deleteVolume("pvc-1"), codes.FailedPrecondition, "n2")
	r.cluster.SetNode("n2", func(n *csi.Node) { n.Alive = false })
	must(t, r.deleteVolume("pvc-1"))
	if list, err := r.cluster.At("n1").Volumes(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestDeletingVolume(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	r.make(request("pvc-1", 100))
	r.cluster.Change("pvc-1", func(v *csi.Volume) { v.Deleting = true })
	_, err := r.CreateVolume(t.Context(), request("pvc-1", 100))
	refused(t, "made anew", err, codes.Aborted, "being deleted")
	must(t, r.deleteVolume("pvc-1"))
	_, err = r.ControllerGetVolume(t.Context(), &pb.ControllerGetVolumeRequest{VolumeId: "pvc-1"})
	refused(t, "shown", err, codes.NotFound)
}

func TestListInPages(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	for _, n := range []string{"c", "a", "e", "b", "d"} {
		r.make(request(n, 100))
	}
	var names []string
	token := ""
	for page := 0; ; page++ {
		got, err := r.ListVolumes(t.Context(), &pb.ListVolumesRequest{MaxEntries: 2, StartingToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range got.Entries {
			names = append(names, e.Volume.VolumeId)
		}
		if page == 0 {
			must(t, r.deleteVolume("b")) // the last that was shown
			r.make(request("bb", 100))   // one that comes next
		}
		if token = got.NextToken; token == "" {
			break
		}
	}
	if want := []string{"a", "b", "bb", "c", "d", "e"}; !slices.Equal(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
	_, err := r.ListVolumes(t.Context(), &pb.ListVolumesRequest{MaxEntries: -1})
	refused(t, "negative", err, codes.InvalidArgument)
	_, err = r.ListVolumes(t.Context(), &pb.ListVolumesRequest{StartingToken: "x"})
	refused(t, "token", err, codes.Aborted)
}

func TestCondition(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	r.make(request("pvc-1", 100))
	r.cluster.Change("pvc-1", func(v *csi.Volume) { v.Healthy, v.Condition = false, "a replica is Stale" })
	got, err := r.ControllerGetVolume(t.Context(), &pb.ControllerGetVolumeRequest{VolumeId: "pvc-1"})
	if err != nil {
		t.Fatal(err)
	}
	if c := got.Status.VolumeCondition; !c.Abnormal || c.Message != "a replica is Stale" {
		t.Errorf("%v", c)
	}
}

func TestValidate(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	r.make(request("pvc-1", 100))
	ask := func(c *pb.VolumeCapability, params map[string]string) *pb.ValidateVolumeCapabilitiesResponse {
		t.Helper()
		got, err := r.ValidateVolumeCapabilities(t.Context(), &pb.ValidateVolumeCapabilitiesRequest{VolumeId: "pvc-1", VolumeCapabilities: []*pb.VolumeCapability{c}, Parameters: params})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, c := range []*pb.VolumeCapability{mounted(rwo, "xfs"), mounted(rwop, ""), mounted(rox, ""), raw(rwo)} {
		if got := ask(c, nil); got.Confirmed == nil {
			t.Errorf("%v: %v", c, got)
		}
	}
	if got := ask(mounted(rwx, ""), nil); got.Confirmed != nil || got.Message == "" {
		t.Errorf("%v", got)
	}
	if got := ask(raw(rwo), map[string]string{"replicas": "x"}); got.Confirmed != nil || !strings.Contains(got.Message, "replicas") {
		t.Errorf("%v", got)
	}
}

func TestTopology(t *testing.T) {
	segments := func(kv ...string) *pb.Topology {
		s := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			s[kv[i]] = kv[i+1]
		}
		return &pb.Topology{Segments: s}
	}
	node := func(n string) *pb.Topology {
		return segments("topology.keelson.io/node", "n"+n, "topology.keelson.io/zone", "z"+n)
	}
	racks := []*pb.Topology{segments("topology.purestorage.com/rack", "rack-0"), segments("topology.purestorage.com/rack", "rack-1")}
	for what, x := range map[string]struct {
		driver   string
		params   map[string]string
		req      *pb.TopologyRequirement
		topology []map[string]string
		near     string
		access   []*pb.Topology
	}{
		"none":       {driver: "csi.keelson.io"},
		"every node": {driver: "csi.keelson.io", req: &pb.TopologyRequirement{Requisite: []*pb.Topology{node("1"), node("2"), node("3")}, Preferred: []*pb.Topology{node("2"), node("1")}}, near: "n2"},
		"two nodes": {driver: "csi.keelson.io", req: &pb.TopologyRequirement{Requisite: []*pb.Topology{node("1"), node("3")}, Preferred: []*pb.Topology{node("3")}}, near: "n3",
			access: []*pb.Topology{node("1"), node("3")}},
		"the racks of a class": {driver: "pure-csi", req: &pb.TopologyRequirement{Requisite: racks, Preferred: racks},
			topology: []map[string]string{{"rack": "rack-0"}, {"rack": "rack-1"}}, access: racks},
		"zones of Kubernetes": {driver: "csi.keelson.io", req: &pb.TopologyRequirement{Requisite: []*pb.Topology{segments("topology.kubernetes.io/zone", "z1"), segments("topology.kubernetes.io/zone", "z2")}},
			topology: []map[string]string{{"topology.keelson.io/zone": "z1"}, {"topology.keelson.io/zone": "z2"}},
			access:   []*pb.Topology{segments("topology.kubernetes.io/zone", "z1"), segments("topology.kubernetes.io/zone", "z2")}},
		"lists of Portworx": {driver: "pxd.portworx.com", params: map[string]string{"nodes": "n1,n2", "racks": "rack-1"},
			topology: []map[string]string{{"rack": "rack-1", "topology.keelson.io/node": "n1"}, {"rack": "rack-1", "topology.keelson.io/node": "n2"}}},
	} {
		r := newRig(t, x.driver, false)
		q := request("pvc-1", 300)
		q.AccessibilityRequirements, q.Parameters = x.req, x.params
		v := r.make(q)
		asked := r.cluster.Requests()[0]
		sorted := func(list []map[string]string) []map[string]string {
			return slices.SortedFunc(slices.Values(list), func(a, b map[string]string) int {
				return strings.Compare(strings.Join(slices.Sorted(maps.Values(a)), ","), strings.Join(slices.Sorted(maps.Values(b)), ","))
			})
		}
		if !reflect.DeepEqual(sorted(asked.Topology), sorted(x.topology)) || asked.Near != x.near {
			t.Errorf("%s: topology %v near %q, want %v near %q", what, asked.Topology, asked.Near, x.topology, x.near)
		}
		if len(v.AccessibleTopology) != len(x.access) {
			t.Errorf("%s: accessible from %v, want %v", what, v.AccessibleTopology, x.access)
		}
		for i := range x.access {
			if len(v.AccessibleTopology) == len(x.access) && !maps.Equal(v.AccessibleTopology[i].Segments, x.access[i].Segments) {
				t.Errorf("%s: accessible from %v, want %v", what, v.AccessibleTopology[i], x.access[i])
			}
		}
	}
}

func TestNodeInfo(t *testing.T) {
	for driver, want := range map[string]map[string]string{
		"csi.keelson.io": {"topology.keelson.io/node": "n1", "topology.keelson.io/zone": "z1", "topology.kubernetes.io/zone": "z1", "topology.example.org/row": "7"},
		"pure-csi":       {"topology.keelson.io/node": "n1", "topology.keelson.io/zone": "z1", "topology.kubernetes.io/zone": "z1", "topology.example.org/row": "7", "topology.purestorage.com/rack": "rack-0"},
	} {
		r := newRig(t, driver, false)
		r.cluster.SetNode("n1", func(n *csi.Node) { n.Labels["topology.example.org/row"] = "7" })
		got, err := r.NodeGetInfo(t.Context(), &pb.NodeGetInfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if got.NodeId != "n1" || got.MaxVolumesPerNode != csi.DefaultMaxVolumes || !maps.Equal(got.AccessibleTopology.Segments, want) {
			t.Errorf("%s: %v", driver, got)
		}
	}
}

func TestCapacity(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	r.cluster.SetNode("n3", func(n *csi.Node) { n.Labels["disk"] = "fast" })
	for what, x := range map[string]struct {
		params    map[string]string
		segments  map[string]string
		c         *pb.VolumeCapability
		all, most int64 // GiB
	}{
		"two copies":         {nil, nil, nil, 30, 20},
		"three copies":       {map[string]string{"replicas": "3"}, nil, nil, 20, 20},
		"one copy":           {map[string]string{"replicas": "1"}, nil, nil, 60, 20},
		"used on a node":     {nil, map[string]string{"topology.keelson.io/node": "n1", "topology.keelson.io/zone": "z1"}, nil, 30, 20},
		"in a zone":          {nil, map[string]string{"topology.keelson.io/zone": "z1"}, nil, 0, 0},
		"one copy in a zone": {map[string]string{"replicas": "1"}, map[string]string{"topology.keelson.io/zone": "z1"}, nil, 20, 20},
		"nowhere":            {nil, map[string]string{"topology.keelson.io/node": "n9"}, nil, 0, 0},
		"no such media":      {map[string]string{"media": "hdd"}, nil, nil, 0, 0},
		"selector":           {map[string]string{"replicas": "1", "nodeSelector": "disk=fast"}, nil, nil, 20, 20},
		"not possible":       {nil, nil, mounted(rwx, ""), 0, 0},
	} {
		q := &pb.GetCapacityRequest{Parameters: x.params}
		if x.segments != nil {
			q.AccessibleTopology = &pb.Topology{Segments: x.segments}
		}
		if x.c != nil {
			q.VolumeCapabilities = []*pb.VolumeCapability{x.c}
		}
		got, err := r.GetCapacity(t.Context(), q)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if got.AvailableCapacity != x.all<<30 || got.MaximumVolumeSize.GetValue() != x.most<<30 {
			t.Errorf("%s: %v, want %d and %d GiB", what, got, x.all, x.most)
		}
	}
	_, err := r.GetCapacity(t.Context(), &pb.GetCapacityRequest{Parameters: map[string]string{"replicas": "x"}})
	refused(t, "bad parameter", err, codes.InvalidArgument, "replicas")
}

func TestMetadataAway(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	r.cluster.SetAway(&csi.Problem{Kind: csi.ErrUnavailable, Text: "the metadata doesn't answer"})
	p, err := r.Probe(t.Context(), &pb.ProbeRequest{})
	if err != nil || p.Ready.GetValue() {
		t.Errorf("ready before the node was seen: %v, %v", p, err)
	}
	_, err = r.CreateVolume(t.Context(), request("pvc-1", 100))
	refused(t, "create", err, codes.Unavailable, "metadata")
	r.cluster.SetAway(errors.New("nobody knows"))
	_, err = r.CreateVolume(t.Context(), request("pvc-1", 100))
	refused(t, "create", err, codes.Internal)
	r.cluster.SetAway(nil)
	if p, err := r.Probe(t.Context(), &pb.ProbeRequest{}); err != nil || !p.Ready.GetValue() {
		t.Errorf("not ready: %v, %v", p, err)
	}
	r.cluster.SetAway(errors.New("away"))
	if p, err := r.Probe(t.Context(), &pb.ProbeRequest{}); err != nil || !p.Ready.GetValue() {
		t.Errorf("not ready when the metadata is away for a while: %v, %v", p, err)
	}
	r.cluster.SetAway(nil)
}
