package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/bundle"
	"keelson.io/keelson/internal/doctor"
)

// Support says what a support bundle is made of.
type Support struct {
	ConfigFile string // "" is the default
	Config     Config
	// Client returns a client of the API; its error is in the bundle in place of what it would have said.
	Client func() (*api.Client, error)
	// Findings are the doctor's.
	Findings func(ctx context.Context) ([]doctor.Finding, error)
	// Logs are files, or patterns of files, besides those that are known.
	Logs []string
	// Audit is how many entries of the audit log are taken.
	Audit int
}

// Secrets returns what must not be in a bundle and is known from the configuration.
func (s *Support) Secrets() []string {
	out := []string{s.Config.Join.Token}
	if b, err := os.ReadFile(s.Config.Join.TokenFile); err == nil {
		out = append(out, string(b))
	}
	return out
}

// Sources returns what a bundle is made of, what is needed first and smallest first.
func (s *Support) Sources() []bundle.Source {
	out := []bundle.Source{
		{Name: "doctor.json", Collect: s.doctor},
		{Name: "config.yaml", Collect: func(context.Context) ([]byte, error) { return os.ReadFile(s.configFile()) }},
		{Name: "state.json", Collect: func(context.Context) ([]byte, error) { return os.ReadFile(statePath(s.Config.DataDir)) }},
		{Name: "data-directory.txt", Collect: func(context.Context) ([]byte, error) { return listTree(s.Config.DataDir) }},
		{Name: "run-directory.txt", Collect: func(context.Context) ([]byte, error) { return listTree(s.Config.RunDir) }},
	}
	out = append(out, s.apiSources()...)
	out = append(out, machineSources()...)
	return append(out, s.logSources()...)
}

func (s *Support) configFile() string {
	if s.ConfigFile == "" {
		return DefaultConfigFile
	}
	return s.ConfigFile
}

func (s *Support) doctor(ctx context.Context) ([]byte, error) {
	list, err := s.Findings(ctx)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(list, "", "  ")
}

// apiSources are what the API says. Each asks on its own: if it is away, each says so.
func (s *Support) apiSources() []bundle.Source {
	ask := func(name string, call func(ctx context.Context, c *api.Client) (proto.Message, error)) bundle.Source {
		return bundle.Source{Name: "api/" + name + ".json", Collect: func(ctx context.Context) ([]byte, error) {
			c, err := s.Client()
			if err != nil {
				return nil, err
			}
			m, err := call(ctx, c)
			if err != nil {
				return nil, err
			}
			return indented(m)
		}}
	}
	return []bundle.Source{
		ask("status", func(ctx context.Context, c *api.Client) (proto.Message, error) {
			return c.Cluster.Status(ctx, &pb.StatusRequest{})
		}),
		ask("nodes", func(ctx context.Context, c *api.Client) (proto.Message, error) {
			return c.Nodes.ListNodes(ctx, &pb.ListNodesRequest{})
		}),
		ask("pools", func(ctx context.Context, c *api.Client) (proto.Message, error) {
			return c.Pools.ListPools(ctx, &pb.ListPoolsRequest{})
		}),
		ask("volumes", func(ctx context.Context, c *api.Client) (proto.Message, error) {
			return c.Volumes.ListVolumes(ctx, &pb.ListVolumesRequest{})
		}),
		ask("settings", func(ctx context.Context, c *api.Client) (proto.Message, error) {
			return c.Cluster.GetSettings(ctx, &pb.GetSettingsRequest{})
		}),
		ask("events", func(ctx context.Context, c *api.Client) (proto.Message, error) {
			return c.Cluster.ListEvents(ctx, &pb.ListEventsRequest{})
		}),
		ask("this-node", func(ctx context.Context, c *api.Client) (proto.Message, error) {
			return c.Nodes.NodeStatus(ctx, &pb.NodeStatusRequest{})
		}),
		ask("audit", func(ctx context.Context, c *api.Client) (proto.Message, error) {
			return c.Access.ListAudit(ctx, &pb.ListAuditRequest{Limit: int32(s.Audit)})
		}),
		{Name: "api/metrics.txt", Collect: func(ctx context.Context) ([]byte, error) {
			c, err := s.Client()
			if err != nil {
				return nil, err
			}
			return c.Page(ctx, "/metrics")
		}},
	}
}

// indented writes a message as JSON that people can read. protojson alone varies its spaces.
func indented(m proto.Message) ([]byte, error) {
	b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return nil, err
	}
	return append(out.Bytes(), '\n'), nil
}

// maxListed bounds the files that a listing names.
const maxListed = 5000

// listTree names the files in a directory with their sizes and times. Their content stays where it is.
func listTree(dir string) ([]byte, error) {
	var b bytes.Buffer
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			fmt.Fprintf(&b, "%s: %v\n", path, err)
			if path == dir {
				return err
			}
			return nil
		}
		// Below a FUSE mount a question may hang.
		if d.IsDir() && d.Name() == "fuse" && path != dir {
			fmt.Fprintf(&b, "%s: not looked into\n", path)
			return filepath.SkipDir
		}
		if n++; n > maxListed {
			fmt.Fprintln(&b, "and more")
			return filepath.SkipAll
		}
		if st, err := d.Info(); err == nil {
			fmt.Fprintf(&b, "%s %12d %s %s\n", st.Mode(), st.Size(), st.ModTime().UTC().Format("2006-01-02T15:04:05"), path)
		}
		return nil
	})
	return b.Bytes(), err
}

// maxLog is how much of a log file is taken, in bytes, from its end.
const maxLog = 4 << 20

// logSources are the logs of Keelson's processes: systemd's journal, those of the pods on this node, and what was asked for.
func (s *Support) logSources() []bundle.Source {
	var out []bundle.Source
	for _, unit := range []string{"keelson", "keelson-holder"} {
		out = append(out, program("logs/"+unit+".journal.txt", "journalctl", "--unit", unit, "--lines", "20000", "--no-pager", "--output", "short-iso-precise"))
	}
	for _, pattern := range append([]string{"/var/log/pods/*keelson*/*/*.log"}, s.Logs...) {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 && !strings.Contains(pattern, "*") {
			files = []string{pattern} // its error is worth reading
		}
		for _, f := range files {
			name := "logs/" + strings.ReplaceAll(strings.Trim(filepath.Clean(f), "/"), "/", "_")
			out = append(out, bundle.Source{Name: name, Collect: func(context.Context) ([]byte, error) { return tail(f, maxLog) }})
		}
	}
	return out
}

// tail returns the end of a file.
func tail(path string, most int64) (_ []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, most))
	if st.Size() > most {
		// The first line is half a line: half a secret would not be known as one.
		_, b, _ = bytes.Cut(b, []byte{'\n'})
	}
	return b, err
}
