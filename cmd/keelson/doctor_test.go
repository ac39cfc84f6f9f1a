package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keelson.io/keelson/internal/doctor"
)

// TestDoctorHere runs the doctor on this machine, as somebody would before installing.
func TestDoctorHere(t *testing.T) {
	var out bytes.Buffer
	err := runDoctor(t.Context(), &globalOptions{}, DoctorOptions{output: outputFlag{"json"}}, &out)
	if err != nil && !errors.Is(err, errDangerous) {
		t.Fatal(err)
	}
	var list []doctor.Finding
	if err := json.Unmarshal(out.Bytes(), &list); err != nil {
		t.Fatalf("%v in %s", err, out.String())
	}
	seen := map[string]bool{}
	for _, f := range list {
		seen[f.Check] = true
	}
	for _, name := range append(doctor.Names(), "configuration") {
		if !seen[name] {
			t.Errorf("%s is missing", name)
		}
	}
	if (doctor.Dangers(list) > 0) != (err != nil) || err != nil && exitCode(err) != exitFailure {
		t.Errorf("%d dangers, and %v", doctor.Dangers(list), err)
	}
}

func TestDoctorSaysWhatIsDangerous(t *testing.T) {
	config := filepath.Join(t.TempDir(), "keelson.yaml")
	if err := os.WriteFile(config, []byte("nodes: n1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := runDoctor(t.Context(), &globalOptions{config: config}, DoctorOptions{Devices: []string{"/dev/nothing"}, output: outputFlag{"table"}}, &out)
	if exitCode(err) != exitFailure || !errors.Is(err, errDangerous) {
		t.Errorf("%v", err)
	}
	for _, w := range []string{"DANGER   configuration", `unknown key nodes`, "DANGER   disks", "/dev/nothing", "do:  "} {
		if !strings.Contains(out.String(), w) {
			t.Errorf("it doesn't say %q:\n%s", w, out.String())
		}
	}
}

func TestDoctorPrints(t *testing.T) {
	for what, want := range map[string]string{"udev": "KEELSON_DEVICE", "multipath": "blacklist {"} {
		var out bytes.Buffer
		if err := runDoctor(t.Context(), &globalOptions{}, DoctorOptions{Print: what, output: outputFlag{"table"}}, &out); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %v, %s", what, err, out.String())
		}
	}
	var usage usageError
	if err := runDoctor(t.Context(), &globalOptions{}, DoctorOptions{Print: "rules", output: outputFlag{"table"}}, &bytes.Buffer{}); !errors.As(err, &usage) {
		t.Errorf("%v", err)
	}
}
