package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"keelson.io/keelson/internal/lab"
	"keelson.io/keelson/internal/pki"
)

// TestSenselessCommandLines: each is a usage error that names what is wrong, and reaches no daemon.
func TestSenselessCommandLines(t *testing.T) {
	dir := "--data-dir=" + t.TempDir()
	for line, says := range map[string]string{
		"nosuch":                             "nosuch",
		"volum list":                         "volume",
		"lab nosuch":                         "nosuch",
		"lab cut":                            "NODE",
		"completion tcsh":                    "tcsh",
		"volume create v":                    "--size",
		"volume create v --size=0":           "size",
		"volume create v --size=-1":          "size",
		"volume create v --size=5":           "4096",
		"volume create v --size=4G+1":        "4G+1",
		"volume create v --size=1000Pi":      "64Ti",
		"volume create V --size=4Gi":         "DNS label",
		"volume create --size=4Gi":           "NAME",
		"volume attach v --wait 5":           "--wait",
		"volume list -o xml":                 "xml",
		"volume force-online v":              "--accept-loss",
		"pool add":                           "--device",
		"pool add --file /x":                 "--size",
		"pool add --device /dev/x --size 1G": "--file",
		"token create --role viewer":         "api-token create",
		"token create --ttl 3x":              "--ttl",
		"api-token create":                   "--role",
		"api-token create --role x --ttl xd": "--ttl",
		"volume list --token KA1":            "--server",
		"volume list --token-file /nosuch":   "/nosuch",
		"audit --limit 0":                    "--limit",
		"settings set colour blue":           "colour",
		"server --jion x":                    "--jion",
		"server --join 10.0.0.1 --token t":   "join.url",
		"server --role metdata":              "metdata",
	} {
		root := newRootCommand()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(append(strings.Fields(line), dir))
		err := root.Execute()
		if exitCode(err) != exitUsage || !strings.Contains(message(err), says) || strings.Count(message(err), "\n") > 1 {
			t.Errorf("%s: %v, exit code %d, want %d and %q", line, err, exitCode(err), exitUsage, says)
		}
	}
}

func TestExitCodesOfErrors(t *testing.T) {
	other := connect.NewError(connect.CodeUnavailable, fmt.Errorf("the certificate is %w", pki.ErrOtherCluster))
	if exitCode(other) != exitDenied || strings.Contains(message(other), "running there") {
		t.Errorf("a server of another cluster: %d, %s", exitCode(other), message(other))
	}
	for want, errs := range map[int][]error{
		exitUsage: {lab.ErrInvalid}, exitNotFound: {lab.ErrNoLab, lab.ErrNoNode}, exitConflict: {lab.ErrExists, lab.ErrNotUp},
	} {
		for _, err := range errs {
			if got := exitCode(fmt.Errorf("x: %w", err)); got != want {
				t.Errorf("%v: exit code %d, want %d", err, got, want)
			}
		}
	}
}
