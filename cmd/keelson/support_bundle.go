package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/api"
	"keelson.io/keelson/internal/bundle"
	"keelson.io/keelson/internal/doctor"
	"keelson.io/keelson/internal/server"
	"keelson.io/keelson/internal/spec"
)

// SupportBundleOptions are the flags of support-bundle.
type SupportBundleOptions struct {
	Out     string
	MaxSize string
	Logs    []string
	Audit   int
}

func newSupportBundleCommand(g *globalOptions) *cobra.Command {
	var o SupportBundleOptions
	cmd := &cobra.Command{
		Use: "support-bundle", Short: "Collect what somebody needs who helps from afar, without secrets, in one file", Args: args(cobra.NoArgs),
		Long: "Collect what somebody needs who helps from afar, in one file: the state of the cluster, metrics, the newest events and audit\n" +
			"entries, the configuration without secrets, logs, facts of the machine and its kernel, and what the doctor finds.\n\n" +
			"What can't be had, as when the API is down, is named in errors.txt in the bundle and on standard error; the rest is there.",
		Example: "  keelson support-bundle\n  keelson support-bundle --out - --log-file '/var/log/keelson*.log' | ssh support cat '>' bundle.tar.gz",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runSupportBundle(cmd.Context(), g, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&o.Out, "out", "", "file to write, - for standard output (default keelson-support-NODE-TIME.tar.gz)")
	cmd.Flags().StringVar(&o.MaxSize, "max-size", "128Mi", "at most so much, before it is compressed")
	cmd.Flags().StringArrayVar(&o.Logs, "log-file", nil, "a log besides those in the journal and of pods: a file or a pattern; can be given several times")
	cmd.Flags().IntVar(&o.Audit, "audit", 1000, "at most so many of the newest audit entries")
	return cmd
}

func runSupportBundle(ctx context.Context, g *globalOptions, o SupportBundleOptions, stdout, stderr io.Writer) (err error) {
	most, err := spec.ParseSize(o.MaxSize)
	if err != nil || most < 1<<20 {
		return usageError{fmt.Errorf("--max-size %q is no size of at least 1Mi", o.MaxSize)}
	}
	if o.Audit < 1 || o.Audit > 10000 {
		return usageError{fmt.Errorf("--audit %d is not between 1 and 10000", o.Audit)}
	}
	s, secrets := supportOf(g, o)
	name := fmt.Sprintf("keelson-support-%s-%s", supportName(s.Config), time.Now().UTC().Format("20060102T150405Z"))
	out, done, err := bundleFile(o.Out, name, stdout)
	if err != nil {
		return err
	}
	m, err := bundle.Write(ctx, out, name, s.Sources(), bundle.Options{
		MaxTotal: most, Redactor: bundle.NewRedactor(append(s.Secrets(), secrets...)...),
		About: map[string]string{"version": version, "node": supportName(s.Config)},
	})
	if err = errors.Join(err, done(err)); err != nil {
		return err
	}
	missing := 0
	for _, e := range m.Entries {
		if e.Error != "" {
			missing++
			fmt.Fprintf(stderr, "not in the bundle: %s: %s\n", e.Name, firstLine(e.Error))
		}
	}
	if o.Out != "-" {
		file := o.Out
		if file == "" {
			file = name + ".tar.gz"
		}
		fmt.Fprintf(stdout, "%s\n", file)
	}
	fmt.Fprintf(stderr, "%d entries, %d could not be had\n", len(m.Entries)-missing, missing)
	return nil
}

// supportOf is what the bundle is made of here, and the secrets of the command line.
func supportOf(g *globalOptions, o SupportBundleOptions) (*server.Support, []string) {
	cfg, err := server.LoadConfig(g.config)
	if err != nil {
		cfg = server.DefaultConfig() // the doctor says what is wrong with it
	}
	if g.dataDir != "" {
		cfg.DataDir = g.dataDir
	}
	token, _ := g.apiToken()
	return &server.Support{
		ConfigFile: g.config, Config: cfg, Client: func() (*api.Client, error) { return g.client() }, Logs: o.Logs, Audit: o.Audit,
		Findings: func(ctx context.Context) ([]doctor.Finding, error) {
			return examine(ctx, g, DoctorOptions{KubeletDir: server.DefaultKubeletDir})
		},
	}, []string{token, os.Getenv("KEELSON_TOKEN")}
}

// supportName is the node's name, or the machine's.
func supportName(cfg server.Config) string {
	if st, err := server.ReadState(cfg.DataDir); err == nil && st.Node != "" {
		return st.Node
	}
	if h, err := os.Hostname(); err == nil && h != "" {
		return h
	}
	return "node"
}

// bundleFile opens where the bundle goes. done ends it; with an error it takes the file away again.
func bundleFile(path, name string, stdout io.Writer) (w io.Writer, done func(error) error, err error) {
	if path == "-" {
		return stdout, func(error) error { return nil }, nil
	}
	if path == "" {
		path = name + ".tar.gz"
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, nil, usageError{fmt.Errorf("%s is there already; give another --out", path)}
	}
	if err != nil {
		return nil, nil, err
	}
	return f, func(failed error) error {
		err := f.Close()
		if failed != nil || err != nil {
			err = errors.Join(err, os.Remove(path))
		}
		return err
	}, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
