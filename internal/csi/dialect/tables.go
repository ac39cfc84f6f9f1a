package dialect

import (
	"fmt"

	"keelson.io/keelson/internal/spec"
)

// What is lacking, in words that follow the key and the value.
const (
	noPolicies = "has no effect as far as it names policies: there are none"
	noShares   = "has no effect yet: there are no shared file systems; the volume is a block device for one node at a time"
	noLabels   = "has no effect yet: volumes have no labels"
	noEffect   = "has no effect"
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
	{keys: []string{"iopsLimit"}, legal: legalIOPS, set: iops("iops-limit", 0), mutable: true},
	{keys: []string{"bandwidthLimit"}, legal: legalBytes, set: bandwidth("bandwidth-limit", 0), mutable: true},
	{keys: []string{"readIopsLimit"}, legal: legalIOPS, set: iops("read-iops-limit", 0), mutable: true},
	{keys: []string{"writeIopsLimit"}, legal: legalIOPS, set: iops("write-iops-limit", 0), mutable: true},
	{keys: []string{"readBandwidthLimit"}, legal: legalBytes, set: bandwidth("read-bandwidth-limit", 0), mutable: true},
	{keys: []string{"writeBandwidthLimit"}, legal: legalBytes, set: bandwidth("write-bandwidth-limit", 0), mutable: true},
	{keys: []string{"ioPriority"}, legal: "high, medium, low, or 3 to 1", set: tier, mutable: true},
	{keys: []string{"group"}, legal: legalGroup, set: group},
	{keys: []string{"groupRule"}, legal: "prefer-apart, apart, prefer-together or together", set: groupRule},
	{keys: []string{"locality"}, legal: "off, prefer or require", set: locality, mutable: true},
	{keys: []string{"encrypt"}, legal: legalBool, set: boolean(setEncrypt)},
	{keys: []string{"autoFstrim"}, legal: legalTrim, set: autoTrim, mutable: true},
}

// pure is the dialect of Pure Service Orchestrator 6.
var pure = []parameter{
	{keys: []string{"backend"}, legal: "block or file", set: choice([]string{"file"}, []string{"block"}), lacking: noShares},
	{keys: []string{"createoptions"}, legal: legalOptions, set: setCreateOptions},
	{keys: []string{"iops_limit"}, legal: "100 to 100000000", set: iops("iops-limit", spec.MinIOPSLimit), mutable: true},
	{keys: []string{"bandwidth_limit"}, set: bandwidth("bandwidth-limit", spec.MinBandwidthLimit), mutable: true,
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
	{keys: []string{"io_priority", "priority_io"}, legal: "low, medium, high, or 1 to 3", set: tier, mutable: true},
	{keys: []string{"aggregation_level"}, legal: "1 to 3, or auto", set: func(r *Request, v string) (bool, bool) {
		if v == "auto" {
			return true, true
		}
		return number(1, 3, 0, setColumns)(r, v)
	}},
	{keys: []string{"snap_interval"}, legal: "minutes: 0, or 60 to 527040", set: snapInterval},
	{keys: []string{"snap_schedule"}, set: snapSchedule, lacking: noPolicies,
		legal: "periodic=MINUTES,KEEP, daily=HH:MM,KEEP, weekly=DAY@HH:MM,KEEP, monthly=DAY@HH:MM,KEEP or policy=NAME, separated by ';'"},

	{keys: []string{"shared"}, legal: legalBool, set: boolean(nil), lacking: noShares},
	{keys: []string{"sharedv4"}, legal: legalBool, set: boolean(nil), lacking: noShares},
	{keys: []string{"sticky"}, legal: legalBool, set: boolean(nil), lacking: "has no effect yet: a volume that isn't attached can be deleted"},
	{keys: []string{"secure"}, legal: legalBool, set: boolean(setEncrypt)},
	{keys: []string{"journal"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"nodiscard"}, legal: legalBool, set: boolean(setNoDiscard)},
	{keys: []string{"auto_fstrim", "autofstrim"}, mutable: true, legal: legalBool, set: boolean(func(r *Request, on bool) {
		if r.TrimEvery = 0; on {
			r.TrimEvery = spec.DefaultTrimEvery
		}
	})},
	{keys: []string{"ephemeral"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"compressed"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"cascaded"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"direct_io"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"proxy_write"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"fastpath"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"best_effort_location_provisioning"}, legal: legalBool, set: boolean(nil), lacking: noEffect},
	{keys: []string{"force_unsupported_fs_type"}, legal: legalBool, set: boolean(nil), lacking: noEffect},

	{keys: []string{"secret_key"}, legal: "text", set: text, lacking: "has no effect: every volume has a data key of its own, wrapped by the cluster's wrapping key"},
	{keys: []string{"nodes"}, legal: "names of nodes, separated by ',' or ';'", set: within(KeyNode, ",; ")},
	{keys: []string{"zones"}, legal: "zones, separated by ','", set: within(KeyZone, ", ")},
	{keys: []string{"racks"}, legal: "values of the nodes' label rack, separated by ','", set: within("rack", ", ")},
	{keys: []string{"regions"}, legal: "values of the nodes' label region, separated by ','", set: within("region", ", ")},
	{keys: []string{"group"}, legal: legalGroup, set: group},
	{keys: []string{"fg"}, legal: legalBool, set: boolean(func(r *Request, strict bool) {
		if strict {
			r.Placement.GroupRule = spec.GroupApart
		}
	})},
	{keys: []string{"label", "labels"}, legal: "k=v, separated by ','", set: labels, lacking: noLabels},

	{keys: []string{"io_throttle_rd_iops"}, legal: legalUint, mutable: true, lacking: outOfRange,
		set: nearest("read-iops-limit", 1, spec.MinIOPSLimit, spec.MaxIOPSLimit)},
	{keys: []string{"io_throttle_wr_iops"}, legal: legalUint, mutable: true, lacking: outOfRange,
		set: nearest("write-iops-limit", 1, spec.MinIOPSLimit, spec.MaxIOPSLimit)},
	{keys: []string{"io_throttle_rd_bw"}, legal: legalThrough, mutable: true, lacking: outOfRange,
		set: nearest("read-bandwidth-limit", 1<<20, spec.MinBandwidthLimit, spec.MaxBandwidthLimit)},
	{keys: []string{"io_throttle_wr_bw"}, legal: legalThrough, mutable: true, lacking: outOfRange,
		set: nearest("write-bandwidth-limit", 1<<20, spec.MinBandwidthLimit, spec.MaxBandwidthLimit)},

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
func setEncrypt(r *Request, on bool)   { r.Encrypt = on }
func setNoDiscard(r *Request, on bool) { r.NoDiscard = on }
