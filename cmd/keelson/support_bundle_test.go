package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keelson.io/keelson/internal/bundle/bundletest"
)

// TestSupportBundle makes one on this machine while no API answers: it has what there is, says what isn't, and none of the secrets
// that lie around.
func TestSupportBundle(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	const hash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	planted := []string{"PLANTED1", "PLANTED2", "PLANTED3", "PLANTED4", "PLANTED5", "PLANTED6"}
	tokenFile := write("token-file", "an-odd-token-PLANTED1\n")
	config := write("keelson.yaml", "node: n1\ndataDir: "+dir+"\njoin:\n  url: https://10.0.0.1:9500\n  tokenFile: "+tokenFile+"\n")
	log := write("server.log", strings.Join([]string{
		`msg="joining" token=PLANTED2`, "said an-odd-token-PLANTED1 aloud", "K1" + hash + "::abc.PLANTED3PLANTED3PLANTED3", "the-flag-PLANTED4 in a log",
		"Authorization: Bearer PLANTED5PLANTED5", "-----BEGIN PRIVATE KEY-----\nPLANTED6\n-----END PRIVATE KEY-----", "an ordinary line",
	}, "\n"))
	g := &globalOptions{config: config, token: "the-flag-PLANTED4", server: "127.0.0.1:1"}
	var out, told bytes.Buffer
	if err := runSupportBundle(t.Context(), g, SupportBundleOptions{Out: "-", MaxSize: "16Mi", Logs: []string{log}, Audit: 10}, &out, &told); err != nil {
		t.Fatal(err)
	}
	entries := bundletest.Read(t, &out)
	for name, text := range entries {
		for _, p := range planted {
			if strings.Contains(text, p) {
				t.Errorf("%s has the secret %s", name, p)
			}
		}
	}
	has := func(suffix, words string) {
		t.Helper()
		for name, text := range entries {
			if strings.HasSuffix(name, suffix) && strings.Contains(text, words) {
				return
			}
		}
		t.Errorf("no entry %s with %q", suffix, words)
	}
	has("server.log", "an ordinary line")
	has("/config.yaml", "node: n1")
	has("/doctor.json", `"check": "kernel"`)
	has("/machine/proc/meminfo", "MemTotal")
	has("/machine/dmesg.txt", "")
	has("/errors.txt", "api/status.json: ")
	has("/manifest.json", `"version"`)
	has("/data-directory.txt", "token-file") // its name, that is
	if !strings.Contains(told.String(), "not in the bundle: api/status.json") {
		t.Errorf("told: %s", told.String())
	}
}

func TestSupportBundleFile(t *testing.T) {
	dir := t.TempDir()
	g := &globalOptions{dataDir: dir}
	o := SupportBundleOptions{Out: filepath.Join(dir, "b.tar.gz"), MaxSize: "1Mi", Audit: 1}
	if err := runSupportBundle(t.Context(), g, o, io.Discard, io.Discard); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(o.Out)
	if err != nil || st.Mode().Perm() != 0o600 || st.Size() > 2<<20 {
		t.Errorf("%v, %v", st, err)
	}
	var usage usageError
	if err := runSupportBundle(t.Context(), g, o, io.Discard, io.Discard); !errors.As(err, &usage) {
		t.Errorf("over a file that is there: %v", err)
	}
	for _, bad := range []SupportBundleOptions{{MaxSize: "much", Audit: 1}, {MaxSize: "1", Audit: 1}, {MaxSize: "1Mi"}, {MaxSize: "1Mi", Audit: 10001}} {
		bad.Out = filepath.Join(dir, "other")
		if err := runSupportBundle(t.Context(), g, bad, io.Discard, io.Discard); !errors.As(err, &usage) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
