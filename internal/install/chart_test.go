package install_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/yaml"

	"keelson.io/keelson/deploy"
	"keelson.io/keelson/internal/install"
	"keelson.io/keelson/internal/server"
)

var update = flag.Bool("update", false, "write docs/ops/values.md")

func chart(t *testing.T) *install.Chart {
	t.Helper()
	c, err := install.Load(deploy.Chart())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var options = install.Options{Release: "keelson", Namespace: "keelson-system", KubeVersion: "v1.34.1+k3s1"}

// variants are values that together reach every branch of the templates.
var variants = map[string]string{
	"defaults": "",
	"everything": `
image: {repository: example.org/keelson, tag: v1.2.3}
imagePullSecrets: [{name: pull}]
disks: {all: true, fileSize: 10GiB, rules: [{paths: [/dev/sd*], media: [hdd], minSize: 1Ti, labels: {tier: cold}, nodeLabels: {disk: "yes"}}]}
csi: {aliases: {pureCSI: true, portworx: true}}
encryption: {provider: file, secretName: volume-keys, kms: {socketDir: /run/kms, socket: plugin.sock}}
metadata: {members: 5, endpoints: ["https://10.0.0.9:2379"], secretName: etcd}
server: {nodeSelector: {storage: "true"}, podAnnotations: {a: b}, affinity: {nodeAffinity: {}}, resources: {limits: {memory: 1Gi}}}
controller: {nodeSelector: {a: b}, podAnnotations: {a: b}, affinity: {podAffinity: {}}}
scheduler: {image: "example.org/kube-scheduler:v1", nodeSelector: {a: b}, podAnnotations: {a: b}, affinity: {podAffinity: {}}}
snapshots: {enabled: true, installCRDs: true, groups: true, controller: {enabled: true}}
serviceMonitor: {enabled: true, labels: {release: prometheus}}
storageClasses: {default: "true", parameters: {media: nvme}}
`,
	"nothing": `
csi: {aliases: {pureCSI: false}}
server: {tolerations: [], priorityClassName: ""}
controller: {tolerations: []}
scheduler: {enabled: false}
storageClasses: {enabled: false}
failover: {enabled: false}
networkPolicy: {enabled: false}
uninstall: {check: false}
`,
	"a scheduler and no default class": "scheduler: {tolerations: []}\nstorageClasses: {default: \"false\", volumeBindingMode: Immediate}",
}

func parsed(t *testing.T, text string) map[string]any {
	t.Helper()
	v, err := install.ParseValues("values", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// object is what every object has.
type object struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	text string
}

// objects are all of a rendered chart, hooks too, by kind and name.
func objects(t *testing.T, values string) map[string]object {
	t.Helper()
	files, err := chart(t).Files(parsed(t, values), options)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]object{}
	for _, text := range files {
		split(t, text, out)
	}
	return out
}

func split(t *testing.T, text string, out map[string]object) {
	t.Helper()
	for part := range strings.SplitSeq("\n"+text, "\n---") {
		var o object
		if err := yaml.Unmarshal([]byte(part), &o); err != nil {
			t.Fatalf("%v in\n%s", err, part)
		}
		if o.Kind == "" {
			continue
		}
		o.text = strings.TrimSpace(part) + "\n"
		key := o.Kind + " " + o.Metadata.Name
		if _, twice := out[key]; twice {
			t.Errorf("%s is there twice", key)
		}
		out[key] = o
	}
}

// kinds are those that Kubernetes has itself.
var kinds = map[string]func() any{
	"v1 ConfigMap": func() any { return &corev1.ConfigMap{} }, "v1 ServiceAccount": func() any { return &corev1.ServiceAccount{} },
	"v1 Service": func() any { return &corev1.Service{} }, "apps/v1 DaemonSet": func() any { return &appsv1.DaemonSet{} },
	"apps/v1 Deployment": func() any { return &appsv1.Deployment{} }, "batch/v1 Job": func() any { return &batchv1.Job{} },
	"networking.k8s.io/v1 NetworkPolicy":              func() any { return &networkingv1.NetworkPolicy{} },
	"rbac.authorization.k8s.io/v1 Role":               func() any { return &rbacv1.Role{} },
	"rbac.authorization.k8s.io/v1 RoleBinding":        func() any { return &rbacv1.RoleBinding{} },
	"rbac.authorization.k8s.io/v1 ClusterRole":        func() any { return &rbacv1.ClusterRole{} },
	"rbac.authorization.k8s.io/v1 ClusterRoleBinding": func() any { return &rbacv1.ClusterRoleBinding{} },
	"storage.k8s.io/v1 StorageClass":                  func() any { return &storagev1.StorageClass{} },
	"storage.k8s.io/v1 CSIDriver":                     func() any { return &storagev1.CSIDriver{} },
	"monitoring.coreos.com/v1 ServiceMonitor":         nil,
	"snapshot.storage.k8s.io/v1 VolumeSnapshotClass":  nil,

	"groupsnapshot.storage.k8s.io/v1 VolumeGroupSnapshotClass": nil,

	"apiextensions.k8s.io/v1 CustomResourceDefinition":  nil,
	"policy/v1 PodDisruptionBudget":                     nil,
	"scheduling.k8s.io/v1 PriorityClass":                nil,
	"kubescheduler.config.k8s.io/v1 SchedulerConfigMap": nil,
}

var clusterWide = []string{"ClusterRole", "ClusterRoleBinding", "StorageClass", "CSIDriver", "VolumeSnapshotClass", "VolumeGroupSnapshotClass", "CustomResourceDefinition"}

func TestEveryObjectIsWhatKubernetesKnows(t *testing.T) {
	for name, values := range variants {
		t.Run(name, func(t *testing.T) {
			for key, o := range objects(t, values) {
				make, known := kinds[o.APIVersion+" "+o.Kind]
				if !known {
					t.Errorf("%s: %s %s isn't a kind that the chart should have", key, o.APIVersion, o.Kind)
					continue
				}
				if make != nil {
					if err := yaml.UnmarshalStrict([]byte(o.text), make()); err != nil {
						t.Errorf("%s: %v", key, err)
					}
				}
				want := options.Namespace
				if key == "RoleBinding keelson-scheduler-authentication" {
					want = "kube-system" // the role is there
				}
				if (o.Metadata.Namespace != want) != slices.Contains(clusterWide, o.Kind) {
					t.Errorf("%s: namespace %q", key, o.Metadata.Namespace)
				}
				if o.Metadata.Labels["app.kubernetes.io/name"] != "keelson" {
					t.Errorf("%s: labels %v", key, o.Metadata.Labels)
				}
			}
		})
	}
}

func decode[T any](t *testing.T, all map[string]object, key string) *T {
	t.Helper()
	o, ok := all[key]
	if !ok {
		t.Fatalf("there is no %s", key)
	}
	out := new(T)
	if err := yaml.UnmarshalStrict([]byte(o.text), out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTheServerTakesItsConfiguration(t *testing.T) {
	for name, values := range variants {
		t.Run(name, func(t *testing.T) {
			cm := decode[corev1.ConfigMap](t, objects(t, values), "ConfigMap keelson-config")
			file := filepath.Join(t.TempDir(), "keelson.yaml")
			if err := os.WriteFile(file, []byte(cm.Data["keelson.yaml"]), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := server.LoadConfig(file)
			if err != nil {
				t.Fatalf("%v in\n%s", err, cm.Data["keelson.yaml"])
			}
			c.Node, c.Address = "n1", "10.0.0.1"
			if err := c.Complete(); err != nil {
				t.Fatalf("%v in\n%s", err, cm.Data["keelson.yaml"])
			}
			if name == "everything" && (len(c.Disks) != 3 || len(c.CSI.Aliases) != 2 || len(c.Metadata.Endpoints) != 1 || !c.Kube.Failover || c.Kube.Extender == "") {
				t.Fatalf("%+v", c)
			}
			if name == "nothing" && (c.Kube.Failover || c.Kube.Extender != "") {
				t.Fatalf("%+v", c.Kube)
			}
		})
	}
}

func TestTheSchedulerTakesItsConfiguration(t *testing.T) {
	cm := decode[corev1.ConfigMap](t, objects(t, ""), "ConfigMap keelson-scheduler")
	// The part of kubescheduler.config.k8s.io/v1 that is used.
	var c struct {
		APIVersion     string `json:"apiVersion"`
		Kind           string `json:"kind"`
		LeaderElection struct {
			LeaderElect       bool   `json:"leaderElect"`
			ResourceName      string `json:"resourceName"`
			ResourceNamespace string `json:"resourceNamespace"`
		} `json:"leaderElection"`
		Profiles []struct {
			SchedulerName string `json:"schedulerName"`
		} `json:"profiles"`
		Extenders []struct {
			URLPrefix        string `json:"urlPrefix"`
			FilterVerb       string `json:"filterVerb"`
			PrioritizeVerb   string `json:"prioritizeVerb"`
			Weight           int64  `json:"weight"`
			HTTPTimeout      string `json:"httpTimeout"`
			NodeCacheCapable bool   `json:"nodeCacheCapable"`
			Ignorable        bool   `json:"ignorable"`
		} `json:"extenders"`
	}
	if err := yaml.UnmarshalStrict([]byte(cm.Data["config.yaml"]), &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Profiles) != 2 || c.Profiles[0].SchedulerName != "keelson" || c.Profiles[1].SchedulerName != "stork" ||
		len(c.Extenders) != 1 || c.Extenders[0].URLPrefix != "http://127.0.0.1:9504/scheduler" || !c.Extenders[0].Ignorable {
		t.Fatalf("%+v", c)
	}
	d := decode[appsv1.Deployment](t, objects(t, ""), "Deployment keelson-scheduler")
	if got := d.Spec.Template.Spec.Containers[0].Image; got != "registry.k8s.io/kube-scheduler:v1.34.1" {
		t.Fatal(got)
	}
}

func TestAliasesBringTheirClassesAndSidecars(t *testing.T) {
	all := objects(t, "csi: {aliases: {pureCSI: true, portworx: true}}")
	for class, driver := range map[string]string{
		"keelson": "csi.keelson.io", "keelson-single": "csi.keelson.io", "keelson-triple": "csi.keelson.io",
		"pure-block": "pure-csi", "pure-file": "pure-csi", "portworx-replicated": "pxd.portworx.com",
	} {
		if c := decode[storagev1.StorageClass](t, all, "StorageClass "+class); c.Provisioner != driver {
			t.Errorf("class %s is of %s", class, c.Provisioner)
		}
		d := decode[storagev1.CSIDriver](t, all, "CSIDriver "+driver)
		if *d.Spec.AttachRequired || !*d.Spec.PodInfoOnMount || !*d.Spec.StorageCapacity || len(d.Spec.VolumeLifecycleModes) != 2 ||
			*d.Spec.FSGroupPolicy != storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy {
			t.Errorf("%+v", d.Spec)
		}
	}
	d := decode[appsv1.Deployment](t, all, "Deployment keelson-controller")
	if n := len(d.Spec.Template.Spec.Containers); n != 6 {
		t.Errorf("%d sidecars, want two for each of three drivers", n)
	}
	for key := range objects(t, "") {
		if strings.Contains(key, "pure") || strings.Contains(key, "portworx") || strings.Contains(key, "pxd") {
			t.Errorf("%s is there without being asked for", key)
		}
	}
}

func TestTheDefaultClass(t *testing.T) {
	for values, want := range map[string]string{"auto": "true", `"true"`: "true", `"false"`: "false", "true": "true", "false": "false"} {
		c := decode[storagev1.StorageClass](t, objects(t, "storageClasses: {default: "+values+"}"), "StorageClass keelson")
		if got := c.Annotations["storageclass.kubernetes.io/is-default-class"]; got != want {
			t.Errorf("%s: %s, want %s", values, got, want)
		}
	}
}

func TestValuesThatAreNotLegal(t *testing.T) {
	for values, want := range map[string]string{
		"csi: {maxVolumes: 0}":                             "csi.maxVolumes: 0 is not legal; legal: a whole number from 1 to 4096",
		"csi: {maxVolumes: many}":                          `csi.maxVolumes: "many" is not legal; legal: a whole number from 1 to 4096`,
		"csi: {maxVolumes: 1.5}":                           "csi.maxVolumes: 1.5 is not legal",
		"metadata: {members: 2}":                           "metadata.members: 2 is not legal; legal: 1, 3, 5",
		"clusterName: My_Cluster":                          `clusterName: "My_Cluster" is not legal; legal: a DNS label`,
		"disks: {fileSize: big}":                           `disks.fileSize: "big" is not legal; legal: a size such as 10Gi`,
		"disks: {rules: [{media: [tape]}]}":                `disks.rules[0].media[0]: "tape" is not legal; legal: nvme, ssd, hdd`,
		"disks: {rules: [{path: /dev/sda}]}":               "disks.rules[0].path: there is no such key; legal: all, labels, maxSize",
		"disks: {al: true}":                                "disks.al: there is no such key; legal: all, fileSize, rules",
		"disks: {all: 'yes'}":                              `disks.all: "yes" is not legal; legal: true, false`,
		"storageClasses: {default: perhaps}":               `storageClasses.default: "perhaps" is not legal; legal: auto, true, false`,
		"storageClasses: {parameters: {replicas: 2}}":      "storageClasses.parameters.replicas: 2 is not legal; legal: text",
		"image: keelson:1":                                 `image: "keelson:1" is not legal; legal: keys pullPolicy, repository, tag`,
		"server: {tolerations: [{operator: Sometimes}]}":   `server.tolerations[0].operator: "Sometimes" is not legal; legal: Exists, Equal`,
		"dataDir: var/lib":                                 `dataDir: "var/lib" is not legal; legal: an absolute path`,
		"ports: {api: 70000}":                              "ports.api: 70000 is not legal; legal: a whole number from 1 to 65535",
		"controller: {resources: {}}":                      "controller.resources: there is no such key",
		"controller: {provisioner: {resources: {cpu: 1}}}": "controller.provisioner.resources.cpu: there is no such key; legal: claims, limits, requests",
	} {
		_, err := chart(t).Render(parsed(t, values), options)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", values, err, want)
		}
	}
}

// TestSchemaAndValuesAgree: every setting has a default and every default is described.
func TestSchemaAndValuesAgree(t *testing.T) {
	c := chart(t)
	described := map[string]bool{}
	for _, s := range c.Schema().Settings() {
		described[s.Key] = true
		if s.Schema.Description == "" {
			t.Errorf("%s has no description", s.Key)
		}
		if _, ok := value(c.Defaults(), s.Key); !ok {
			t.Errorf("%s is in the schema, and not in values.yaml", s.Key)
		}
	}
	var walk func(key string, v any)
	walk = func(key string, v any) {
		m, ok := v.(map[string]any)
		if !ok || described[key] {
			if !described[key] {
				t.Errorf("%s is in values.yaml, and not in the schema", key)
			}
			return
		}
		for k, x := range m {
			walk(strings.TrimPrefix(key+"."+k, "."), x)
		}
	}
	walk("", c.Defaults())
}

func value(m map[string]any, key string) (any, bool) {
	var v any = m
	for part := range strings.SplitSeq(key, ".") {
		sub, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = sub[part]; !ok {
			return nil, false
		}
	}
	return v, true
}

// TestFlagsSetEverySetting: what a flag says is what the value is.
func TestFlagsSetEverySetting(t *testing.T) {
	c := chart(t)
	seen := map[string]string{}
	for _, s := range c.Schema().Settings() {
		if other, twice := seen[s.Flag]; twice {
			t.Errorf("--%s is for %s and %s", s.Flag, other, s.Key)
		}
		seen[s.Flag] = s.Key
		d, _ := value(c.Defaults(), s.Key)
		text := fmt.Sprint(d)
		if s.Schema.Type == "array" || s.Schema.Type == "object" {
			b, err := yaml.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			j, err := yaml.YAMLToJSON(b)
			if err != nil {
				t.Fatal(err)
			}
			text = string(j)
		}
		got, err := install.Set(map[string]any{}, s, text)
		if err != nil {
			t.Errorf("--%s %s: %v", s.Flag, text, err)
			continue
		}
		v, _ := value(got, s.Key)
		if fmt.Sprint(v) != fmt.Sprint(d) {
			t.Errorf("--%s %s sets %v", s.Flag, text, v)
		}
	}
	for _, flag := range []string{"all-disks", "file-size", "image-tag", "csi-aliases-portworx"} {
		if seen[flag] == "" {
			t.Errorf("there is no --%s", flag)
		}
	}
}

// TestManifestIsComplete: the manifest has what Helm would make, but what it makes to uninstall, and the namespace first.
func TestManifestIsComplete(t *testing.T) {
	o := options
	o.WithNamespace = true
	b, err := chart(t).Render(parsed(t, variants["everything"]), o)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]object{}
	split(t, string(b), got)
	if !strings.HasPrefix(string(b), "---\napiVersion: v1\nkind: Namespace\n") {
		t.Errorf("it begins with %.60q", b)
	}
	for key, o := range objects(t, variants["everything"]) {
		_, ok := got[key]
		if hook := o.Metadata.Annotations["helm.sh/hook"] == "pre-delete"; ok == hook {
			t.Errorf("%s: in the manifest: %v, hook: %v", key, ok, hook)
		}
	}
}

func TestTheListOfValuesIsUpToDate(t *testing.T) {
	const file = "../../docs/ops/values.md"
	c := chart(t)
	var b strings.Builder
	b.WriteString("# Values of the chart\n\nWhat `helm install --set` and the flags of `keelson install yaml` set. This page is made from the chart:\n" +
		"`go test ./internal/install -run ListOfValues -update`.\n\n| value | flag | default | legal | meaning |\n|---|---|---|---|---|\n")
	for _, s := range c.Schema().Settings() {
		d, _ := value(c.Defaults(), s.Key)
		y, err := yaml.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		j, err := yaml.YAMLToJSON(y)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "| `%s` | `--%s` | `%s` | %s | %s |\n", s.Key, s.Flag, j, strings.ReplaceAll(s.Schema.Range(), "|", `\|`), s.Schema.Description)
	}
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil || string(have) != b.String() {
		t.Fatalf("%s isn't what the chart says (%v): run this test with -update", file, err)
	}
}
