package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"keelson.io/keelson/internal/spec"
)

// stateVersion is the format of the state file. A newer one is refused.
const stateVersion = 1

// State is what a data directory knows of whose it is: state.json in it. It is written
// before the step that it describes is relied on, so that every step can be repeated.
type State struct {
	Version     int         `json:"version"`
	Node        string      `json:"node"`
	NodeID      string      `json:"nodeId"`
	Roles       []spec.Role `json:"roles"`
	ClusterID   string      `json:"clusterId,omitempty"` // "" until the node has joined
	ClusterName string      `json:"clusterName,omitempty"`
	// Founder is set on the node that made the cluster.
	Founder bool `json:"founder,omitempty"`
	// External is set when the metadata is an etcd that Keelson doesn't run.
	External bool   `json:"external,omitempty"`
	APIAddr  string `json:"apiAddr"`
	// Endpoints are client URLs of the metadata, Peers API addresses of other nodes, as last known.
	Endpoints []string `json:"endpoints,omitempty"`
	Peers     []string `json:"peers,omitempty"`
	// InitialCluster is what this node's etcd is started with, once it was added as a member.
	InitialCluster string `json:"initialCluster,omitempty"`
	// Promoted is set once this node's etcd is a voting member.
	Promoted bool `json:"promoted,omitempty"`
	// Served is set once this node's etcd has served.
	Served bool `json:"served,omitempty"`
	// Called is set on a node that holds the metadata because the cluster called it: whatever roles it was given.
	Called bool `json:"called,omitempty"`
	// Recovery is the number of the last recovery of the metadata that this node knows of.
	Recovery int `json:"recovery,omitempty"`
}

func statePath(dataDir string) string { return filepath.Join(dataDir, "state.json") }

// ErrNoState: the data directory belongs to no node yet.
var ErrNoState = errors.New("the data directory belongs to no node yet")

// ReadState reads the state of a data directory.
func ReadState(dataDir string) (State, error) {
	b, err := os.ReadFile(statePath(dataDir))
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, fmt.Errorf("%s: %w", dataDir, ErrNoState)
	}
	if err != nil {
		return State{}, err
	}
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return State{}, fmt.Errorf("%s is damaged: %w", statePath(dataDir), err)
	}
	if s.Version > stateVersion {
		return State{}, fmt.Errorf("%s has version %d, and this keelson knows versions up to %d: run the newer keelson that wrote it", statePath(dataDir), s.Version, stateVersion)
	}
	return s, nil
}

func (s State) write(dataDir string) error {
	s.Version = stateVersion
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(statePath(dataDir), append(b, '\n'), 0o600)
}

// replaceFile replaces a file so that after a crash either the old or the new one is there.
func replaceFile(path string, b []byte, mode fs.FileMode) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
