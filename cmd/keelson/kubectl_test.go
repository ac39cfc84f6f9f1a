package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/kubeview"
)

// TestKubectl: what can be reached is shown, what can't be is named last, and the exit code says so.
func TestKubectl(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "persistentvolumes") {
			fmt.Fprint(w, `{"items":[{"metadata":{"name":"pv-1"},"spec":{"capacity":{"storage":"1Gi"},"csi":{"driver":"csi.keelson.io","volumeHandle":"db"}},"status":{"phase":"Available"}}]}`)
			return
		}
		fmt.Fprint(w, `{"items":[]}`)
	}))
	defer s.Close()
	config := filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf(`{"clusters":[{"name":"a","cluster":{"server":%q}},{"name":"b","cluster":{"server":"http://127.0.0.1:1"}}],
		"contexts":[{"name":"a","context":{"cluster":"a"}},{"name":"b","context":{"cluster":"b"}}]}`, s.URL)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(format string, contexts ...string) (stdout, stderr string, err error) {
		var out, told bytes.Buffer
		err = runKubectl(t.Context(), KubectlOptions{format: format, view: kubeview.Options{Kubeconfig: config, Contexts: contexts, Timeout: 5 * time.Second}}, &out, &told)
		return out.String(), told.String(), err
	}
	out, told, err := run("table")
	if exitCode(err) != exitUnavailable || !strings.Contains(told, "context b can't be reached (http://127.0.0.1:1): ") {
		t.Errorf("%v, told %s", err, told)
	}
	if f := strings.Fields(strings.Split(out, "\n")[1]); strings.Join(f, " ") != "a - - pv-1 1Gi - - ok" {
		t.Errorf("table:\n%s", out)
	}
	if out, told, err = run("wide", "a"); err != nil || told != "" || !strings.Contains(out, "db") {
		t.Errorf("%v, %s, %s", err, told, out)
	}
	out, _, err = run("json")
	var v kubeview.View
	if exitCode(err) != exitUnavailable || json.Unmarshal([]byte(out), &v) != nil || len(v.Rows) != 1 || len(v.Unreachable()) != 1 {
		t.Errorf("%v, %s", err, out)
	}
	var usage usageError
	for _, o := range []KubectlOptions{
		{format: "xml"}, {format: "table"}, {format: "table", all: true, view: kubeview.Options{Namespace: "x", Timeout: 1}}, {format: "table", view: kubeview.Options{Kubeconfig: "/nowhere", Timeout: 1}},
	} {
		if err := runKubectl(t.Context(), o, &bytes.Buffer{}, &bytes.Buffer{}); !errors.As(err, &usage) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestPluginIsKnownByItsName(t *testing.T) {
	for name, want := range map[string]bool{"/usr/local/bin/kubectl-keelson": true, "kubectl-keelson": true, "keelson": false, "/opt/kubectl-keelson/keelson": false} {
		if isPlugin(name) != want {
			t.Errorf("%s: %t", name, !want)
		}
	}
	if c := newPluginCommand(); !strings.Contains(c.Example, "kubectl keelson --context") || c.Name() != "kubectl" {
		t.Errorf("%s %s", c.Name(), c.Example)
	}
}

func TestShortened(t *testing.T) {
	if got := shortened("héllo wörld", 6); got != "héllo…" {
		t.Error(got)
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", time.Second: "1s", 90 * time.Second: "1m", 3 * time.Hour: "3h", 50 * time.Hour: "2d"} {
		if age(d) != want {
			t.Errorf("%s: %s", d, age(d))
		}
	}
}
