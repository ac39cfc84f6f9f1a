package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/server"
	"keelson.io/keelson/internal/spec"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (-update writes it anew):\n%s", path, got)
	}
}

func sample() *pb.StatusResponse {
	at := timestamppb.New(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	return &pb.StatusResponse{
		ClusterId: "00000000000000c1", ClusterName: "keelson", Health: "Degraded", Leader: "n1", Now: at,
		Problems: []string{"node n2: gone: it holds no lease; is keelson server running there, and the network up?"},
		Nodes: []*pb.Node{
			{Name: "n1", Id: "00000000000000a1", Roles: []string{"metadata", "storage"}, Zone: "z1", ApiAddr: "10.0.0.1:9500", EngineAddr: "10.0.0.1:9501",
				Shards: 2, Joined: at, Version: "1.0", Alive: true, Leader: true, Labels: map[string]string{"rack": "7", "disk": "fast"}},
			{Name: "n2", Id: "00000000000000a2", Roles: []string{"storage"}, ApiAddr: "10.0.0.2:9500", Joined: at, Version: "1.0", Cordoned: true},
		},
		Metadata: []*pb.MetadataMember{{Name: "n1", Id: "1", Healthy: true, ClientUrl: "https://10.0.0.1:9502"}},
		Pools: []*pb.Pool{
			{Id: "00000000000000b1", Node: "n1", Device: "/dev/sdb", Media: "nvme", Capacity: 10 << 30, Reserve: 512 << 20, Used: 3 << 30, Live: true, Provisioned: 4 << 30, Replicas: 1, Created: at},
			{Id: "00000000000000b2", Node: "n2", File: "/srv/pool", Media: "hdd", Capacity: 10 << 30, Created: at, Problem: "node n2 is gone"},
		},
		Volumes: []*pb.Volume{{
			Id: "00000000000000d1", Name: "pg", Size: 4 << 30, Replicas: 2, ColumnCount: 1, ZoneSpread: true, Created: at, Term: 3, Node: "n1",
			Frontend: "fuse", Device: "/dev/loop0", Health: "Degraded", Condition: "column 0: the replica on n2 is Syncing",
			Scrub: &pb.Scrub{Number: 3, State: "Paused", Done: 1 << 30, Total: 4 << 30, Begun: at, Findings: &pb.ScrubFindings{Repaired: 1}, Last: &pb.ScrubResult{
				Number: 2, Begun: at, Ended: at, Findings: &pb.ScrubFindings{Bytes: 3 << 30, Repaired: 4, Differing: 2, Partial: true,
					Bad: []*pb.ScrubBad{{Off: 8192, Len: 8192, Differ: true, Pools: []string{"00000000000000b1"}}, {Off: 65536, Len: 4096}}}}},
			NodeSelector: map[string]string{"disk": "fast"},
			Columns: []*pb.Column{{Members: []*pb.Member{
				{Replica: "00000000000000e1", Node: "n1", Pool: "00000000000000b1", State: "InSync", Since: at, Reason: "zone z1 had no copy; the only candidate", Alive: true},
				{Replica: "00000000000000e2", Node: "n2", Pool: "00000000000000b2", State: "Syncing", Since: at, Reason: "the only candidate", ResyncDone: 1 << 30, ResyncTotal: 4 << 30},
			}}},
		}},
	}
}

func TestTables(t *testing.T) {
	s := sample()
	for name, print := range map[string]func(io.Writer){
		"status.golden": func(w io.Writer) { statusText(w, s) },
		"volume.golden": func(w io.Writer) { volumeDetails(w, s.Volumes[0]) },
		"node.golden":   func(w io.Writer) { nodeDetails(w, s.Nodes[0]) },
		"pool.golden":   func(w io.Writer) { poolDetails(w, s.Pools[0]) },
		"settings.golden": func(w io.Writer) {
			settingsTable(w, &pb.Settings{RebuildAfter: durationpb.New(10 * time.Minute), RebuildBandwidth: 200 << 20, AnswerLimit: durationpb.New(10 * time.Second), Overcommit: 10})
		},
	} {
		var b bytes.Buffer
		print(&b)
		golden(t, name, b.Bytes())
	}
}

func TestMachineOutput(t *testing.T) {
	for _, format := range []string{"json", "yaml"} {
		var b bytes.Buffer
		o := outputFlag{format}
		if err := o.print(&b, plainList(sample().Volumes), nil); err != nil {
			t.Fatal(err)
		}
		golden(t, "volumes."+format, b.Bytes())
	}
	o := outputFlag{"xml"}
	if exitCode(o.check()) != exitUsage {
		t.Error("-o xml was taken")
	}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), exitFailure},
		{usageError{errors.New("x")}, exitUsage},
		{spec.CheckName("volume name", "A"), exitUsage},
		{connect.NewError(connect.CodeInvalidArgument, errors.New("x")), exitUsage},
		{connect.NewError(connect.CodeNotFound, errors.New("x")), exitNotFound},
		{connect.NewError(connect.CodeAlreadyExists, errors.New("x")), exitConflict},
		{connect.NewError(connect.CodeFailedPrecondition, errors.New("x")), exitConflict},
		{connect.NewError(connect.CodeUnavailable, errors.New("x")), exitUnavailable},
		{connect.NewError(connect.CodeResourceExhausted, errors.New("x")), exitImpossible},
		{connect.NewError(connect.CodePermissionDenied, errors.New("x")), exitDenied},
		{fmt.Errorf("x: %w", server.ErrPermanent), server.ExitPermanent},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}

