package member

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// serve answers requests with objects written as YAML, by path and query.
func serve(t *testing.T, answers map[string]string) *Kube {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := answers[r.Method+" "+r.URL.RequestURI()]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			_ = json.NewEncoder(w).Encode(metav1.Status{Status: "Failure", Reason: metav1.StatusReasonNotFound, Code: 404, Message: "no " + r.URL.String()})
			return
		}
		b, err := yaml.YAMLToJSON([]byte(text))
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(b)
	}))
	t.Cleanup(s.Close)
	k, err := NewKube(&rest.Config{Host: s.URL}, "ns", "keelson")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestUsersAreFoundOnEveryPage(t *testing.T) {
	k := serve(t, map[string]string{
		"GET /api/v1/persistentvolumes?limit=500": `
metadata: {continue: more}
items:
- {spec: {csi: {driver: csi.keelson.io}, claimRef: {namespace: app, name: data}}}
- {spec: {csi: {driver: other.example.com}, claimRef: {namespace: app, name: foreign}}}
- {spec: {csi: {driver: csi.keelson.io}}}`,
		"GET /api/v1/persistentvolumes?continue=more&limit=500": `
items:
- {spec: {csi: {driver: pure-csi}, claimRef: {namespace: app, name: db-scratch}}}
- {spec: {portworxVolume: {volumeID: a}, claimRef: {namespace: old, name: data}}}`,
		"GET /api/v1/pods?limit=500": `
metadata: {continue: p2}
items:
- {metadata: {namespace: app, name: db}, spec: {volumes: [{name: d, persistentVolumeClaim: {claimName: data}}, {name: scratch, ephemeral: {}}]}}
- {metadata: {namespace: app, name: done}, spec: {volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]}, status: {phase: Succeeded}}
- {metadata: {namespace: app, name: foreign}, spec: {volumes: [{name: d, persistentVolumeClaim: {claimName: foreign}}, {name: x, csi: {driver: other.example.com}}]}}`,
		"GET /api/v1/pods?continue=p2&limit=500": `
items:
- {metadata: {namespace: other, name: db}, spec: {volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]}}
- {metadata: {namespace: old, name: px}, spec: {volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]}}
- {metadata: {namespace: app, name: inline}, spec: {volumes: [{name: tmp, csi: {driver: csi.keelson.io}}]}}`,
	})
	got, err := k.Users(context.Background())
	want := map[string][]string{"app/db": {"data", "db-scratch"}, "old/px": {"data"}, "app/inline": {"tmp"}}
	if err != nil || !maps.EqualFunc(got, want, slices.Equal) {
		t.Fatalf("%v, %v, want %v", got, err, want)
	}
}

func TestKubeSaysWhatItWasTold(t *testing.T) {
	k := serve(t, map[string]string{
		"GET /api/v1/namespaces/ns/configmaps/keelson":              "{metadata: {resourceVersion: '7'}, data: {cluster: c1}}",
		"GET /api/v1/namespaces/ns/secrets/keelson":                 "{data: {token: dG9rZW4=}}",
		"GET /apis/apps/v1/namespaces/ns/daemonsets/keelson-server": "{status: {desiredNumberScheduled: 3}}",
		"GET /api/v1/nodes/n1":                                      "{metadata: {labels: {topology.kubernetes.io/zone: z1}}}",
		"POST /api/v1/namespaces/ns/secrets":                        "{}",
	})
	ctx := context.Background()
	if data, version, err := k.Record(ctx); err != nil || version != "7" || data["cluster"] != "c1" {
		t.Errorf("%v, %s, %v", data, version, err)
	}
	if s, err := k.Secret(ctx, "keelson"); err != nil || s["token"] != "token" {
		t.Errorf("%v, %v", s, err)
	}
	if s, err := k.Secret(ctx, "none"); err != nil || s != nil {
		t.Errorf("%v, %v", s, err)
	}
	if n, err := k.Desired(ctx); err != nil || n != 3 {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := k.Node(ctx, "n1"); err != nil || n.Labels[corev1.LabelTopologyZone] != "z1" {
		t.Errorf("%v, %v", n, err)
	}
	if err := k.PutSecret(ctx, "fresh", map[string]string{"a": "b"}); err != nil {
		t.Errorf("a secret that isn't there wasn't made: %v", err)
	}
	if err := k.PutRecord(ctx, nil, "7"); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), "no /api/v1") {
		t.Errorf("%v", err)
	}
	empty := serve(t, nil)
	if data, version, err := empty.Record(ctx); err != nil || version != "" || len(data) > 0 {
		t.Errorf("%v, %q, %v", data, version, err)
	}
}
