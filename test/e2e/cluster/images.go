package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Store makes, unless the cache has it, a containerd's directory with the images of the archives, unpacked: importing them on each node anew takes
// longer than starting the cluster. Its files are linked into the nodes' own directories; nothing writes to the files of an image.
func Store(ctx context.Context, tools, cache string, archives []string) (string, error) {
	sum := sha256.Sum256([]byte(strings.Join(archives, "\n")))
	dir := filepath.Join(cache, fmt.Sprintf("images-%x", sum[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	work, err := os.MkdirTemp(cache, "store-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := importAll(ctx, tools, work, archives); err != nil {
		return "", err
	}
	old, _ := filepath.Glob(filepath.Join(cache, "images-*"))
	for _, o := range old { // only the newest is needed again
		if err := os.RemoveAll(o); err != nil {
			return "", err
		}
	}
	return dir, os.Rename(filepath.Join(work, "root"), dir)
}

// importAll runs a containerd of its own for as long as it takes.
func importAll(ctx context.Context, tools, work string, archives []string) (err error) {
	socket, config := filepath.Join(work, "sock"), filepath.Join(work, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n",
		filepath.Join(work, "root"), filepath.Join(work, "state"), socket, socket+".ttrpc")
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	env := append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(tools, "usr/lib/x86_64-linux-gnu"))
	daemon := exec.Command(filepath.Join(tools, "usr/bin/containerd"), "--config", config)
	daemon.Env = env
	if err := daemon.Start(); err != nil {
		return err
	}
	defer func() {
		_ = daemon.Process.Signal(os.Interrupt)
		_ = daemon.Wait()
		_ = exec.Command("umount", filepath.Join(work, "state")).Run() // nothing is there as a rule
	}()
	for range 200 {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, a := range archives {
		cmd := exec.CommandContext(ctx, filepath.Join(tools, "usr/bin/ctr"), "--address", socket, "-n", "k8s.io", "images", "import", a)
		cmd.Env = env
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("import %s: %w: %s", a, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// layImages gives the node the images of a store: links, but for what is written to.
func (n *Node) layImages(store string) error {
	to := n.file("var/lib/containerd")
	if _, err := os.Stat(to); err == nil || store == "" {
		return err // it was up before
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := exec.Command("cp", "-al", store, to).Run(); err != nil {
		// The cache is on another file system.
		if out, err := exec.Command("cp", "-a", "--no-clobber", store+"/.", to).CombinedOutput(); err != nil {
			return fmt.Errorf("copy %s: %w: %s", store, err, out)
		}
		return nil
	}
	return filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "fs" || d.Name() == "blobs") {
			return filepath.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return errors.Join(os.Remove(path), os.WriteFile(path, b, 0o600))
	})
}
