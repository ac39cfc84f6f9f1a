package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/bundle/bundletest"
)

func text(name, s string) Source {
	return Source{name, func(context.Context) ([]byte, error) { return []byte(s), nil }}
}

func TestBundle(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	sources := []Source{
		text("a/first", "first"),
		{"fails", func(context.Context) ([]byte, error) { return []byte("half"), errors.New("password=hunter22 is wrong") }},
		{"hangs", func(context.Context) ([]byte, error) { <-hang; return nil, nil }},
		{"crashes", func(context.Context) ([]byte, error) { panic("oh") }},
		text("long", strings.Repeat("x", 100)+"the end"),
		text("empty", ""),
		text("last", "last"),
		text("beyond", strings.Repeat("y", 10)),
		text("nothing", "z"),
	}
	var b bytes.Buffer
	var seen []string
	m, err := Write(t.Context(), &b, "dir", sources, Options{
		MaxEntry: 30, MaxTotal: 50, Timeout: 20 * time.Millisecond, About: map[string]string{"version": "v1"}, Progress: func(e Entry) { seen = append(seen, e.Name) },
	})
	if err != nil {
		t.Fatal(err)
	}
	got := bundletest.Read(t, &b)
	for name, want := range map[string]string{
		"dir/a/first": "first", "dir/fails": "half", "dir/long": strings.Repeat("x", 23) + "the end", "dir/last": "last", "dir/beyond": "yyyyyyy",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
	for _, w := range []string{"fails: ", "[REDACTED] is wrong", "hangs: no answer within 20ms", "crashes: it crashed: oh", "nothing: left out"} {
		if !strings.Contains(got["dir/errors.txt"], w) {
			t.Errorf("errors.txt doesn't say %q:\n%s", w, got["dir/errors.txt"])
		}
	}
	var read Manifest
	if err := json.Unmarshal([]byte(got["dir/manifest.json"]), &read); err != nil {
		t.Fatal(err)
	}
	if len(read.Entries) != len(sources) || len(m.Entries) != len(sources) || read.About["version"] != "v1" || !read.Entries[4].Cut || len(seen) != len(sources) {
		t.Errorf("manifest: %+v", read)
	}
	for name := range got {
		if name == "dir/empty" || name == "dir/nothing" {
			t.Errorf("%s is in the archive", name)
		}
	}
}

func TestBundleEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := Source{"x", func(context.Context) ([]byte, error) { cancel(); return nil, nil }}
	if _, err := Write(ctx, io.Discard, "d", []Source{s, s}, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

const hash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestSecretsAreTakenOut(t *testing.T) {
	r := NewRedactor("planted-by-name", " known\n", "x")
	for _, c := range []struct{ in, secret, keep string }{
		{"a planted-by-name b", "planted-by-name", "a "},
		{"join:\n  token: K1" + hash + "::abc123.deadbeefdeadbeef\n", "deadbeef", "join:"},
		{"see K1" + hash + "::abc123.deadbeefdeadbeef now", "deadbeef", " now"},
		{"KA1" + hash + "::abc123.deadbeefdeadbeef", "deadbeef", ""},
		{"Authorization: Bearer abcdefgh12345", "abcdefgh12345", "Authorization"},
		{`{"password":"s3cr3t with \"quotes\"","size":5}`, "s3cr3t", `"size":5`},
		{"AWS_SECRET: 'very hidden'\nregion: eu", "hidden", "region: eu"},
		{"KEELSON_TOKEN=abc123456 keelson", "abc123456", " keelson"},
		{"keelson server --token abc123456 --join x", "abc123456", "--join x"},
		{"cmdline --token\x00abc123456\x00--join", "abc123456", "--join"},
		{"https://user:hunter22@host/x", "hunter22", "@host/x"},
		{"-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----\nafter", "MHcCAQ", "after"},
		{"before -----BEGIN PRIVATE KEY-----\nMHcCAQ", "MHcCAQ", "before "},
		{"eyJhbGciOiJSUzI1.eyJpc3MiOiJrdWJl.c2lnbmF0dXJlMTIz", "c2lnbmF0dXJlMTIz", ""},
		{"client-secret: abc123456", "abc123456", "client-secret: "},
	} {
		got, n := r.Redact([]byte(c.in))
		if strings.Contains(string(got), c.secret) || !strings.Contains(string(got), c.keep) || n == 0 {
			t.Errorf("%q became %q (%d)", c.in, got, n)
		}
	}
	for _, plain := range []string{
		"x y z", "tokenFile: /etc/keelson/token", "3 tokens were deleted", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
		"KERNEL=\"loop0\" size=5", "https://host:9500/metrics", "basic facts", "the password is wrong",
	} {
		if got, n := r.Redact([]byte(plain)); string(got) != plain || n != 0 {
			t.Errorf("%q became %q", plain, got)
		}
	}
}

func FuzzRedact(f *testing.F) {
	f.Add([]byte("token: x"), []byte("planted-secret"))
	f.Fuzz(func(t *testing.T, text, secret []byte) {
		if len(bytes.TrimSpace(secret)) < minSecret || bytes.Contains([]byte(gone), bytes.TrimSpace(secret)) {
			return
		}
		s := string(bytes.TrimSpace(secret))
		got, _ := NewRedactor(s).Redact([]byte(string(text) + s + string(text)))
		if strings.Contains(string(got), s) {
			t.Errorf("%q is left in %q", s, got)
		}
	})
}
