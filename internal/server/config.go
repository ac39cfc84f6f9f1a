package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// DefaultConfigFile is read if it exists and no other one was asked for.
const DefaultConfigFile = "/etc/keelson/keelson.yaml"

// Config is a node's configuration: the file, with flags laid over it.
type Config struct {
	Node    string `yaml:"node"`    // name; default: the host's, up to the first dot
	DataDir string `yaml:"dataDir"` // everything that must survive a reboot
	RunDir  string `yaml:"runDir"`  // sockets
	// Address is the IP address, or host name, where other nodes reach this one, and to which
	// everything listens.
	Address        string            `yaml:"address"`
	APIPort        int               `yaml:"apiPort"`
	EnginePort     int               `yaml:"enginePort"`
	EtcdClientPort int               `yaml:"etcdClientPort"`
	EtcdPeerPort   int               `yaml:"etcdPeerPort"`
	Roles          []spec.Role       `yaml:"roles"`
	Zone           string            `yaml:"zone"`
	Labels         map[string]string `yaml:"labels"`
	ClusterName    string            `yaml:"clusterName"` // of a new cluster
	Join           JoinConfig        `yaml:"join"`
	Metadata       MetadataConfig    `yaml:"metadata"`
	Engine         EngineConfig      `yaml:"engine"`
	Log            LogConfig         `yaml:"log"`
	// Certificates should be the same on all nodes: metadata nodes sign for the others.
	Certificates CertificatesConfig `yaml:"certificates"`
	CSI          CSIConfig          `yaml:"csi"`
	Membership   MembershipConfig   `yaml:"membership"`
	Disks        []DiskRule         `yaml:"disks"`
	Kube         KubeConfig         `yaml:"kube"`
	// Encryption should be the same on all nodes.
	Encryption EncryptionConfig `yaml:"encryption"`
}

// CertificatesConfig is about the nodes' certificates.
type CertificatesConfig struct {
	Valid       time.Duration `yaml:"valid"`       // how long those that this node signs are
	RenewBefore time.Duration `yaml:"renewBefore"` // their end, a node replaces its own
}

// checkEvery is how often a node looks whether its certificate has to be renewed.
func (c CertificatesConfig) checkEvery() time.Duration { return min(c.RenewBefore/8, refreshEvery) }

// JoinConfig says how to enter an existing cluster. It is looked at only as long as the data
// directory belongs to none.
type JoinConfig struct {
	URL       string `yaml:"url"` // API of any node: https://HOST:9500
	Token     string `yaml:"token"`
	TokenFile string `yaml:"tokenFile"`
}

// MetadataConfig points to an etcd that Keelson doesn't run. Without endpoints the nodes with
// the role metadata run one.
type MetadataConfig struct {
	Endpoints []string `yaml:"endpoints"`
	CAFile    string   `yaml:"caFile"`
	CertFile  string   `yaml:"certFile"`
	KeyFile   string   `yaml:"keyFile"`
}

// EngineConfig is about the data plane.
type EngineConfig struct {
	Shards     int  `yaml:"shards"`     // event loops; default: one a CPU, at most 8
	Encryption bool `yaml:"encryption"` // of what travels between engines
	// Spin is how long an event loop looks for completions before it sleeps.
	Spin time.Duration `yaml:"spin"`
	// Cgroup is what is done about a control group that could hold writers of volumes: auto, own or keep.
	Cgroup string `yaml:"cgroup"`
}

// LogConfig is about the log on standard error.
type LogConfig struct {
	Level  string `yaml:"level"`  // debug, info, warn, error
	Format string `yaml:"format"` // text, json
}

// DefaultConfig returns the defaults of everything that has one.
func DefaultConfig() Config {
	return Config{
		DataDir:        "/var/lib/keelson",
		RunDir:         "/run/keelson",
		APIPort:        9500,
		EnginePort:     9501,
		EtcdClientPort: 9502,
		EtcdPeerPort:   9503,
		Roles:          []spec.Role{spec.RoleMetadata, spec.RoleStorage},
		ClusterName:    "keelson",
		Engine:         EngineConfig{Encryption: true, Cgroup: cgroupAuto},
		Log:            LogConfig{Level: "info", Format: "text"},
		Certificates:   CertificatesConfig{Valid: 365 * 24 * time.Hour, RenewBefore: pki.RenewBefore},
		Kube:           defaultKube(),
	}
}

