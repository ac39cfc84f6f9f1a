package dialect

import (
	"fmt"

	"keelson.io/keelson/internal/spec"
)

// What is lacking, in words that follow the key and the value.
const (
	noLimits    = "is recorded, but doesn't limit anything yet"
	noSnapshots = "has no effect yet: there are no snapshots"
	noShares    = "has no effect yet: there are no shared file systems; the volume is a block device for one node at a time"
	noLabels    = "has no effect yet: volumes have no labels"
	noEffect    = "has no effect"
)

var (
	legalReplicas = fmt.Sprintf("1 to %d", spec.MaxReplicas)
	legalColumns  = fmt.Sprintf("1 to %d", spec.MaxColumns)
)

// own is our own dialect.
var own = []parameter{
	{keys: []string{"replicas"}, legal: legalReplicas, set: number(1, spec.MaxReplicas, 0, setReplicas)},
	{keys: []string{"columns"}, legal: legalColumns, set: number(1, spec.MaxColumns, 0, setColumns)},
	{keys: []string{"zoneSpread"}, legal: legalBool, set: boolean(func(r *Request, b bool) { r.ZoneSpread = b })},
	{keys: []string{"media"}, legal: "nvme, ssd or hdd", set: func(r *Request, v string) (bool, bool) {
		r.Media = v
		return false, spec.CheckMedia(spec.Media(v)) == nil
	}},
	{keys: []string{"nodeSelector"}, legal: "labels of nodes, as in disk=fast,rack=r1", set: setSelector},
	{keys: []string{"createOptions", "createoptions"}, legal: legalOptions, set: setCreateOptions},
	{keys: []string{"nodiscard"}, legal: legalBool, set: boolean(setNoDiscard)},
	{keys: []string{"iopsLimit"}, legal: legalUint, set: number(0, 1<<40, 0, setIOPS), lacking: noLimits},
	{keys: []string{"bandwidthLimit"}, legal: "bytes a second, a multiple of 512, or a number with K, M or G (powers of 1024)",
		set: bandwidth(0, 1<<50), lacking: noLimits},
}

// pure is the dialect of Pure Service Orchestrator 6.
var pure = []parameter{
	{keys: []string{"backend"}, legal: "block or file", set: choice([]string{"file"}, []string{"block"}), lacking: noShares},
	{keys: []string{"createoptions"}, legal: legalOptions, set: setCreateOptions},
	{keys: []string{"iops_limit"}, legal: "100 to 100000000", set: number(100, 100_000_000, 0, setIOPS), lacking: noLimits},
	{keys: []string{"bandwidth_limit"}, set: bandwidth(1<<20, 512<<30), lacking: noLimits,
		legal: "1M to 512G (K, M, G: powers of 1024), or bytes a second from 1048576 to 549755813888, a multiple of 512"},
	{keys: []string{"exportrules", "export_rules"}, legal: "text", set: text, lacking: noShares},
}

