package install_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/client-go/rest"

	"keelson.io/keelson/internal/install/member"
	"keelson.io/keelson/internal/kube"
)

// access is what a request to Kubernetes needs.
type access struct{ verb, group, resource, name, namespace string }

func (a access) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s.%s %s in %q", a.verb, a.resource, a.group, a.name, a.namespace))
}

// accessOf takes a request apart as Kubernetes does.
func accessOf(r *http.Request) access {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	var a access
	if parts[0] == "api" {
		parts = parts[2:]
	} else {
		a.group = parts[1]
		parts = parts[3:]
	}
	if parts[0] == "namespaces" && len(parts) > 2 {
		a.namespace = parts[1]
		parts = parts[2:]
	}
	a.resource = parts[0]
	if len(parts) > 1 {
		a.name = parts[1]
	}
	if len(parts) > 2 {
		a.resource += "/" + parts[2]
	}
	a.verb = map[string]string{"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[r.Method]
	if a.verb == "get" && a.name == "" {
		a.verb = "list"
	}
	if r.URL.Query().Get("watch") == "true" || r.URL.Query().Get("watch") == "1" {
		a.verb = "watch"
	}
	return a
}

// recorder is an API server that answers nothing of use, and remembers what was asked.
type recorder struct {
	*httptest.Server
	mu   sync.Mutex
	seen map[access]bool
}

func newRecorder(t *testing.T) *recorder {
	r := &recorder{seen: map[access]bool{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.seen[accessOf(q)] = true
		w.Header().Set("Content-Type", "application/json")
		if q.Method == http.MethodPut {
			// So that what would be replaced is made, too.
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","message":"none","code":404}`)
			return
		}
		fmt.Fprint(w, `{}`)
	}))
	t.Cleanup(r.Close)
	return r
}

// exercise calls every method of v with something: what comes back is of no interest.
func exercise(v reflect.Value, namespace string) {
	for i := range v.NumMethod() {
		m := v.Method(i)
		// What users have is in their namespaces; what guards it is in Keelson's.
		place := "x"
		if strings.Contains(v.Type().Method(i).Name, "Budget") {
			place = namespace
		}
		var in []reflect.Value
		for j := range m.Type().NumIn() {
			in = append(in, something(m.Type().In(j), place, namespace))
		}
		m.Call(in)
	}
}

func something(t reflect.Type, text, namespace string) reflect.Value {
	switch {
	case t == reflect.TypeFor[context.Context]():
		return reflect.ValueOf(context.Background())
	case t.Kind() == reflect.String:
		return reflect.ValueOf(text).Convert(t)
	case t.Kind() == reflect.Func:
		return reflect.MakeFunc(t, func([]reflect.Value) []reflect.Value { return []reflect.Value{reflect.Zero(t.Out(0))} })
	case t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct:
		v := reflect.New(t.Elem())
		for name, text := range map[string]string{"Name": "x", "Namespace": namespace} {
			if f := v.Elem().FieldByName(name); f.IsValid() && f.Kind() == reflect.String {
				f.SetString(text)
			}
		}
		return v
	}
	return reflect.Zero(t)
}

// rules are those of a ServiceAccount: everywhere, and in the release's namespace.
func rules(t *testing.T, all map[string]object, name string) (wide, own []rbacv1.PolicyRule) {
	t.Helper()
	wide = decode[rbacv1.ClusterRole](t, all, "ClusterRole "+name).Rules
	if _, ok := all["Role "+name]; ok {
		own = decode[rbacv1.Role](t, all, "Role "+name).Rules
	}
	return wide, own
}

// permits reports whether a rule permits an access, and marks what was used of it.
func permits(r rbacv1.PolicyRule, a access, used map[string]bool) bool {
	if !slices.Contains(r.APIGroups, a.group) || !slices.Contains(r.Resources, a.resource) || !slices.Contains(r.Verbs, a.verb) ||
		len(r.ResourceNames) > 0 && !slices.Contains(r.ResourceNames, a.name) {
		return false
	}
	used[fmt.Sprint(a.group, a.resource, a.verb)] = true
	return true
}

// TestServerMayDoWhatItDoesAndNothingElse compares the rules of the chart with what the code asks of Kubernetes.
func TestServerMayDoWhatItDoesAndNothingElse(t *testing.T) {
	r := newRecorder(t)
	kubeconfig := filepath.Join(t.TempDir(), "config")
	text := "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{name: x, context: {cluster: x, user: x}}]\nusers: [{name: x}]\nclusters: [{name: x, cluster: {server: '" + r.URL + "'}}]\n"
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	api, err := kube.Connect(kubeconfig, "test")
	if err != nil {
		t.Fatal(err)
	}
	exercise(reflect.ValueOf(api), options.Namespace)
	joins, err := member.NewKube(&rest.Config{Host: r.URL}, options.Namespace, "keelson")
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for _, name := range []string{member.SecretJoin, member.SecretViewer} {
		_, _ = joins.Secret(ctx, name)
		_ = joins.PutSecret(ctx, name, nil)
	}
	_, _, _ = joins.Record(ctx)
	_ = joins.PutRecord(ctx, nil, "")
	_ = joins.PutRecord(ctx, nil, "7")
	_, _ = joins.Desired(ctx)
	_, _ = joins.Node(ctx, "x")
	compare(t, r, "keelson-server")
}

func TestUninstallMayDoWhatItDoesAndNothingElse(t *testing.T) {
	r := newRecorder(t)
	k, err := member.NewKube(&rest.Config{Host: r.URL}, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Users(context.Background()); err != nil {
		t.Fatal(err)
	}
	compare(t, r, "keelson-uninstall")
}

// compare what was asked with what a ServiceAccount may do.
func compare(t *testing.T, r *recorder, account string) {
	t.Helper()
	wide, own := rules(t, objects(t, ""), account)
	if len(r.seen) == 0 {
		t.Fatal("nothing was asked")
	}
	usedWide, usedOwn := map[string]bool{}, map[string]bool{}
	for a := range r.seen {
		// Both are looked at: what one permits needn't be in the other.
		ok := slices.ContainsFunc(own, func(x rbacv1.PolicyRule) bool { return a.namespace == options.Namespace && permits(x, a, usedOwn) })
		if !ok {
			ok = slices.ContainsFunc(wide, func(x rbacv1.PolicyRule) bool { return permits(x, a, usedWide) })
		}
		if !ok {
			t.Errorf("%s isn't permitted to %s", account, a)
		}
	}
	for what, list := range map[string][]rbacv1.PolicyRule{"ClusterRole": wide, "Role": own} {
		used := usedWide
		if what == "Role" {
			used = usedOwn
		}
		for _, x := range list {
			for _, g := range x.APIGroups {
				for _, res := range x.Resources {
					for _, v := range x.Verbs {
						if !used[fmt.Sprint(g, res, v)] {
							t.Errorf("%s %s permits to %s %s.%s, and nothing does", what, account, v, res, g)
						}
					}
				}
			}
		}
	}
}
