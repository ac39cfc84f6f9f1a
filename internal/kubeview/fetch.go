package kubeview

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fetcher reads objects of a cluster.
type fetcher struct {
	http *http.Client
	base string
}

// objects are what a cluster has.
type objects struct {
	claims   []corev1.PersistentVolumeClaim
	pods     []corev1.Pod
	volumes  []corev1.PersistentVolume
	nodes    []corev1.Node
	csiNodes []storagev1.CSINode
	classes  []storagev1.StorageClass
	events   []corev1.Event
}

// errForbidden: the kubeconfig's user may not read that.
var errForbidden = errors.New("forbidden")

// all reads what is needed, all kinds at once. Without claims or pods there is nothing to show; of the others each that may
// not be read is named in partial.
func (f *fetcher) all(ctx context.Context, o Options) (*objects, []string, error) {
	out := &objects{}
	in := ""
	if o.Namespace != "" {
		in = "namespaces/" + url.PathEscape(o.Namespace) + "/"
	}
	var mu sync.Mutex
	var partial []string
	var failed []error
	var wg sync.WaitGroup
	read := func(what string, needed bool, call func() error) {
		wg.Go(func() {
			err := call()
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
			case !needed && errors.Is(err, errForbidden):
				partial = append(partial, what+" may not be read")
			default:
				failed = append(failed, fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	labels := url.Values{}
	if o.Selector != "" {
		labels.Set("labelSelector", o.Selector)
	}
	warnings := url.Values{"fieldSelector": {"type=Warning"}}
	read("claims", true, func() (err error) {
		out.claims, err = list[corev1.PersistentVolumeClaim](ctx, f, "/api/v1/"+in+"persistentvolumeclaims", labels)
		return
	})
	read("pods", true, func() (err error) { out.pods, err = list[corev1.Pod](ctx, f, "/api/v1/"+in+"pods", nil); return })
	read("volumes", false, func() (err error) {
		out.volumes, err = list[corev1.PersistentVolume](ctx, f, "/api/v1/persistentvolumes", nil)
		return
	})
	read("nodes", false, func() (err error) { out.nodes, err = list[corev1.Node](ctx, f, "/api/v1/nodes", nil); return })
	read("CSI nodes", false, func() (err error) {
		out.csiNodes, err = list[storagev1.CSINode](ctx, f, "/apis/storage.k8s.io/v1/csinodes", nil)
		return
	})
	read("storage classes", false, func() (err error) {
		out.classes, err = list[storagev1.StorageClass](ctx, f, "/apis/storage.k8s.io/v1/storageclasses", nil)
		return
	})
	read("events", false, func() (err error) {
		out.events, err = list[corev1.Event](ctx, f, "/api/v1/"+in+"events", warnings)
		return
	})
	wg.Wait()
	slices.Sort(partial)
	if len(failed) > 0 {
		return nil, nil, failed[0] // they are mostly the same
	}
	return out, partial, nil
}

const (
	// pageSize is how many objects are asked for at once, maxPages how often.
	pageSize = "500"
	maxPages = 1000
	// maxBody bounds an answer, in bytes.
	maxBody = 256 << 20
)

// list reads all objects of a kind, a page at a time.
func list[T any](ctx context.Context, f *fetcher, path string, query url.Values) ([]T, error) {
	var out []T
	q := url.Values{"limit": {pageSize}}
	for k, v := range query {
		q[k] = v
	}
	for range maxPages {
		var page struct {
			metav1.ListMeta `json:"metadata"`
			Items           []T `json:"items"`
		}
		if err := f.get(ctx, path+"?"+q.Encode(), &page); err != nil {
			return nil, err
		}
		out = append(out, page.Items...)
		if page.Continue == "" {
			return out, nil
		}
		q.Set("continue", page.Continue)
	}
	return nil, fmt.Errorf("%s has more than %d pages", path, maxPages)
}

func (f *fetcher) get(ctx context.Context, path string, into any) (err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(f.base, "/")+path, nil)
	if err != nil {
		return err
	}
	r.Header.Set("Accept", "application/json")
	resp, err := f.http.Do(r)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the address, which stands beside it
		}
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return refusal(resp, b)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("the answer is no list of Kubernetes: %w", err)
	}
	return nil
}

// refusal words an answer that is none.
func refusal(resp *http.Response, body []byte) error {
	text := resp.Status
	var st metav1.Status
	if json.Unmarshal(body, &st) == nil && st.Message != "" {
		text = st.Message
	}
	switch resp.StatusCode {
	case http.StatusForbidden:
		return fmt.Errorf("%w: %s", errForbidden, text)
	case http.StatusUnauthorized:
		return fmt.Errorf("the cluster doesn't know this user (%s): log in anew", text)
	}
	return errors.New(text)
}
