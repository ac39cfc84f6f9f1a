// Package install renders the Helm chart of Keelson without Helm, for `keelson install yaml`: one source, two ways. It knows
// the part of Helm's templates that the chart uses, and the part of JSON Schema by which the chart's values are checked; tests
// compare it with Helm.
//
// Invariants: nothing is rendered from values that the schema refuses; the same values and options give the same bytes.
//
// The package does no I/O of its own but reading the chart's files, and owns no goroutine.
package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Chart is a chart: its templates, default values and schema.
type Chart struct {
	meta      metadata
	defaults  map[string]any
	schema    *Schema
	templates map[string]string // by their path below the chart
	crds      map[string]string
}

type metadata struct {
	Name       string `json:"name"`
	Version    string `json:"version"`
	AppVersion string `json:"appVersion"`
}

// Options are what Helm knows without values.
type Options struct {
	Release   string // its name
	Namespace string
	// AppVersion replaces the chart's, if it isn't "": the version of the image.
	AppVersion string
	// KubeVersion is that of the cluster, such as v1.34.0.
	KubeVersion string
	// WithNamespace adds the namespace itself to a manifest.
	WithNamespace bool
}

// Load reads a chart.
func Load(files fs.FS) (*Chart, error) {
	c := &Chart{templates: map[string]string{}, crds: map[string]string{}}
	if err := readYAML(files, "Chart.yaml", &c.meta); err != nil {
		return nil, err
	}
	if err := readYAML(files, "values.yaml", &c.defaults); err != nil {
		return nil, err
	}
	b, err := fs.ReadFile(files, "values.schema.json")
	if err != nil {
		return nil, fmt.Errorf("chart: %w", err)
	}
	if c.schema, err = ParseSchema(b); err != nil {
		return nil, fmt.Errorf("chart: values.schema.json: %w", err)
	}
	for dir, into := range map[string]map[string]string{"templates": c.templates, "crds": c.crds} {
		names, err := fs.Glob(files, dir+"/*")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			b, err := fs.ReadFile(files, n)
			if err != nil {
				return nil, fmt.Errorf("chart: %w", err)
			}
			into[n] = string(b)
		}
	}
	return c, nil
}

func readYAML(files fs.FS, name string, into any) error {
	b, err := fs.ReadFile(files, name)
	if err != nil {
		return fmt.Errorf("chart: %w", err)
	}
	if err := yaml.Unmarshal(b, into); err != nil {
		return fmt.Errorf("chart: %s: %w", name, err)
	}
	return nil
}

// Schema describes the chart's values.
func (c *Chart) Schema() *Schema { return c.schema }

// Defaults returns the chart's own values. They are the caller's.
func (c *Chart) Defaults() map[string]any { return clone(c.defaults) }

// ErrValues is the class of errors in the values.
var ErrValues = errors.New("the values are wrong")

// ParseValues reads a file of values.
func ParseValues(name string, b []byte) (map[string]any, error) {
	v := map[string]any{}
	if err := yaml.UnmarshalStrict(b, &v); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, ErrValues, err)
	}
	return v, nil
}

// Render lays the values over the chart's own and returns one manifest of everything, in the order in which it is applied. The error is of the
// class ErrValues if they are wrong, and names key, value and what is legal.
func (c *Chart) Render(values map[string]any, o Options) ([]byte, error) {
	files, err := c.Files(values, o)
	if err != nil {
		return nil, err
	}
	docs, err := sorted(files)
	if err != nil {
		return nil, err
	}
	if o.WithNamespace {
		text := "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: " + o.Namespace + "\n  labels:\n    pod-security.kubernetes.io/enforce: privileged\n"
		docs = slices.Insert(docs, 0, doc{kind: "Namespace", name: o.Namespace, text: text})
	}
	var out bytes.Buffer
	for _, d := range docs {
		out.WriteString("---\n")
		out.WriteString(strings.TrimSpace(d.text))
		out.WriteString("\n")
	}
	return out.Bytes(), nil
}

// Files renders each template by itself; what comes out is by the template's path below the chart.
func (c *Chart) Files(values map[string]any, o Options) (map[string]string, error) {
	all := Merge(c.Defaults(), values)
	if errs := c.schema.Check(all); len(errs) > 0 {
		return nil, fmt.Errorf("%w: %s", ErrValues, strings.Join(errs, "; "))
	}
	meta := c.meta
	if o.AppVersion != "" {
		meta.AppVersion = o.AppVersion
	}
	return c.execute(all, meta, o)
}

// Merge lays over over base, as Helm does: maps are merged, anything else is replaced, null takes a key away.
func Merge(base, over map[string]any) map[string]any {
	for k, v := range over {
		m, isMap := v.(map[string]any)
		b, hasMap := base[k].(map[string]any)
		switch {
		case v == nil:
			delete(base, k)
		case isMap && hasMap:
			base[k] = Merge(b, m)
		default:
			base[k] = v
		}
	}
	return base
}

func clone(m map[string]any) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		if sub, ok := v.(map[string]any); ok {
			v = clone(sub)
		}
		out[k] = v
	}
	return out
}

// doc is one object of the manifest.
type doc struct {
	kind, name, text string
	rank             int
}

// order is that of kinds in the manifest; those that aren't in it come last.
var order = []string{
	"Namespace", "NetworkPolicy", "PriorityClass", "ServiceAccount", "Secret", "ConfigMap", "StorageClass", "CustomResourceDefinition",
	"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Service", "DaemonSet", "Deployment", "Job", "CSIDriver",
}

// sorted takes the objects out of rendered files, and orders them. What is made only when Helm uninstalls isn't part of a manifest.
func sorted(files map[string]string) ([]doc, error) {
	var docs []doc
	for name, text := range files {
		if strings.HasPrefix(path.Base(name), "_") || path.Ext(name) == ".txt" {
			continue
		}
		for part := range strings.SplitSeq("\n"+text, "\n---") {
			var o struct {
				Kind     string `json:"kind"`
				Metadata struct {
					Name        string            `json:"name"`
					Annotations map[string]string `json:"annotations"`
				} `json:"metadata"`
			}
			if err := yaml.Unmarshal([]byte(part), &o); err != nil {
				return nil, fmt.Errorf("chart: %s: %w", name, err)
			}
			hook := o.Metadata.Annotations["helm.sh/hook"]
			if o.Kind == "" || hook != "" && !strings.HasPrefix(hook, "post-install") {
				continue
			}
			rank := slices.Index(order, o.Kind)
			if rank < 0 {
				rank = len(order)
			}
			docs = append(docs, doc{o.Kind, o.Metadata.Name, part, rank})
		}
	}
	slices.SortFunc(docs, func(a, b doc) int {
		if a.rank != b.rank {
			return a.rank - b.rank
		}
		return strings.Compare(a.kind+" "+a.name, b.kind+" "+b.name)
	})
	return docs, nil
}
