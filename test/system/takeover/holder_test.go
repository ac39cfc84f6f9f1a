package takeover

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/lab"
)

// another waits until n1 runs another holder than that one, and the supervisor has its line to it.
func another(t *testing.T, l *lab.Lab, before, lines int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if pid := l.Status()[0].PIDs["holder"]; pid != 0 && pid != before && said(t, l, "the holder has the descriptors") > lines {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the holder isn't replaced")
		}
	}
}

// said counts the lines of n1's log with that text.
func said(t *testing.T, l *lab.Lab, text string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(l.NodeDir("n1"), "server.log"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), text)
}

func TestHolder(t *testing.T) {
	l := up(t, "takeover-holder")
	load := start(t, mounted(t, l, "1Gi"))
	load.after()
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGSTOP} {
		t.Run(sig.String(), func(t *testing.T) {
			before, lines, noise := l.Status()[0].PIDs["holder"], said(t, l, "the holder has the descriptors"), said(t, l, "the holder")
			if err := unix.Kill(before, sig); err != nil {
				t.Fatal(err)
			}
			another(t, l, before, lines)
			if n := said(t, l, "the holder") - noise; n > 8 {
				t.Errorf("the log has %d lines about it", n)
			}
			// What the new one has is put to use.
			kill(t, l, "server")
			t.Log("pause", load.after().Round(time.Millisecond))
		})
	}
	load.end()
}

// With supervisor and holder the last descriptors go: the device fails, and doesn't hang. What was flushed is there when the volume
// is attached again.
func TestSupervisorAndHolderTogether(t *testing.T) {
	l := up(t, "takeover-both")
	keelson(t, l, "volume", "create", "v", "--size", "256Mi", "--replicas", "1")
	dev := strings.TrimSpace(keelson(t, l, "volume", "attach", "v"))
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DSYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text := strings.Repeat("kept", 1024)
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	kill(t, l, "holder", "server")
	failed := make(chan error, 1)
	go func() {
		for {
			if _, err := f.WriteAt([]byte(text), 8192); err != nil {
				failed <- err
				return
			}
		}
	}()
	select {
	case err := <-failed:
		t.Log(err)
	case <-time.After(time.Minute):
		t.Fatal("the device neither failed nor ended")
	}
	f.Close()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		out, err := l.Keelson(t.Context(), "n1", "volume", "attach", "v")
		if dev = strings.TrimSpace(out); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it can't be attached again:", err)
		}
	}
	out, err := exec.Command("dd", "if="+dev, "bs=4k", "count=1", "iflag=direct", "status=none").Output()
	if err != nil || string(out) != text {
		t.Fatalf("read %d bytes, %v", len(out), err)
	}
}
