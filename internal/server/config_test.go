package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/spec"
)

func TestLoadConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keelson.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("node: n1\nroles: [storage]\nengine:\n  encryption: false\njoin: {url: https://a:9500, tokenFile: /t}\n")
	c, err := LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.Node != "n1" || c.Engine.Encryption || c.APIPort != 9500 || len(c.Roles) != 1 || c.Roles[0] != spec.RoleStorage || c.Join.TokenFile != "/t" {
		t.Fatalf("%+v", c)
	}
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"nodename: x":                  "line 1: unknown key nodename",
		"node: a\nengine:\n  shard: 2": "line 3: unknown key shard",
		"apiPort: many":                "line 1",
		"node: a\n---\nnode: b":        "more than one",
		"\tnode: a":                    "cannot start any token",
	} {
		write(text)
		if _, err := LoadConfig(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v, want the file and %q", text, err, want)
		}
	}
	write("")
	if _, err := LoadConfig(path); err != nil {
		t.Errorf("an empty file: %v", err)
	}
	if _, err := LoadConfig(path + ".missing"); err == nil {
		t.Error("a file that isn't there but was asked for")
	}
}

func TestConfigValidation(t *testing.T) {
	for key, change := range map[string]func(*Config){
		"node:":                            func(c *Config) { c.Node = "N_1" },
		"dataDir:":                         func(c *Config) { c.DataDir = "here" },
		"runDir:":                          func(c *Config) { c.RunDir = "" },
		"address:":                         func(c *Config) { c.Address = "0.0.0.0" },
		"apiPort:":                         func(c *Config) { c.APIPort = 70000 },
		"enginePort:":                      func(c *Config) { c.EnginePort = c.APIPort },
		"roles:":                           func(c *Config) { c.Roles = []spec.Role{"king"} },
		"roles: empty":                     func(c *Config) { c.Roles = nil },
		"engine.shards:":                   func(c *Config) { c.Engine.Shards = 1000 },
		"certificates.valid:":              func(c *Config) { c.Certificates.Valid = time.Second },
		"certificates.renewBefore:":        func(c *Config) { c.Certificates.RenewBefore = c.Certificates.Valid },
		"encryption.provider: not set":     func(c *Config) { c.Encryption.KeyDir = "/keys" },
		"encryption.provider: \"vault\"":   func(c *Config) { c.Encryption.Provider = "vault" },
		"encryption.keyDir: not set":       func(c *Config) { c.Encryption.Provider = "file" },
		"encryption.keyDir: \"keys\"":      func(c *Config) { c.Encryption = EncryptionConfig{Provider: "file", KeyDir: "keys"} },
		"encryption.kms.endpoint: not set": func(c *Config) { c.Encryption = EncryptionConfig{Provider: "kms", KeyDir: "/keys"} },
		"encryption.kms.endpoint: \"/run/kms\"": func(c *Config) {
			c.Encryption = EncryptionConfig{Provider: "kms", KMS: KMSConfig{Endpoint: "/run/kms"}}
		},
		"encryption.kms.timeout: 1h0m0s": func(c *Config) {
			c.Encryption = EncryptionConfig{Provider: "kms", KMS: KMSConfig{"unix:///run/kms", time.Hour}}
		},
		"log.level:":                             func(c *Config) { c.Log.Level = "loud" },
		"log.format:":                            func(c *Config) { c.Log.Format = "xml" },
		"join.url:":                              func(c *Config) { c.Join.Token = "t" },
		"join.url: \"10":                         func(c *Config) { c.Join = JoinConfig{URL: "10.0.0.1", Token: "t"} },
		"join.url: \"https://a":                  func(c *Config) { c.Join = JoinConfig{URL: "https://a", Token: "t"} },
		"join.token:":                            func(c *Config) { c.Join.URL = "https://a:9500" },
		"join:":                                  func(c *Config) { c.Join = JoinConfig{"u", "t", "f"} },
		"metadata:":                              func(c *Config) { c.Metadata.CertFile = "/c" },
		"csi.socket:":                            func(c *Config) { c.CSI.Aliases = []CSIAlias{{Driver: "pure-csi", Socket: "/s"}} },
		"csi: CSI driver csi.keelson.io: socket": func(c *Config) { c.CSI.Socket = "csi.sock" },
		"csi.aliases: driver \"x\"":              func(c *Config) { c.CSI = CSIConfig{Socket: "/s", Aliases: []CSIAlias{{Driver: "x", Socket: "/t"}}} },
		"csi: CSI driver pure-csi: socket /s is": func(c *Config) {
			c.CSI = CSIConfig{Socket: "/s", Aliases: []CSIAlias{{Driver: "pure-csi", Socket: "/s"}}}
		},
		"csi.maxVolumes:":                    func(c *Config) { c.CSI = CSIConfig{Socket: "/s", MaxVolumes: -1} },
		"kube.enabled: true, but csi.socket": func(c *Config) { c.Kube.Enabled = true },
		"kube.kubeconfig:":                   kubeConfig(func(k *KubeConfig) { k.Kubeconfig = "kube.conf" }),
		"kube.kubeletDir: \"lib":             kubeConfig(func(k *KubeConfig) { k.KubeletDir = "lib" }),
		"kube.kubeletDir: empty":             kubeConfig(func(k *KubeConfig) { k.KubeletDir = "" }),
		"kube.restartPatience:":              kubeConfig(func(k *KubeConfig) { k.RestartPatience = time.Second }),
		"kube.namespace \"Kube_System\"":     kubeConfig(func(k *KubeConfig) { k.Namespace = "Kube_System" }),
		"kube.extender:":                     kubeConfig(func(k *KubeConfig) { k.Extender = "0.0.0.0:9504" }),
		"metadata.endpoints":                 func(c *Config) { c.Metadata.CAFile = "/c" },
	} {
		c := DefaultConfig()
		c.Node, c.Address = "n1", "10.0.0.1"
		change(&c)
		if err := c.Complete(); err == nil || !strings.HasPrefix(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func kubeConfig(change func(*KubeConfig)) func(*Config) {
	return func(c *Config) {
		c.CSI.Socket, c.Kube.Enabled = "/s", true
		change(&c.Kube)
	}
}
