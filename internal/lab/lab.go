package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// Defaults of Config.
const (
	DefaultName     = "lab"
	DefaultNodes    = 3
	DefaultPoolSize = "20G"
	baseDir         = "/var/lib/keelson-lab"
	maxNodes        = 20
	stateFile       = "lab.json"
	stateVersion    = 1
)

// What can be wrong with a request.
var (
	ErrInvalid = errors.New("invalid request")
	ErrNotRoot = errors.New("a lab needs root: namespaces, mounts and loop devices are made")
	ErrExists  = errors.New("the lab exists already")
	ErrNoLab   = errors.New("there is no such lab")
	ErrNoNode  = errors.New("the lab has no such node")
	ErrNotUp   = errors.New("the node is not running")
)

// Config describes a lab to be made.
type Config struct {
	Name string // DNS label; labs of different names live side by side
	Dir  string // "" is a directory of its own below /var/lib/keelson-lab
	// Binary is the keelson that the nodes shall run; the lab keeps a copy.
	Binary   string
	Nodes    int
	Zones    int    // nodes are dealt out to z1, z2, … in turn
	PoolSize string // of the one pool of each node, as `keelson pool add --size` takes it; "" makes none
	// Settings are more keys of every node's configuration; they win over the lab's own.
	Settings map[string]any
	// Plain switches encryption between the engines off.
	Plain bool
	// Report is told what was done and how long it took. nil is for silence.
	Report func(what string, took time.Duration)
}

// Lab is a lab that exists.
type Lab struct {
	state state
}

// state is what DIR/lab.json holds.
type state struct {
	Version  int       `json:"version"`
	Name     string    `json:"name"`
	Dir      string    `json:"dir"`
	Binary   string    `json:"binary"`
	Bridge   string    `json:"bridge"`
	Subnet   string    `json:"subnet"` // the first three numbers of the /24
	PoolSize string    `json:"poolSize,omitempty"`
	Plain    bool      `json:"plain,omitempty"`
	Created  time.Time `json:"created"`
	Nodes    []*node   `json:"nodes"`
}

type node struct {
	Name    string   `json:"name"`
	Zone    string   `json:"zone"`
	Roles   []string `json:"roles"`
	Address string   `json:"address"`
	Netns   string   `json:"netns"`
	Veth    string   `json:"veth"` // the end on the bridge
	Keeper  process  `json:"keeper"`
}

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

func (c *Config) complete() error {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if !label.MatchString(c.Name) {
		return fmt.Errorf("%w: lab name %q: use at most 32 of a–z, 0–9 and '-', with a letter or digit at both ends", ErrInvalid, c.Name)
	}
	if c.Dir == "" {
		c.Dir = Dir(c.Name)
	}
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("%w: lab directory %q is not an absolute path", ErrInvalid, c.Dir)
	}
	if len(c.Dir) > 60 {
		return fmt.Errorf("%w: lab directory %q is longer than 60 characters: the sockets below it couldn't be bound", ErrInvalid, c.Dir)
	}
	if c.Nodes < 1 || c.Nodes > maxNodes {
		return fmt.Errorf("%w: %d nodes: a lab has 1 to %d", ErrInvalid, c.Nodes, maxNodes)
	}
	if c.Zones < 1 || c.Zones > c.Nodes {
		return fmt.Errorf("%w: %d zones: give 1 to %d, the number of nodes", ErrInvalid, c.Zones, c.Nodes)
	}
	if c.Report == nil {
		c.Report = func(string, time.Duration) {}
	}
	return nil
}

// Dir is where the lab of that name lives unless told otherwise.
func Dir(name string) string { return filepath.Join(baseDir, name) }

// Load opens the lab in dir.
func Load(dir string) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w; make one with `keelson lab up`", dir, ErrNoLab)
	}
	if err != nil {
		return nil, err
	}
	l := &Lab{}
	if err := json.Unmarshal(b, &l.state); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w; `keelson lab down` removes what there is", filepath.Join(dir, stateFile), err)
	}
	if l.state.Version != stateVersion {
		return nil, fmt.Errorf("the lab in %s was made by another version of keelson: remove it with that one", dir)
	}
	return l, nil
}

// save records the state; what it names is made after.
func (l *Lab) save() error {
	b, err := json.MarshalIndent(l.state, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(l.state.Dir, stateFile)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Name returns the lab's name.
func (l *Lab) Name() string { return l.state.Name }

// Binary returns the keelson that runs on the nodes.
func (l *Lab) Binary() string { return l.state.Binary }

// Nodes returns the names of the nodes, in order.
func (l *Lab) Nodes() []string {
	var out []string
	for _, n := range l.state.Nodes {
		out = append(out, n.Name)
	}
	return out
}

// Address returns the node's IP address, "" for a node that isn't there.
func (l *Lab) Address(name string) string {
	n, err := l.node(name)
	if err != nil {
		return ""
	}
	return n.Address
}

// NodeDir returns the directory with the node's configuration, logs, data and run directory.
func (l *Lab) NodeDir(name string) string { return filepath.Join(l.state.Dir, name) }

func (l *Lab) dataDir(name string) string    { return filepath.Join(l.NodeDir(name), "data") }
func (l *Lab) runDir(name string) string     { return filepath.Join(l.NodeDir(name), "run") }
func (l *Lab) configFile(name string) string { return filepath.Join(l.NodeDir(name), "keelson.yaml") }
func (l *Lab) tokenFile() string             { return filepath.Join(l.state.Dir, "token") }

func (l *Lab) node(name string) (*node, error) {
	for _, n := range l.state.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("%q: %w; it has %v", name, ErrNoNode, l.Nodes())
}

// tag is what the names of the lab's interfaces begin with: they are too short for its name.
func tag(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "kl" + hex.EncodeToString(sum[:3])
}

func netnsName(lab, node string) string { return "keelson-" + lab + "-" + node }
