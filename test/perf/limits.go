package main

import (
	"context"
	"fmt"
)

// limitCases are limits and loads that would go far beyond them.
var limitCases = []struct {
	flag, value string
	rate        float64 // operations a second
	fio         []string
}{
	{"iops-limit", "100", 100, []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}},
	{"iops-limit", "100", 100, []string{"--rw=randread", "--bs=4k", "--iodepth=1"}},
	{"iops-limit", "2000", 2000, []string{"--rw=randwrite", "--bs=4k", "--iodepth=16"}},
	{"bandwidth-limit", "1Mi", 16, []string{"--rw=randwrite", "--bs=64k", "--iodepth=16"}},
	{"bandwidth-limit", "50Mi", 50, []string{"--rw=randread", "--bs=1m", "--iodepth=8"}},
}

// wantLimit is how far from its limit a volume may be, as a share of it.
var wantLimit = target{0.05, 0.02}

// limits measures how exactly limits are kept, in at least 15 s each: the burst at the beginning counts.
func (b *bench) limits(ctx context.Context) error {
	dev, err := b.volume(ctx, "limited", "1Gi", "fuse")
	if err != nil {
		return err
	}
	const seconds = "15"
	for _, x := range limitCases {
		for _, flag := range []string{"iops-limit", "bandwidth-limit"} {
			value := "0"
			if flag == x.flag {
				value = x.value
			}
			if _, err := b.lab.Keelson(ctx, "n1", "volume", "set", "limited", "--"+flag, value); err != nil {
				return err
			}
		}
		got, err := b.fio(ctx, fusePlace(dev), append([]string{"--time_based", "--runtime=" + seconds}, x.fio...)...)
		if err != nil {
			return err
		}
		off := max(got.perSecond/x.rate-1, 1-got.perSecond/x.rate)
		b.report.atMost(fmt.Sprintf("off the limit, %s %s, %s %s", x.flag, x.value, x.fio[0][len("--rw="):], x.fio[1][len("--"):]), b.suffix(), off, wantLimit,
			fmt.Sprintf("%.1f/s of %.0f/s", got.perSecond, x.rate))
	}
	return b.drop(ctx, "limited")
}
