package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// place is something that fio can write to on the node n1 of a bench.
type place struct {
	name string
	args []string // of fio
}

func rawPlace(file string) place {
	return place{"raw", []string{"--ioengine=libaio", "--direct=1", "--filename=" + file}}
}

func fusePlace(device string) place {
	return place{"fuse", []string{"--ioengine=libaio", "--direct=1", "--filename=" + device}}
}

func nbdPlace(uri string) place { return place{"nbd", []string{"--ioengine=nbd", "--uri=" + uri}} }

// speed is what one run of fio came to.
type speed struct {
	perSecond  float64 // operations
	operations int64
	latency    float64 // µs, mean
	p99        float64 // µs
}

// fio runs fio once on n1.
func (b *bench) fio(ctx context.Context, p place, args ...string) (speed, error) {
	argv := slices.Concat([]string{"fio", "--name=bench", "--output-format=json", "--size=" + b.mode.size, "--randrepeat=0", "--norandommap"}, p.args, args)
	cmd, err := b.lab.Command(ctx, "n1", argv...)
	if err != nil {
		return speed{}, err
	}
	out, err := cmd.Output()
	if err != nil {
		return speed{}, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	type direction struct {
		IOPS  float64 `json:"iops"`
		Total int64   `json:"total_ios"`
		Lat   struct {
			Mean       float64          `json:"mean"`
			Percentile map[string]int64 `json:"percentile"`
		} `json:"clat_ns"`
	}
	var report struct {
		Jobs []struct {
			Error int       `json:"error"`
			Read  direction `json:"read"`
			Write direction `json:"write"`
		} `json:"jobs"`
	}
	// fio may print notes before the JSON.
	if i := strings.IndexByte(string(out), '{'); i > 0 {
		out = out[i:]
	}
	if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) != 1 {
		return speed{}, fmt.Errorf("fio's report: %w: %.200s", err, out)
	}
	job := report.Jobs[0]
	d := job.Write
	if d.Total == 0 {
		d = job.Read
	}
	if job.Error != 0 || d.Total == 0 {
		return speed{}, fmt.Errorf("fio on %s did nothing (error %d)", p.name, job.Error)
	}
	return speed{d.IOPS, d.Total, d.Lat.Mean / 1000, float64(d.Lat.Percentile["99.000000"]) / 1000}, nil
}

// fill writes the space that is overwritten later.
func (b *bench) fill(ctx context.Context, p place) error {
	_, err := b.fio(ctx, p, "--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1")
	return err
}

func (b *bench) timed(ctx context.Context, p place, profile profile) (speed, error) {
	return b.fio(ctx, p, append(slices.Clone(profile.fio), "--time_based", fmt.Sprintf("--runtime=%d", b.mode.seconds))...)
}

func median(x []float64) float64 {
	s := slices.Sorted(slices.Values(x))
	if len(s) == 0 {
		return 0
	}
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}
