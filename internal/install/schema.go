package install

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Schema is the part of JSON Schema that describes the chart's values. An object without properties takes any.
type Schema struct {
	Ref         string             `json:"$ref"`
	Type        string             `json:"type"`
	Description string             `json:"description"`
	Enum        []any              `json:"enum"`
	Minimum     *float64           `json:"minimum"`
	Maximum     *float64           `json:"maximum"`
	Pattern     string             `json:"pattern"`
	Properties  map[string]*Schema `json:"properties"`
	Additional  *json.RawMessage   `json:"additionalProperties"` // false, or the schema of the others
	Items       *Schema            `json:"items"`
	// Legal says in words what Pattern matches. Flag is the name of the flag of `keelson install yaml`, if it isn't the key's.
	Legal string             `json:"x-legal"`
	Flag  string             `json:"x-flag"`
	Defs  map[string]*Schema `json:"$defs"`
	// Words that every schema has and that say nothing here.
	Dialect string `json:"$schema"`
	Title   string `json:"title"`

	others *Schema // of Additional
	closed bool
	re     *regexp.Regexp
}

// ParseSchema reads a schema. A word that it doesn't know is an error: what Helm checks is checked here too.
func ParseSchema(b []byte) (*Schema, error) {
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	s := &Schema{}
	if err := d.Decode(s); err != nil {
		return nil, err
	}
	return s, s.resolve(s, map[*Schema]bool{})
}

func (s *Schema) resolve(root *Schema, seen map[*Schema]bool) error {
	if s == nil || seen[s] {
		return nil
	}
	if s.Ref != "" {
		def, ok := root.Defs[strings.TrimPrefix(s.Ref, "#/$defs/")]
		if !ok {
			return fmt.Errorf("no definition %s", s.Ref)
		}
		text, flag := s.Description, s.Flag
		*s = *def
		s.Description, s.Flag = text, flag
	}
	seen[s] = true
	var err error
	if s.Pattern != "" {
		if s.re, err = regexp.Compile(s.Pattern); err != nil {
			return err
		}
	}
	if s.Additional != nil && s.others == nil {
		if string(*s.Additional) == "false" {
			s.closed = true
		} else if s.others, err = ParseSchema(*s.Additional); err != nil {
			return err
		}
	}
	for _, sub := range slices.Concat(slices.Collect(maps.Values(s.Properties)), slices.Collect(maps.Values(s.Defs)), []*Schema{s.Items}) {
		if err := sub.resolve(root, seen); err != nil {
			return err
		}
	}
	return nil
}

// Check returns what is wrong with values: each names key, value and what is legal.
func (s *Schema) Check(values any) []string { return s.check("", values) }

func (s *Schema) check(key string, v any) []string {
	if v == nil {
		return nil // as if it weren't there
	}
	switch s.Type {
	case "object":
		m, ok := v.(map[string]any)
		if !ok {
			return s.bad(key, v)
		}
		return s.checkObject(key, m)
	case "array":
		list, ok := v.([]any)
		if !ok {
			return s.bad(key, v)
		}
		var out []string
		for i, x := range list {
			if s.Items != nil {
				out = append(out, s.Items.check(fmt.Sprintf("%s[%d]", key, i), x)...)
			}
		}
		return out
	}
	if !s.scalar(v) {
		return s.bad(key, v)
	}
	return nil
}

func (s *Schema) checkObject(key string, m map[string]any) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		sub := s.Properties[k]
		name := strings.TrimPrefix(key+"."+k, ".")
		switch {
		case sub != nil:
			out = append(out, sub.check(name, m[k])...)
		case s.others != nil:
			out = append(out, s.others.check(name, m[k])...)
		case s.closed:
			out = append(out, fmt.Sprintf("%s: there is no such key; legal: %s", name, strings.Join(slices.Sorted(maps.Keys(s.Properties)), ", ")))
		}
	}
	return out
}

