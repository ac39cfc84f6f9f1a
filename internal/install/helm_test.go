package install_test

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"keelson.io/keelson/hack/kube/kubetest"
)

// TestHelmMakesTheSame compares with Helm itself.
func TestHelmMakesTheSame(t *testing.T) {
	program := kubetest.Program(t, "helm")
	for name, values := range variants {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "values.yaml")
			if err := os.WriteFile(file, []byte(values), 0o600); err != nil {
				t.Fatal(err)
			}
			dir := "../../deploy/chart"
			if out, err := exec.Command(program, "lint", "--strict", dir, "--values", file).CombinedOutput(); err != nil {
				t.Fatalf("lint: %v\n%s", err, out)
			}
			cmd := exec.Command(program, "template", options.Release, dir, "--namespace", options.Namespace, "--kube-version", options.KubeVersion, "--values", file, "--include-crds")
			var errs bytes.Buffer
			cmd.Stderr = &errs
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("template: %v\n%s", err, errs.String())
			}
			want := map[string]object{}
			split(t, string(out), want)
			got := objects(t, values)
			for _, key := range slices.Sorted(maps.Keys(want)) {
				if a, b := plain(t, want[key].text), plain(t, got[key].text); a != b {
					t.Errorf("%s: Helm makes\n%s\nand this\n%s", key, a, b)
				}
			}
			for key := range got {
				if _, ok := want[key]; !ok {
					t.Errorf("%s isn't there with Helm", key)
				}
			}
		})
	}
}

// plain is an object as sorted JSON, without who made it.
func plain(t *testing.T, text string) string {
	t.Helper()
	b, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), `"app.kubernetes.io/managed-by":"Helm"`, `"app.kubernetes.io/managed-by":"keelson"`)
}
