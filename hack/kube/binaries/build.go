package binaries

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// build makes some programs of a module.
func (m *Module) build(ctx context.Context, cache string, programs []Program, say func(string)) error {
	if err := os.MkdirAll(filepath.Join(cache, "bin"), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := m.unpack(ctx, work); err != nil {
		return err
	}
	for _, p := range programs {
		start := time.Now()
		tmp := filepath.Join(work, ".keelson-"+p.Name)
		args := []string{"build", "-mod=mod", "-trimpath", "-ldflags", strings.TrimSpace("-s -w " + m.LDFlags), "-o", tmp, p.Package}
		if _, err := goCommand(ctx, work, args...); err != nil {
			return fmt.Errorf("build %s of %s@%s: %w", p.Name, m.Path, m.Version, err)
		}
		if err := os.Rename(tmp, m.path(cache, p.Name)); err != nil {
			return err
		}
		say(fmt.Sprintf("built %s %s in %s", p.Name, m.Version, time.Since(start).Round(time.Second)))
	}
	return nil
}

// unpack downloads the module and makes a copy of it that can be built by itself.
func (m *Module) unpack(ctx context.Context, dir string) error {
	out, err := goCommand(ctx, dir, "mod", "download", "-json", m.Path+"@"+m.Version)
	if err != nil {
		return fmt.Errorf("download %s@%s: %w", m.Path, m.Version, err)
	}
	var got struct{ Dir string }
	if err := json.Unmarshal(out, &got); err != nil {
		return fmt.Errorf("download %s@%s: %w", m.Path, m.Version, err)
	}
	// Not os.CopyFS: what is in the module cache is read-only, and the copy mustn't be.
	if out, err := exec.CommandContext(ctx, "cp", "-r", "--no-preserve=mode", got.Dir+"/.", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", got.Dir, err, out)
	}
	return m.detach(ctx, dir)
}

// detach rewrites the replacements by local directories.
func (m *Module) detach(ctx context.Context, dir string) error {
	out, err := goCommand(ctx, dir, "mod", "edit", "-json")
	if err != nil {
		return err
	}
	type version struct{ Path, Version string }
	var mod struct{ Replace []struct{ Old, New version } }
	if err := json.Unmarshal(out, &mod); err != nil {
		return err
	}
	edit := []string{"mod", "edit"}
	for _, r := range mod.Replace {
		switch {
		case !strings.HasPrefix(r.New.Path, "."):
		case m.Staging != "":
			edit = append(edit, "-replace="+r.Old.Path+"="+r.Old.Path+"@"+m.Staging)
		default:
			old := r.Old.Path
			if r.Old.Version != "" {
				old += "@" + r.Old.Version
			}
			edit = append(edit, "-dropreplace="+old)
		}
	}
	for _, f := range []string{"go.work", "go.work.sum"} {
		if err := os.Remove(filepath.Join(dir, f)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if len(edit) == 2 {
		return nil
	}
	_, err = goCommand(ctx, dir, edit...)
	return err
}

// goCommand runs the go command at a lower priority, and returns what it prints.
func goCommand(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "5", "go"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-buildvcs=false")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}