func (s *Schema) scalar(v any) bool {
	if !s.among(v) {
		return false
	}
	switch x := v.(type) {
	case bool:
		return s.Type == "boolean" || s.Type == ""
	case float64:
		return (s.Type == "number" || s.Type == "integer" && x == math.Trunc(x) || s.Type == "") &&
			(s.Minimum == nil || x >= *s.Minimum) && (s.Maximum == nil || x <= *s.Maximum)
	case string:
		return (s.Type == "string" || s.Type == "") && (s.re == nil || s.re.MatchString(x))
	}
	return s.Type == ""
}

func (s *Schema) among(v any) bool { return len(s.Enum) == 0 || slices.Contains(s.Enum, v) }

func (s *Schema) bad(key string, v any) []string {
	text := fmt.Sprintf("%v", v)
	if b, err := json.Marshal(v); err == nil {
		text = string(b)
	}
	return []string{fmt.Sprintf("%s: %s is not legal; legal: %s", key, text, s.Range())}
}

// Range says in words what is legal.
func (s *Schema) Range() string {
	num := func(f *float64) string { return strconv.FormatFloat(*f, 'f', -1, 64) }
	switch {
	case s.Legal != "":
		return s.Legal
	case len(s.Enum) > 0:
		var words []string
		for _, e := range s.Enum {
			text := fmt.Sprint(e)
			if e == "" {
				text = `""`
			}
			if !slices.Contains(words, text) {
				words = append(words, text)
			}
		}
		return strings.Join(words, ", ")
	case s.Type == "boolean":
		return "true, false"
	case s.Type == "integer" && s.Minimum != nil && s.Maximum != nil:
		return "a whole number from " + num(s.Minimum) + " to " + num(s.Maximum)
	case s.Type == "integer":
		return "a whole number"
	case s.Type == "string":
		return "text"
	case s.Type == "array" && s.Items != nil:
		return "a list, each " + s.Items.Range()
	case s.Type == "object" && len(s.Properties) > 0:
		return "keys " + strings.Join(slices.Sorted(maps.Keys(s.Properties)), ", ")
	case s.Type == "object":
		return "keys and values"
	}
	return "anything"
}

// Setting is a value that can be set: a leaf of the schema.
type Setting struct {
	Key    string // dotted
	Flag   string
	Schema *Schema
}

// Settings returns all settings, in the order of their keys.
func (s *Schema) Settings() []Setting {
	var out []Setting
	var walk func(key string, s *Schema)
	walk = func(key string, s *Schema) {
		if s.Type != "object" || len(s.Properties) == 0 || s.Legal != "" {
			flag := s.Flag
			if flag == "" {
				flag = kebab(key)
			}
			out = append(out, Setting{key, flag, s})
			return
		}
		for _, k := range slices.Sorted(maps.Keys(s.Properties)) {
			walk(strings.TrimPrefix(key+"."+k, "."), s.Properties[k])
		}
	}
	walk("", s)
	return out
}

var upper = regexp.MustCompile(`[A-Z]+`)

// kebab makes a flag of a key: disks.fileSize is disks-file-size.
func kebab(key string) string {
	s := upper.ReplaceAllStringFunc(key, func(u string) string { return "-" + strings.ToLower(u) })
	return strings.ReplaceAll(strings.ReplaceAll(s, ".", "-"), "--", "-")
}

// Set returns values in which one key is set from text: text itself for a string, and otherwise YAML.
func Set(values map[string]any, s Setting, text string) (map[string]any, error) {
	var v any = text
	if s.Schema.Type != "string" {
		m, err := ParseValues("--"+s.Flag, []byte("v: "+text))
		if err != nil {
			return nil, fmt.Errorf("--%s: %q: %w; legal: %s", s.Flag, text, ErrValues, s.Schema.Range())
		}
		v = m["v"]
	}
	if errs := s.Schema.check("--"+s.Flag, v); len(errs) > 0 {
		return nil, fmt.Errorf("%w: %s", ErrValues, strings.Join(errs, "; "))
	}
	parts := strings.Split(s.Key, ".")
	for _, p := range slices.Backward(parts) {
		v = map[string]any{p: v}
	}
	return Merge(values, v.(map[string]any)), nil
}
