package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/test/e2e/debian"
)

// monitorModule has the kind ServiceMonitor.
const monitorModule = "github.com/prometheus-operator/prometheus-operator@v0.79.2"

// serviceMonitor is what is read of the chart's ServiceMonitor.
type serviceMonitor struct {
	Spec struct {
		Selector  struct{ MatchLabels map[string]string }
		Endpoints []struct {
			Port, Path, Scheme, Interval string
			Authorization                struct{ Credentials secretKey }
			TLSConfig                    struct{ CA struct{ Secret secretKey } } `json:"tlsConfig"`
		}
	}
}

type secretKey struct{ Name, Key string }

// TestServiceMonitor has a Prometheus read all nodes as the chart's ServiceMonitor says, with a configuration such as the operator would make of it.
func TestServiceMonitor(t *testing.T) {
	s := newSpace(t, "monitor", 5*time.Minute)
	out, err := exec.CommandContext(s.ctx, "go", "mod", "download", "-json", monitorModule).Output()
	var module struct{ Dir string }
	if err == nil {
		err = json.Unmarshal(out, &module)
	}
	if err != nil {
		t.Fatal(err)
	}
	kind := filepath.Join(module.Dir, "example", "prometheus-operator-crd", "monitoring.coreos.com_servicemonitors.yaml")
	if _, err := s.Kubectl(s.ctx, "apply", "--server-side", "-f", kind); err != nil {
		t.Fatal(err)
	}
	if err := s.install(s.ctx, repository, "serviceMonitor.enabled=true", "serviceMonitor.interval=1s"); err != nil {
		t.Fatal(err)
	}
	var monitor serviceMonitor
	s.await(60*time.Second, "the ServiceMonitor", func() error { return s.Get(s.ctx, &monitor, "servicemonitor", "keelson", "-n", namespace) })
	url := s.prometheus(monitor)
	s.await(60*time.Second, "the metrics of all nodes", func() error {
		var got struct {
			Data struct {
				Result []struct{ Metric struct{ Instance string } }
			}
		}
		if err := getJSON(url+"/api/v1/query?query=keelson_node_engine_up==1", &got); err != nil {
			return err
		}
		if n := len(got.Data.Result); n != len(s.Nodes) {
			var targets struct {
				Data struct {
					ActiveTargets []struct{ ScrapeURL, LastError string }
				}
			}
			err := getJSON(url+"/api/v1/targets", &targets)
			return fmt.Errorf("Prometheus has them of %d; its targets: %+v, %v", n, targets.Data.ActiveTargets, err)
		}
		return nil
	})
}

// prometheus runs Prometheus on this machine until the test ends, and returns its address.
func (s *space) prometheus(m serviceMonitor) string {
	s.t.Helper()
	e := m.Spec.Endpoints[0]
	dir := s.t.TempDir()
	secret := func(k secretKey) string {
		out, err := s.Field(s.ctx, "{.data."+strings.ReplaceAll(k.Key, ".", `\.`)+"}", "secret", k.Name, "-n", namespace)
		b, err2 := base64.StdEncoding.DecodeString(out)
		if err != nil || err2 != nil || len(b) == 0 {
			s.t.Fatalf("%s of the Secret %s: %q, %v, %v", k.Key, k.Name, out, err, err2)
		}
		path := filepath.Join(dir, k.Key)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			s.t.Fatal(err)
		}
		return path
	}
	type object = map[string]any
	config, err := json.Marshal(object{"scrape_configs": []object{{
		"job_name": "keelson", "scheme": e.Scheme, "metrics_path": e.Path, "scrape_interval": e.Interval, "scrape_timeout": e.Interval,
		"authorization":  object{"credentials_file": secret(e.Authorization.Credentials)},
		"tls_config":     object{"ca_file": secret(e.TLSConfig.CA.Secret)},
		"static_configs": []object{{"targets": s.targets(m)}},
	}}})
	if err != nil {
		s.t.Fatal(err)
	}
	file := filepath.Join(dir, "prometheus.yml") // JSON is YAML
	if err := os.WriteFile(file, config, 0o600); err != nil {
		s.t.Fatal(err)
	}
	tree := debian.Tree{Packages: []string{"prometheus"}, Without: []string{"libjs-*", "fonts-*", "libc6", "libgcc-s1", "gcc-12-base"}}
	root := filepath.Join(dir, "root")
	if err := tree.Make(s.ctx, s.cache, root); err != nil {
		s.t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	cmd := exec.CommandContext(s.ctx, filepath.Join(root, "usr/bin/prometheus"), "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if b, _ := os.ReadFile(log.Name()); s.t.Failed() {
			s.t.Logf("Prometheus says:\n%s", b)
		}
	})
	return "http://" + addr
}

// targets are the addresses that the ServiceMonitor selects. Debian's Prometheus can't ask Kubernetes by itself.
func (s *space) targets(m serviceMonitor) (list []string) {
	s.t.Helper()
	var labels []string
	for k, v := range m.Spec.Selector.MatchLabels {
		labels = append(labels, k+"="+v)
	}
	get := []string{"endpoints", "-n", namespace, "-l", strings.Join(labels, ",")}
	s.await(60*time.Second, "an address of each node", func() error {
		port, err := s.Field(s.ctx, `{.items[*].subsets[*].ports[?(@.name=="`+m.Spec.Endpoints[0].Port+`")].port}`, get...)
		if err != nil {
			return err
		}
		ips, err := s.Field(s.ctx, "{.items[*].subsets[*].addresses[*].ip}", get...)
		if err != nil {
			return err
		}
		list = nil
		for _, ip := range strings.Fields(ips) {
			list = append(list, net.JoinHostPort(ip, port))
		}
		if len(list) != len(s.Nodes) || port == "" {
			return fmt.Errorf("there are %v", list)
		}
		return nil
	})
	return list
}

func getJSON(url string, v any) error {
	r, err := http.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	return json.NewDecoder(r.Body).Decode(v)
}
