package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"sigs.k8s.io/yaml"
)

// outputFlag is -o.
type outputFlag struct{ format string }

func (o *outputFlag) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "output", "o", "table", "table, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
}

func (o *outputFlag) check() error {
	switch o.format {
	case "table", "json", "yaml":
		return nil
	}
	return usageError{fmt.Errorf("-o %q is none of table, json, yaml", o.format)}
}

// print writes v, made of messages, as JSON or YAML, or calls table.
func (o *outputFlag) print(w io.Writer, v any, table func(w io.Writer)) error {
	switch o.format {
	case "json":
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s\n", b)
		return err
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	}
	table(w)
	return nil
}

// plainList is plain for each message.
func plainList[M proto.Message](ms []M) []any {
	out := make([]any, 0, len(ms))
	for _, m := range ms {
		out = append(out, plain(m))
	}
	return out
}

// plain turns a message into what JSON shows best: every field is there, numbers are numbers, times
// RFC 3339, durations as Go writes them.
func plain(m proto.Message) any { return plainMessage(m.ProtoReflect()) }

func plainMessage(m protoreflect.Message) any {
	switch x := m.Interface().(type) {
	case *timestamppb.Timestamp:
		if !m.IsValid() {
			return nil
		}
		return x.AsTime().Format(time.RFC3339)
	case *durationpb.Duration:
		if !m.IsValid() {
			return nil
		}
		return x.AsDuration().String()
	}
	if !m.IsValid() {
		return nil
	}
	out := map[string]any{}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		out[f.JSONName()] = plainField(f, m.Get(f))
	}
	return out
}

func plainField(f protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch {
	case f.IsMap():
		out := map[string]any{}
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			out[k.String()] = plainValue(f.MapValue(), v)
			return true
		})
		return out
	case f.IsList():
		out := make([]any, 0, v.List().Len())
		for i := range v.List().Len() {
			out = append(out, plainValue(f, v.List().Get(i)))
		}
		return out
	}
	return plainValue(f, v)
}

func plainValue(f protoreflect.FieldDescriptor, v protoreflect.Value) any {
	if f.Kind() == protoreflect.MessageKind {
		return plainMessage(v.Message())
	}
	return v.Interface()
}

// table writes aligned columns.
func table(w io.Writer, header string, rows func(row func(cells ...any))) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ReplaceAll(header, " ", "\t"))
	rows(func(cells ...any) {
		for i, c := range cells {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			if s := fmt.Sprint(c); s != "" {
				fmt.Fprint(tw, s)
			} else {
				fmt.Fprint(tw, "-")
			}
		}
		fmt.Fprintln(tw)
	})
	tw.Flush()
}

func labelsText(m map[string]string) string {
	kv := make([]string, 0, len(m))
	for k, v := range m {
		kv = append(kv, k+"="+v)
	}
	slices.Sort(kv)
	return strings.Join(kv, ",")
}
