package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/kubeview"
)

// KubectlOptions are the flags of kubectl.
type KubectlOptions struct {
	view   kubeview.Options
	all    bool
	format string
}

// pluginName is what the program is called as a plugin of kubectl.
const pluginName = "kubectl-keelson"

// isPlugin reports whether the program was called as a plugin of kubectl.
func isPlugin(argv0 string) bool { return strings.HasPrefix(filepath.Base(argv0), pluginName) }

// newPluginCommand is the root command of the plugin.
func newPluginCommand() *cobra.Command {
	cmd := newKubectlCommand()
	cmd.Use, cmd.Version = "kubectl keelson", version
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	cmd.Example = strings.ReplaceAll(cmd.Example, "keelson kubectl", "kubectl keelson")
	cmd.CompletionOptions.DisableDefaultCmd = true
	return cmd
}

func newKubectlCommand() *cobra.Command {
	var o KubectlOptions
	cmd := &cobra.Command{
		Use: "kubectl", Short: "Show volumes, claims, pods and nodes of all clusters of a kubeconfig in one table", Args: args(cobra.NoArgs),
		Long: "Show volumes, claims, pods and nodes of all clusters of a kubeconfig in one table. All clusters are asked at once; those that\n" +
			"can't be reached are named at the end, and the exit code is 5 then. Only Kubernetes is asked, with the rights of the kubeconfig.\n\n" +
			"A link to the program with the name kubectl-keelson, in the PATH, is the plugin of kubectl: kubectl keelson.",
		Example: "  keelson kubectl\n  keelson kubectl --context prod-a --context prod-b -n shop -o wide\n  keelson kubectl -l app=postgres -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runKubectl(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.view.Kubeconfig, "kubeconfig", "", "the kubeconfig (default: KUBECONFIG, or ~/.kube/config)")
	f.StringArrayVar(&o.view.Contexts, "context", nil, "only this context; can be given several times (default: all)")
	f.StringVarP(&o.view.Namespace, "namespace", "n", "", "only this namespace (default: all)")
	f.BoolVarP(&o.all, "all-namespaces", "A", false, "all namespaces, as without -n")
	f.StringVarP(&o.view.Selector, "selector", "l", "", "only claims with these labels")
	f.DurationVar(&o.view.Timeout, "request-timeout", 10*time.Second, "how long a cluster may take")
	f.StringVarP(&o.format, "output", "o", "table", "table, wide, json or yaml")
	completeFlag(cmd, "output", words("table", "wide", "json", "yaml"))
	return cmd
}

// codedError is an error with an exit code of its own.
type codedError struct {
	error
	code int
}

func (e codedError) Unwrap() error { return e.error }

func runKubectl(ctx context.Context, o KubectlOptions, stdout, stderr io.Writer) error {
	out := outputFlag{o.format}
	if o.format == "wide" {
		out.format = "table"
	}
	switch {
	case out.check() != nil:
		return usageError{fmt.Errorf("-o %q is none of table, wide, json, yaml", o.format)}
	case o.view.Timeout <= 0:
		return usageError{fmt.Errorf("--request-timeout %s is no time that something may take", o.view.Timeout)}
	case o.all && o.view.Namespace != "":
		return usageError{errors.New("-A and -n contradict each other")}
	}
	v, err := kubeview.Collect(ctx, o.view)
	if errors.Is(err, kubeview.ErrInvalid) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	if err := out.print(stdout, v, func(w io.Writer) { viewTable(w, v, o.format == "wide") }); err != nil {
		return err
	}
	for _, c := range v.Clusters {
		switch {
		case c.SameAs != "":
			fmt.Fprintf(stderr, "context %s is the cluster and the user of %s\n", c.Context, c.SameAs)
		case len(c.Partial) > 0:
			fmt.Fprintf(stderr, "context %s: %s\n", c.Context, strings.Join(c.Partial, ", "))
		}
	}
	away := v.Unreachable()
	for _, c := range away {
		fmt.Fprintf(stderr, "context %s can't be reached (%s): %s\n", c.Context, c.Server, firstLine(c.Error))
	}
	if len(away) > 0 {
		return codedError{fmt.Errorf("%d of %d contexts can't be reached", len(away), len(v.Clusters)), exitUnavailable}
	}
	return nil
}

// maxHealth is how much of what is wrong a table shows, in characters.
const maxHealth = 72

func viewTable(w io.Writer, v kubeview.View, wide bool) {
	header := "CONTEXT NAMESPACE CLAIM VOLUME SIZE POD NODE HEALTH"
	if wide {
		header = "CONTEXT NAMESPACE CLAIM STATUS VOLUME HANDLE SIZE ACCESS CLASS COPIES DRIVER POD NODE AGE HEALTH"
	}
	table(w, header, func(row func(...any)) {
		for _, r := range v.Rows {
			if !wide {
				row(r.Context, r.Namespace, r.Claim, r.Volume, r.Size, r.Pod, r.Node, shortened(r.Health, maxHealth))
				continue
			}
			row(r.Context, r.Namespace, r.Claim, r.Status, r.Volume, r.Handle, r.Size, strings.Join(r.Access, ","), r.Class, r.Copies, r.Driver, r.Pod, r.Node,
				age(time.Since(r.Created)), r.Health)
		}
	})
}

func shortened(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// age writes a duration as kubectl does: its largest unit.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(int(d.Seconds()), 0))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
