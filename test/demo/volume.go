package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"keelson.io/keelson/test/enginestat"
	"keelson.io/keelson/test/pgnode"
)

// volume is what `keelson volume show -o json` says of it.
type volume struct {
	Health    string `json:"health"`
	Condition string `json:"condition"`
	Columns   []struct {
		Members []struct {
			Node        string `json:"node"`
			State       string `json:"state"`
			ResyncDone  int64  `json:"resyncDone"`
			ResyncTotal int64  `json:"resyncTotal"`
		} `json:"members"`
	} `json:"columns"`
}

func (v volume) nodes() []string {
	var out []string
	for _, c := range v.Columns {
		for _, m := range c.Members {
			out = append(out, m.Node)
		}
	}
	return out
}

func (v volume) states() string {
	var out []string
	for _, c := range v.Columns {
		for _, m := range c.Members {
			out = append(out, m.Node+" "+m.State)
		}
	}
	return strings.Join(out, ", ")
}

func (s *story) volume(ctx context.Context, node string) (volume, error) {
	var v volume
	err := s.lab.JSON(ctx, node, &v, "volume", "show", volumeName)
	return v, err
}

// awaitInSync waits until both copies are in sync again, and says how much was copied.
func (s *story) awaitInSync(ctx context.Context, limit time.Duration) (string, error) {
	began := time.Now()
	for {
		v, err := s.volume(ctx, s.new.Node)
		if err == nil && v.inSync() {
			break
		}
		if time.Since(began) > limit {
			return "", errors.Join(err, fmt.Errorf("not in sync after %v: %s, %s (%s)", limit, v.Health, v.Condition, v.states()))
		}
		if err := pause(ctx); err != nil {
			return "", err
		}
	}
	took := time.Since(began)
	counters, err := enginestat.Counters(ctx, s.lab, s.new.Node)
	s.figures.Rejoin, s.figures.Moved = took.Seconds(), counters["resynced_bytes"]
	return fmt.Sprintf("in sync after %.1f s, %d MiB moved of a volume of %s", took.Seconds(), s.figures.Moved>>20, volumeSize), err
}

func (v volume) inSync() bool {
	for _, c := range v.Columns {
		for _, m := range c.Members {
			if m.State != "InSync" {
				return false
			}
		}
	}
	return len(v.Columns) > 0
}

// wantFenced: the node that was cut off must not be able to write to the volume any more.
func (s *story) wantFenced(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	probe := s.old.Mnt() + "/written-too-late"
	err := s.old.Shell(ctx, "dd if=/dev/zero of="+probe+" bs=4k count=1 conv=fsync")
	if err == nil {
		return fmt.Errorf("%s wrote to the volume that %s has: split brain", s.old.Node, s.new.Node)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("the write on %s hangs and doesn't fail", s.old.Node)
	}
	return nil
}

// wantDeviceGone ends what still uses the device on the node that was cut off, and waits until the
// device is gone.
func (s *story) wantDeviceGone(ctx context.Context, limit time.Duration) error {
	s.old.Kill(ctx)
	if err := s.old.Unmount(ctx); err != nil {
		return err
	}
	for began := time.Now(); ; {
		if !s.hasDevice(s.old) {
			return nil
		}
		if time.Since(began) > limit {
			return fmt.Errorf("%s still has %s %v after it lost the volume", s.old.Node, s.old.Device, limit)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// hasDevice says whether the loop device of a node is still attached. Numbers are used again, by all
// nodes of a lab: then it is the other node's.
func (s *story) hasDevice(pg *pgnode.Server) bool {
	if pg.Device == s.new.Device && pg != s.new {
		return false
	}
	return exists("/sys/block/" + strings.TrimPrefix(pg.Device, "/dev/") + "/loop/backing_file")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(settle):
		return nil
	}
}