// LoadConfig reads the file over the defaults. path "" is DefaultConfigFile, which
// needn't exist.
func LoadConfig(path string) (Config, error) {
	c := DefaultConfig()
	optional := path == ""
	if optional {
		path = DefaultConfigFile
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && optional {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("configuration: %w", err)
	}
	if err := c.parse(b); err != nil {
		return c, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

func (c *Config) parse(b []byte) error {
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	err := d.Decode(c)
	var te *yaml.TypeError
	switch {
	case errors.Is(err, io.EOF): // empty
		return nil
	case errors.As(err, &te):
		return errors.New(strings.Join(plainYAML(te.Errors), "; "))
	case err != nil:
		return err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("it has more than one YAML document")
	}
	return nil
}

// plainYAML words the decoder's messages for people: they name Go types.
func plainYAML(msgs []string) []string {
	out := make([]string, len(msgs))
	for i, m := range msgs {
		if head, _, ok := strings.Cut(m, " not found in type "); ok {
			m = strings.Replace(head, "field ", "unknown key ", 1)
		}
		out[i] = m
	}
	return out
}

// Complete fills what depends on the machine, and validates. Its errors name the key.
func (c *Config) Complete() error {
	if c.Node == "" {
		h, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("node: not set, and the host name can't be read: %w", err)
		}
		c.Node, _, _ = strings.Cut(strings.ToLower(h), ".")
	}
	if c.Address == "" {
		a, err := firstAddress()
		if err != nil {
			return fmt.Errorf("address: not set, and %w; set it to the address where other nodes reach this one", err)
		}
		c.Address = a
	}
	if c.Engine.Shards == 0 {
		c.Engine.Shards = min(runtime.NumCPU(), 8)
	}
	return c.validate()
}

func (c *Config) validate() error {
	if !dnsLabel(c.Node) {
		return fmt.Errorf("node: %q is no DNS label (at most 63 of a–z, 0–9 and '-'): set the node's name in the configuration or with --node", c.Node)
	}
	for key, dir := range map[string]string{"dataDir": c.DataDir, "runDir": c.RunDir} {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("%s: %q is not an absolute path", key, dir)
		}
	}
	if ip := net.ParseIP(c.Address); ip == nil && (strings.ContainsAny(c.Address, ":/ ") || c.Address == "") || ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("address: %q is neither an IP address nor a host name that other nodes could reach", c.Address)
	}
	seen := map[int]string{}
	for _, p := range []struct {
		key  string
		port int
	}{{"apiPort", c.APIPort}, {"enginePort", c.EnginePort}, {"etcdClientPort", c.EtcdClientPort}, {"etcdPeerPort", c.EtcdPeerPort}} {
		if p.port < 1 || p.port > 65535 {
			return fmt.Errorf("%s: %d is no port", p.key, p.port)
		}
		if other, ok := seen[p.port]; ok {
			return fmt.Errorf("%s: port %d is that of %s already", p.key, p.port, other)
		}
		seen[p.port] = p.key
	}
	if err := c.validateRoles(); err != nil {
		return err
	}
	if c.Engine.Shards < 1 || c.Engine.Shards > 64 {
		return fmt.Errorf("engine.shards: %d is not between 1 and 64", c.Engine.Shards)
	}
	if g := c.Engine.Cgroup; g != cgroupAuto && g != cgroupOwn && g != cgroupKeep {
		return fmt.Errorf("engine.cgroup: %q is none of auto, own and keep", g)
	}
	if v := c.Certificates.Valid; v < 10*time.Second || v > 10*365*24*time.Hour {
		return fmt.Errorf("certificates.valid: %s is not between 10 seconds and 10 years", v)
	}
	if b := c.Certificates.RenewBefore; b < time.Second || b > c.Certificates.Valid*9/10 {
		return fmt.Errorf("certificates.renewBefore: %s is not between a second and nine tenths of certificates.valid, %s", b, c.Certificates.Valid)
	}
	if err := c.CSI.validate(); err != nil {
		return err
	}
	if err := c.validateKube(); err != nil {
		return err
	}
	if err := c.Membership.validate(); err != nil {
		return err
	}
	if err := validateDisks(c.Disks); err != nil {
		return err
	}
	if err := c.Encryption.validate(); err != nil {
		return err
	}
	if _, err := c.Log.level(); err != nil {
		return err
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		return fmt.Errorf("log.format: %q is neither text nor json", c.Log.Format)
	}
	return nil
}

