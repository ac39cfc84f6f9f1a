package install

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"
)

// execute renders all templates with the values.
func (c *Chart) execute(values map[string]any, meta metadata, o Options) (map[string]string, error) {
	t := template.New("chart").Option("missingkey=zero")
	t.Funcs(functions(t))
	for _, name := range slices.Sorted(maps.Keys(c.templates)) {
		if _, err := t.New(name).Parse(c.templates[name]); err != nil {
			return nil, fmt.Errorf("chart: %w", err)
		}
	}
	data := map[string]any{
		"Values":       values,
		"Chart":        map[string]any{"Name": meta.Name, "Version": meta.Version, "AppVersion": meta.AppVersion},
		"Release":      map[string]any{"Name": o.Release, "Namespace": o.Namespace, "Service": "keelson", "IsInstall": true, "IsUpgrade": false},
		"Capabilities": map[string]any{"KubeVersion": map[string]any{"Version": o.KubeVersion}},
	}
	out := map[string]string{}
	for name := range c.templates {
		if strings.HasPrefix(path.Base(name), "_") {
			continue
		}
		var b bytes.Buffer
		if err := t.ExecuteTemplate(&b, name, data); err != nil {
			return nil, fmt.Errorf("chart: %w", err)
		}
		// What a template makes of a value that isn't there.
		out[name] = strings.ReplaceAll(b.String(), "<no value>", "")
	}
	return out, nil
}

// functions are those of Helm's that the chart uses.
func functions(t *template.Template) template.FuncMap {
	return template.FuncMap{
		"include": func(name string, data any) (string, error) {
			var b bytes.Buffer
			err := t.ExecuteTemplate(&b, name, data)
			return strings.ReplaceAll(b.String(), "<no value>", ""), err
		},
		"lookup": func(_, _, _, _ string) map[string]any { return map[string]any{} },
		"fail":   func(msg string) (string, error) { return "", errors.New(msg) },
		"toYaml": func(v any) string {
			b, err := yaml.Marshal(v)
			if err != nil {
				return ""
			}
			return strings.TrimSuffix(string(b), "\n")
		},
		"indent":  indent,
		"nindent": func(n int, s string) string { return "\n" + indent(n, s) },
		"quote": func(v any) string {
			if v == nil {
				return ""
			}
			return strconv.Quote(fmt.Sprint(v))
		},
		"default": func(d any, given ...any) any {
			if len(given) == 0 || empty(given[0]) {
				return d
			}
			return given[0]
		},
		"dict":       dict,
		"get":        func(m map[string]any, k string) any { return or(m[k], "") },
		"hasKey":     func(m map[string]any, k string) bool { _, ok := m[k]; return ok },
		"merge":      mergeDicts,
		"list":       func(v ...any) []any { return v },
		"int":        toInt,
		"toString":   func(v any) string { return fmt.Sprint(v) },
		"splitList":  func(sep, s string) []string { return strings.Split(s, sep) },
		"replace":    func(from, to, s string) string { return strings.ReplaceAll(s, from, to) },
		"trimPrefix": func(p, s string) string { return strings.TrimPrefix(s, p) },
		"trunc": func(n int, s string) string {
			if len(s) > n {
				return s[:n]
			}
			return s
		},
		"sha256sum": func(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) },
	}
}

func or(v, d any) any {
	if v == nil {
		return d
	}
	return v
}

func indent(n int, s string) string {
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(s, "\n", "\n"+pad)
}

func empty(v any) bool {
	ok, _ := template.IsTrue(v)
	return !ok
}

func dict(kv ...any) (map[string]any, error) {
	if len(kv)%2 != 0 {
		return nil, errors.New("dict: a key without a value")
	}
	m := map[string]any{}
	for i := 0; i < len(kv); i += 2 {
		k, ok := kv[i].(string)
		if !ok {
			return nil, fmt.Errorf("dict: key %v is no text", kv[i])
		}
		m[k] = kv[i+1]
	}
	return m, nil
}

// mergeDicts adds to the first what it doesn't have.
func mergeDicts(first map[string]any, rest ...map[string]any) map[string]any {
	for _, m := range rest {
		for k, v := range m {
			if _, ok := first[k]; !ok {
				first[k] = v
			}
		}
	}
	return first
}

func toInt(v any) (int, error) {
	switch x := v.(type) {
	case int:
		return x, nil
	case int64:
		return int(x), nil
	case float64:
		return int(x), nil
	case string:
		return strconv.Atoi(x)
	}
	return 0, fmt.Errorf("int: %v is no number", v)
}