// portworx is the dialect of Portworx.
var portworx = []parameter{
	{keys: []string{"repl"}, legal: "1 to 3", set: number(1, 3, 0, setReplicas)},
	{keys: []string{"fs"}, legal: "ext4, xfs or none", set: func(r *Request, v string) (bool, bool) {
		if v == "none" || v == "" {
			return true, true
		}
		r.FSType = v
		return false, v == "ext4" || v == "xfs"
	}},
	{keys: []string{"block_size"}, legal: legalUint, set: number(0, 1<<40, 4096, nil), lacking: "has no effect: a block is 4096 bytes"},
	{keys: []string{"queue_depth"}, legal: "1 to 256", set: number(1, 256, 128, nil), lacking: noEffect},
	{keys: []string{"io_profile"}, legal: "sequential, random, db, db_remote, cms, sync_shared, journal, auto_journal, none or auto",
		set:     choice([]string{"sequential", "random", "db", "db_remote", "cms", "sync_shared", "journal", "auto_journal"}, []string{"none", "auto"}),
		lacking: "has no effect: a write is in place on every copy, for all profiles"},
	{keys: []string{"io_priority", "priority_io"}, legal: "low, medium, high, or 1 to 3",
		set:     choice([]string{"medium", "high", "2", "3"}, []string{"low", "1"}),
		lacking: "has no effect: copies go where there is room; a class of driver csi.keelson.io with media insists on a kind of device"},
	{keys: []string{"aggregation_level"}, legal: "1 to 3, or auto", set: func(r *Request, v string) (bool, bool) {
		if v == "auto" {
			return true, true
		}
		return number(1, 3, 0, setColumns)(r, v)
	}},
	{keys: []string{"snap_interval"}, legal: "minutes: 0, or 60 and more", set: snapInterval, lacking: noSnapshots},
	{keys: []string{"snap_schedule"}, set: snapSchedule, lacking: noSnapshots,
		legal: "periodic=MINUTES,KEEP, daily=HH:MM,KEEP, weekly=DAY@HH:MM,KEEP, monthly=DAY@HH:MM,KEEP or policy=NAME, separated by ';'"},

	{keys: []string{"shared"}, legal: legalBool, set: boolean(nil), lacking: noShares},
	{keys: []string{"sharedv4"}, legal: legalBool, set: boolean(nil), lacking: noShares},
	{keys: []string{"sticky"}, legal: legalBool, set: boolean(nil), lacking: "has no effect yet: a volume that isn't attached can be deleted"},
	{keys: []string{"secure"}, legal: "false: volumes aren't encrypted yet, and one that should be is refused", set: never},
	{keys: []string{"journal"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"nodiscard"}, legal: legalBool, set: boolean(setNoDiscard)},
	{keys: []string{"auto_fstrim", "autofstrim"}, legal: legalBool, set: boolean(nil), lacking: "has no effect: file systems are mounted with discard unless nodiscard is set"},
	{keys: []string{"ephemeral"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"compressed"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"cascaded"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"direct_io"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"proxy_write"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"fastpath"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"best_effort_location_provisioning"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"force_unsupported_fs_type"}, legal: legalBool, set: boolean(nil), lacking: noEffect},

	{keys: []string{"secret_key"}, legal: "text", set: text, lacking: "has no effect: volumes aren't encrypted yet"},
	{keys: []string{"nodes"}, legal: "names of nodes, separated by ',' or ';'", set: within(KeyNode, ",; ")},
	{keys: []string{"zones"}, legal: "zones, separated by ','", set: within(KeyZone, ", ")},
	{keys: []string{"racks"}, legal: "values of the nodes' label rack, separated by ','", set: within("rack", ", ")},
	{keys: []string{"regions"}, legal: "values of the nodes' label region, separated by ','", set: within("region", ", ")},
	{keys: []string{"group"}, legal: "text", set: text, lacking: noLabels},
	{keys: []string{"fg"}, legal: legalBool, set: boolean(nil), lacking: noLabels},
	{keys: []string{"label", "labels"}, legal: "k=v, separated by ','", set: labels, lacking: noLabels},

	{keys: []string{"io_throttle_rd_iops"}, legal: legalUint, set: count, lacking: noLimits},
	{keys: []string{"io_throttle_wr_iops"}, legal: legalUint, set: count, lacking: noLimits},
	{keys: []string{"io_throttle_rd_bw"}, legal: "MB a second, a whole number", set: count, lacking: noLimits},
	{keys: []string{"io_throttle_wr_bw"}, legal: "MB a second, a whole number", set: count, lacking: noLimits},

	{keys: []string{"export"}, legal: "text", set: text, lacking: noShares},
	{keys: []string{"export_options"}, legal: "text", set: text, lacking: noShares},
	{keys: []string{"sharedv4_mount_options"}, legal: "text", set: text, lacking: noShares},
	{keys: []string{"sharedv4_svc_type"}, legal: "NodePort, ClusterIP, LoadBalancer, or nothing",
		set: choice([]string{"NodePort", "ClusterIP", "LoadBalancer"}, []string{""}), lacking: noShares},
	{keys: []string{"mount_options"}, legal: "mount options, separated by ','", set: setMountOptions},
	{keys: []string{"createoptions"}, legal: legalOptions, set: setCreateOptions},
	{keys: []string{"placement_strategy"}, legal: "text", set: text, lacking: "has no effect: use nodes, zones, racks or a node selector"},
	{keys: []string{"storage_policy"}, legal: "text", set: text, lacking: noEffect},
}

func setReplicas(r *Request, n int64)  { r.Replicas = int(n) }
func setColumns(r *Request, n int64)   { r.Columns = int(n) }
func setIOPS(r *Request, n int64)      { r.IOPSLimit = n }
func setNoDiscard(r *Request, on bool) { r.NoDiscard = on }
