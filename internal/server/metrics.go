package server

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	pb "keelson.io/keelson/internal/api/keelsonv1"
)

// statusCollector is what says how this node is: its numbers are asked for when they are wanted.
type statusCollector func(ctx context.Context) *pb.NodeStatusResponse

var (
	nodeUp        = desc("node_engine_up", "Whether this node's engine answers.", "node")
	poolCapacity  = desc("pool_capacity_bytes", "Size of the pool.", "node", "pool")
	poolUsed      = desc("pool_used_bytes", "What is occupied in the pool.", "node", "pool")
	poolReplicas  = desc("pool_replicas", "Replicas in the pool.", "node", "pool")
	volAttached   = desc("volume_attached", "1 for each volume attached to this node.", "node", "volume", "frontend")
	volOutOfSync  = desc("volume_replicas_out_of_sync", "Replicas of an attached volume that are not in sync.", "node", "volume")
	volResyncLeft = desc("volume_resync_remaining_bytes", "What is still to be compared and copied.", "node", "volume")
	volScrub      = desc("volume_scrub_progress_ratio", "How much of a volume attached to this node its active scrub has verified.", "node", "volume")
	volScrubBad   = desc("volume_scrub_findings_blocks", "What the active scrub of a volume attached to this node has found so far.", "node", "volume", "finding")
	engineCounter = desc("engine_total", "Counters of the engine, since it started.", "node", "counter")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("keelson_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (statusCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{nodeUp, poolCapacity, poolUsed, poolReplicas, volAttached, volOutOfSync, volResyncLeft, volScrub, volScrubBad, engineCounter} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c statusCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r := c(ctx)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{r.Name}, labels...)...)
	}
	up := 1.0
	if r.Problem != "" {
		up = 0
	}
	gauge(nodeUp, up)
	for _, p := range r.Pools {
		gauge(poolCapacity, float64(p.Capacity), p.Id)
		gauge(poolUsed, float64(p.Used), p.Id)
		gauge(poolReplicas, float64(p.Replicas), p.Id)
	}
	for _, v := range r.Volumes {
		gauge(volAttached, 1, v.Id, v.Frontend)
		out, left := outOfSync(v)
		gauge(volOutOfSync, float64(out), v.Id)
		gauge(volResyncLeft, float64(left), v.Id)
		if f := v.ScrubFindings; v.ScrubTotal > 0 {
			gauge(volScrub, float64(v.ScrubDone)/float64(v.ScrubTotal), v.Id)
			gauge(volScrubBad, float64(f.GetRepaired()), v.Id, "repaired")
			gauge(volScrubBad, float64(f.GetUnreadable()), v.Id, "unreadable")
			gauge(volScrubBad, float64(f.GetDiffering()), v.Id, "differing")
		}
	}
	for name, n := range r.Counters {
		gauge(engineCounter, float64(n), name)
	}
}

func outOfSync(v *pb.LiveVolume) (n int, left int64) {
	for _, m := range v.Members {
		if m.State != "InSync" {
			n++
		}
		left += m.ResyncTotal - m.ResyncDone
	}
	return n, left
}

func metricsHandler(status statusCollector) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(status)
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}
