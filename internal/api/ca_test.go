package api

import (
	"context"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

// fakeRotation makes a CA that there isn't.
type fakeRotation struct{ made int }

func (f *fakeRotation) Next(string) (string, []byte, error) {
	f.made++
	return "next", []byte("certificates"), nil
}

func (f *fakeRotation) Keys() ([][]byte, error) { return nil, nil }

func TestRotateCA(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2")
	c.leases["n2"]()
	began := time.Now()
	for name, x := range map[string]struct {
		r    *pb.RotateCARequest
		want string
		code connect.Code
	}{
		"negative":    {&pb.RotateCARequest{KeepOld: durationpb.New(-time.Second)}, `keep-old "-1s" isn't valid: it must be from 0 to 8760h0m0s`, connect.CodeInvalidArgument},
		"too long":    {&pb.RotateCARequest{KeepOld: durationpb.New(366 * 24 * time.Hour)}, "from 0 to", connect.CodeInvalidArgument},
		"no node":     {&pb.RotateCARequest{Without: []string{"n9"}}, `without "n9" isn't valid: it must be a node: n1, n2`, connect.CodeInvalidArgument},
		"it is alive": {&pb.RotateCARequest{Without: []string{"n1"}}, "node n1 is alive", connect.CodeFailedPrecondition},
	} {
		_, err := c.clients["n1"].CA.RotateCA(ctx, x.r)
		if connect.CodeOf(err) != x.code || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if cl, err := c.store.Cluster(ctx); err != nil || cl.Value.CA != nil {
		t.Fatalf("%+v, %v", cl.Value.CA, err)
	}
	for i := range 2 {
		r, err := c.clients["n1"].CA.RotateCA(ctx, &pb.RotateCARequest{})
		if err != nil || r.Phase != string(spec.CATrust) || r.Next != "next" || c.rotation.made != 1 || len(r.Nodes) != 2 || r.Nodes[0].Waits == "" {
			t.Fatalf("call %d: %v, %v; %d made", i, r, err, c.rotation.made)
		}
	}
	r, err := c.clients["n1"].CA.RotateCA(ctx, &pb.RotateCARequest{Without: []string{"n2"}, KeepOld: durationpb.New(time.Hour)})
	if err != nil || c.rotation.made != 1 || r.Nodes[1].Waits != "" || r.KeepOld.AsTime().Before(began.Add(time.Hour)) {
		t.Fatalf("%v, %v", r, err)
	}
}