func (c *Config) validateRoles() error {
	if len(c.Roles) == 0 {
		return errors.New("roles: empty; give metadata, storage or both")
	}
	for _, r := range c.Roles {
		if r != spec.RoleMetadata && r != spec.RoleStorage {
			return fmt.Errorf("roles: %q is neither metadata nor storage", r)
		}
	}
	if c.Join.Token != "" && c.Join.TokenFile != "" {
		return errors.New("join: token and tokenFile are both set; set one")
	}
	if c.Join.URL == "" && (c.Join.Token != "" || c.Join.TokenFile != "") {
		return errors.New("join.url: not set, but a token is; set it to the API of a node of the cluster, https://HOST:9500")
	}
	if c.Join.URL != "" && c.Join.Token == "" && c.Join.TokenFile == "" {
		return errors.New("join.token: not set, but join.url is; make one on a node of the cluster with `keelson token create`")
	}
	if u, err := url.Parse(c.Join.URL); c.Join.URL != "" && (err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Port() == "") {
		return fmt.Errorf("join.url: %q is not the API of a node, https://HOST:%d", c.Join.URL, DefaultConfig().APIPort)
	}
	if (c.Metadata.CertFile == "") != (c.Metadata.KeyFile == "") {
		return errors.New("metadata: certFile and keyFile belong together")
	}
	if len(c.Metadata.Endpoints) == 0 && c.Metadata.CAFile+c.Metadata.CertFile != "" {
		return errors.New("metadata.endpoints: not set, but TLS files are")
	}
	return nil
}

// HasRole says whether the node has the role.
func (c *Config) HasRole(r spec.Role) bool {
	for _, x := range c.Roles {
		if x == r {
			return true
		}
	}
	return false
}

// OwnEtcd says whether this node runs a member of the metadata.
func (c *Config) OwnEtcd() bool {
	return c.HasRole(spec.RoleMetadata) && len(c.Metadata.Endpoints) == 0
}

// APIAddr is where other nodes reach this one's API; EngineAddr its engine.
func (c *Config) APIAddr() string { return net.JoinHostPort(c.Address, strconv.Itoa(c.APIPort)) }

// EngineAddr is where other engines reach this node's.
func (c *Config) EngineAddr() string { return net.JoinHostPort(c.Address, strconv.Itoa(c.EnginePort)) }

func (c *Config) etcdClientURL() string {
	return "https://" + net.JoinHostPort(c.Address, strconv.Itoa(c.EtcdClientPort))
}

func (c *Config) etcdPeerURL() string {
	return "https://" + net.JoinHostPort(c.Address, strconv.Itoa(c.EtcdPeerPort))
}

// EngineSocket is where the engine listens for this node's control process.
func (c *Config) EngineSocket() string { return filepath.Join(c.RunDir, "engine.sock") }

func (l LogConfig) level() (slog.Level, error) {
	var lv slog.Level
	if err := lv.UnmarshalText([]byte(l.Level)); err != nil {
		return 0, fmt.Errorf("log.level: %q is none of debug, info, warn, error", l.Level)
	}
	return lv, nil
}

// Logger returns the log of a process of the node, on standard error.
func (c *Config) Logger(process string) *slog.Logger {
	lv, err := c.Log.level()
	if err != nil {
		lv = slog.LevelInfo
	}
	opts := &slog.HandlerOptions{Level: lv}
	var h slog.Handler = slog.NewTextHandler(os.Stderr, opts)
	if c.Log.Format == "json" {
		h = slog.NewJSONHandler(os.Stderr, opts)
	}
	return slog.New(h).With("process", process, "node", c.Node)
}

func dnsLabel(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}

// firstAddress returns the first global unicast address of an interface that is up, IPv4
// before IPv6, and the loopback address on a machine without a network.
func firstAddress() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("the interfaces can't be read: %w", err)
	}
	var v6 string
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || !n.IP.IsGlobalUnicast() {
			continue
		}
		if n.IP.To4() != nil {
			return n.IP.String(), nil
		}
		if v6 == "" {
			v6 = n.IP.String()
		}
	}
	if v6 != "" {
		return v6, nil
	}
	return "127.0.0.1", nil
}
