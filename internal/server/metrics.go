package server

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
)

// statusCollector shows what this node knows of itself: its pools, the volumes attached to it and
// its engine's counters. Each node is scraped for its own.
type statusCollector struct{ api *api.Server }

var (
	nodeUp        = desc("node_engine_up", "Whether this node's engine answers.", "node")
	poolCapacity  = desc("pool_capacity_bytes", "Size of the pool.", "node", "pool")
	poolUsed      = desc("pool_used_bytes", "What is occupied in the pool.", "node", "pool")
	poolReplicas  = desc("pool_replicas", "Replicas in the pool.", "node", "pool")
	volAttached   = desc("volume_attached", "1 for each volume attached to this node.", "node", "volume", "frontend")
	volOutOfSync  = desc("volume_replicas_out_of_sync", "Replicas of an attached volume that are not in sync.", "node", "volume")
	volResyncLeft = desc("volume_resync_remaining_bytes", "What is still to be compared and copied.", "node", "volume")
	engineCounter = desc("engine_total", "Counters of the engine, since it started.", "node", "counter")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("keelson_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (statusCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{nodeUp, poolCapacity, poolUsed, poolReplicas, volAttached, volOutOfSync, volResyncLeft, engineCounter} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c statusCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r := c.api.OwnStatus(ctx)
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

func metricsHandler(s *api.Server) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(statusCollector{s})
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}
