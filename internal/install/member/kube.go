package member

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// Kube is API by Kubernetes' API server. Safe for concurrent use.
type Kube struct {
	namespace, name, daemonSet string
	host                       string
	http                       *http.Client
}

// DaemonSet is the name of the one that runs keelson server.
const DaemonSet = "keelson-server"

// InCluster returns Kubernetes as a pod sees it. The record is the ConfigMap name in the namespace.
func InCluster(namespace, name string) (*Kube, error) {
	cfg, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	return NewKube(cfg, namespace, name)
}

// callTimeout bounds each call.
const callTimeout = 10 * time.Second

// NewKube returns Kubernetes by a client's configuration.
func NewKube(cfg *rest.Config, namespace, name string) (*Kube, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.Timeout, cfg.NextProtos = callTimeout, []string{"http/1.1"}
	h, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	host := cfg.Host
	if !strings.Contains(host, "://") {
		host = "https://" + host
	}
	return &Kube{namespace: namespace, name: name, daemonSet: DaemonSet, host: strings.TrimSuffix(host, "/"), http: h}, nil
}

// call sends in, if it isn't nil, and decodes the answer into out. An answer that is none is an error of Kubernetes.
func (k *Kube) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, k.host+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "keelson")
	resp, err := k.http.Do(req)
	if err != nil {
		return fmt.Errorf("kubernetes: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return fmt.Errorf("kubernetes: %s %s: %w", method, path, err)
	}
	if resp.StatusCode >= 300 {
		var st metav1.Status
		if json.Unmarshal(b, &st) != nil || st.Message == "" {
			st = metav1.Status{Code: int32(resp.StatusCode), Message: fmt.Sprintf("%s %s: %s", method, path, resp.Status)}
		}
		return &apierrors.StatusError{ErrStatus: st}
	}
	return json.Unmarshal(b, out)
}

func (k *Kube) path(resource, name string) string {
	return "/api/v1/namespaces/" + k.namespace + "/" + strings.TrimSuffix(resource+"/"+name, "/")
}

func (k *Kube) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: k.namespace, Labels: map[string]string{"app.kubernetes.io/name": "keelson"}}
}

// Record implements API.
func (k *Kube) Record(ctx context.Context) (map[string]string, string, error) {
	var m corev1.ConfigMap
	err := k.call(ctx, http.MethodGet, k.path("configmaps", k.name), nil, &m)
	if apierrors.IsNotFound(err) {
		return map[string]string{}, "", nil
	}
	return m.Data, m.ResourceVersion, err
}

// PutRecord implements API.
func (k *Kube) PutRecord(ctx context.Context, data map[string]string, version string) error {
	m := corev1.ConfigMap{ObjectMeta: k.meta(k.name), Data: data}
	if version == "" {
		return k.call(ctx, http.MethodPost, k.path("configmaps", ""), &m, &corev1.ConfigMap{})
	}
	m.ResourceVersion = version
	return k.call(ctx, http.MethodPut, k.path("configmaps", k.name), &m, &corev1.ConfigMap{})
}

// Secret implements API.
func (k *Kube) Secret(ctx context.Context, name string) (map[string]string, error) {
	var s corev1.Secret
	err := k.call(ctx, http.MethodGet, k.path("secrets", name), nil, &s)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	out := map[string]string{}
	for key, v := range s.Data {
		out[key] = string(v)
	}
	return out, err
}

// PutSecret implements API.
func (k *Kube) PutSecret(ctx context.Context, name string, data map[string]string) error {
	s := corev1.Secret{ObjectMeta: k.meta(name), Type: corev1.SecretTypeOpaque, StringData: data}
	err := k.call(ctx, http.MethodPut, k.path("secrets", name), &s, &corev1.Secret{})
	if apierrors.IsNotFound(err) {
		err = k.call(ctx, http.MethodPost, k.path("secrets", ""), &s, &corev1.Secret{})
	}
	return err
}

// Desired implements API.
func (k *Kube) Desired(ctx context.Context) (int, error) {
	var d appsv1.DaemonSet
	err := k.call(ctx, http.MethodGet, "/apis/apps/v1/namespaces/"+k.namespace+"/daemonsets/"+k.daemonSet, nil, &d)
	if apierrors.IsNotFound(err) {
		return 1, nil // whoever runs this has made its own pods
	}
	return int(d.Status.DesiredNumberScheduled), err
}

// Node returns a node of Kubernetes.
func (k *Kube) Node(ctx context.Context, name string) (*corev1.Node, error) {
	var n corev1.Node
	err := k.call(ctx, http.MethodGet, "/api/v1/nodes/"+name, nil, &n)
	return &n, err
}
