package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"keelson.io/keelson/deploy"
	"keelson.io/keelson/internal/install"
	"keelson.io/keelson/internal/spec"
)

func newInstallCommand() *cobra.Command {
	return group(&cobra.Command{Use: "install", Short: "Install Keelson in Kubernetes"}, newInstallYAMLCommand(), newInstallNodeCommand(), newInstallCheckCommand())
}

// InstallYAMLOptions are the flags of install yaml; the settings of the chart come on top.
type InstallYAMLOptions struct {
	Files       []string // of values
	Namespace   string
	KubeVersion string
}

func newInstallYAMLCommand() *cobra.Command {
	o := InstallYAMLOptions{Namespace: "keelson-system", KubeVersion: "v1.34.0"}
	cmd := &cobra.Command{
		Use: "yaml", Short: "Print the manifest that installs Keelson, as the chart would",
		Long: "Print one manifest with all that the Helm chart makes: the flags are the chart's values.\n" +
			"What only Helm can do is left out: looking for another default StorageClass, and refusing to uninstall while volumes are in use.",
		Example: "  keelson install yaml --all-disks | kubectl apply -f -\n  keelson install yaml --values mine.yaml --file-size 10Gi",
		Args:    args(cobra.NoArgs),
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.Files, "values", nil, "file of values, as for Helm; can be repeated, and flags win")
	f.StringVar(&o.Namespace, "namespace", o.Namespace, "namespace of everything that has one; it is made")
	f.StringVar(&o.KubeVersion, "kube-version", o.KubeVersion, "version of the cluster")
	chart, err := install.Load(deploy.Chart())
	if err != nil {
		// The chart is in the binary: tests see it first.
		cmd.RunE = func(*cobra.Command, []string) error { return err }
		return cmd
	}
	settings := chart.Schema().Settings()
	texts := make([]string, len(settings))
	for i, s := range settings {
		v := &settingFlag{text: &texts[i], kind: s.Schema.Type}
		f.Var(v, s.Flag, s.Schema.Description+" ("+s.Key+")")
		if s.Schema.Type == "boolean" {
			f.Lookup(s.Flag).NoOptDefVal = "true"
		}
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		values, err := readValues(o.Files)
		if err != nil {
			return usageError{err}
		}
		for i, s := range settings {
			if cmd.Flags().Changed(s.Flag) {
				if values, err = install.Set(values, s, texts[i]); err != nil {
					return usageError{err}
				}
			}
		}
		return runInstallYAML(chart, o, values, cmd.OutOrStdout())
	}
	return cmd
}

// settingFlag is a flag of a setting: text that is read when all flags are known.
type settingFlag struct {
	text *string
	kind string
}

var _ pflag.Value = (*settingFlag)(nil)

// String implements pflag.Value.
func (s *settingFlag) String() string { return "" }

// Set implements pflag.Value.
func (s *settingFlag) Set(text string) error { *s.text = text; return nil }

// Type implements pflag.Value.
func (s *settingFlag) Type() string {
	switch s.kind {
	case "array", "object":
		return "yaml"
	case "integer":
		return "int"
	case "boolean":
		return "bool"
	}
	return "string"
}

func readValues(files []string) (map[string]any, error) {
	all := map[string]any{}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("--values: %w", err)
		}
		v, err := install.ParseValues(name, b)
		if err != nil {
			return nil, err
		}
		all = install.Merge(all, v)
	}
	return all, nil
}

func runInstallYAML(chart *install.Chart, o InstallYAMLOptions, values map[string]any, w io.Writer) error {
	if err := spec.CheckName("--namespace", o.Namespace); err != nil {
		return err
	}
	b, err := chart.Render(values, install.Options{
		Release: "keelson", Namespace: o.Namespace, AppVersion: imageTag(), KubeVersion: o.KubeVersion, WithNamespace: true,
	})
	if errors.Is(err, install.ErrValues) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// imageTag is the tag of the image that has this program.
func imageTag() string { return strings.ReplaceAll(version, "+", "-") }

func newInstallNodeCommand() *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use: "node", Short: "Make this Kubernetes node one of the cluster, and write its configuration", Hidden: true, Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runInstallNode(cmd.Context(), from) },
	}
	cmd.Flags().StringVar(&from, "from", "/etc/keelson/keelson.yaml", "configuration that all nodes have")
	return cmd
}

func runInstallNode(ctx context.Context, from string) error {
	return installNode(ctx, from, os.Getenv("NODE_NAME"), os.Getenv("NODE_ADDRESS"))
}

func newInstallCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check-unused", Short: "Fail if a pod of this Kubernetes cluster uses a volume", Hidden: true, Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return checkUnused(cmd.Context(), cmd.OutOrStdout()) },
	}
}