// run runs a command line as main does.
func run(t *testing.T, line ...string) (out string, code int, msg string) {
	t.Helper()
	var b bytes.Buffer
	root := newRootCommand()
	root.SetArgs(line)
	root.SetOut(&b)
	root.SetErr(&b)
	err := root.Execute()
	if err != nil {
		msg = message(err)
	}
	return b.String(), exitCode(err), msg
}

func TestUsageErrors(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		line string
		want int
		word string
	}{
		{"nonsense", exitUsage, "nonsense"},
		{"volume nonsense", exitUsage, "nonsense"},
		{"volume create", exitUsage, "usage: keelson volume create"},
		{"volume create a", exitUsage, "size"},
		{"volume create a --size 0", exitUsage, "size"},
		{"volume create a --size lots", exitUsage, "lots"},
		{"volume create a --size 1Gi --replicas 0", exitUsage, "replicas"},
		{"volume create a --size 1Gi --columns 0", exitUsage, "columns"},
		{"volume create a --size 1Gi --node-selector x", exitUsage, "node-selector"},
		{"volume list -o xml", exitUsage, "xml"},
		{"volume list --nonsense", exitUsage, "nonsense"},
		{"volume force-online a", exitUsage, "--accept-loss"},
		{"pool add", exitUsage, "--device"},
		{"pool add --device /dev/a --file b --size 1G", exitUsage, "one of"},
		{"pool add --file b", exitUsage, "--size"},
		{"settings set speed 9", exitUsage, "speed"},
		{"settings set rebuild-after soon", exitUsage, "soon"},
		{"settings set answer-limit 10", exitUsage, "answer-limit"},
		{"server --api-port 0", exitUsage, "apiPort"},
		{"server --node A_b", exitUsage, "node"},
		{"status", exitFailure, "--data-dir"},
		{"version", 0, ""},
	} {
		_, code, msg := run(t, append(strings.Fields(c.line), "--data-dir", dir, "--config", "/dev/null")...)
		if code != c.want || !strings.Contains(msg, c.word) {
			t.Errorf("keelson %s: exit code %d, %q; want %d, %q", c.line, code, msg, c.want, c.word)
		}
	}
}

func TestCompletionForEveryShell(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out, code, msg := run(t, "completion", shell); code != 0 || len(out) < 1000 {
			t.Errorf("%s: exit code %d, %d bytes, %s", shell, code, len(out), msg)
		}
	}
}
