package dialect

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/spec"
)

func TestPrintedClasses(t *testing.T) {
	gold := map[string]string{
		"iops_limit": "30000", "bandwidth_limit": "10G", "backend": "block", "csi.storage.k8s.io/fstype": "xfs", "createoptions": "-q",
	}
	goldRequest := Request{FSType: "xfs", CreateOptions: []string{"-q"}, Limits: spec.Limits{IOPS: 30000, Bandwidth: 10 << 30}}
	for name, x := range map[string]struct {
		driver string
		params map[string]string
		want   Request
		warned []string
	}{
		"pure, example":             {DriverPure, gold, goldRequest, nil},
		"pure, pure-block-gold":     {DriverPure, gold, goldRequest, nil},
		"pure, pure-block":          {DriverPure, map[string]string{"backend": "block"}, Request{FSType: "xfs"}, nil},
		"pure, pure-file":           {DriverPure, map[string]string{"backend": "file"}, Request{FSType: "xfs"}, []string{"backend"}},
		"portworx, px-repl3-sc":     {DriverPortworx, map[string]string{"repl": "3"}, Request{Replicas: 3, FSType: "ext4"}, nil},
		"portworx, replicated":      {DriverPortworx, map[string]string{"repl": "2", "priority_io": "high"}, Request{Replicas: 2, FSType: "ext4", Placement: spec.Placement{Tier: spec.TierHigh}}, nil},
		"portworx, none":            {DriverPortworx, nil, Request{Replicas: 1, FSType: "ext4"}, nil},
		"ours, none":                {DriverKeelson, nil, Request{FSType: "ext4"}, nil},
		"ours, under another name":  {"csi.example.org", map[string]string{"replicas": "3"}, Request{Replicas: 3, FSType: "ext4"}, nil},
		"a class of another system": {DriverKeelson, map[string]string{"type": "gp2", "iopsPerGB": "10", "fsType": "ext4"}, Request{FSType: "ext4"}, []string{"iopsPerGB", "type"}},
	} {
		got, warnings, err := ForDriver(x.driver).Translate(x.params)
		if err != nil || !reflect.DeepEqual(got, x.want) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, x.want)
		}
		var warned []string
		for _, w := range warnings {
			warned = append(warned, w.Key)
			if !strings.Contains(w.String(), w.Key) || !strings.Contains(w.String(), w.Value) {
				t.Errorf("%s: %q names no key and value", name, w)
			}
		}
		if !slices.Equal(warned, x.warned) {
			t.Errorf("%s: warned of %v, want %v", name, warned, x.warned)
		}
	}
}

// values are legal ones, those among them that have no effect, and bad ones.
type values struct{ good, warned, bad []string }

var someBool = values{good: []string{"false", "0", "F"}, warned: []string{"true", "1", "T"}, bad: []string{"", "yes", "on", "maybe"}}

var anyBool = values{good: []string{"false", "0", "F", "true", "1", "T"}, bad: []string{"", "yes", "on", "maybe"}}

func TestEveryRow(t *testing.T) {
	text := values{good: []string{""}, warned: []string{"x"}}
	list := values{good: []string{"", "a", "a,b"}, bad: []string{"a b*,c", "-x"}}
	createOptions := values{good: []string{"", "-q", "-q -b 4096", "-E lazy_itable_init=0"}, bad: []string{"q", "-d /etc", "-J device=/dev/sda", "-a b c", "--", "- x"}}
	fs := values{good: []string{"", "xfs", "ext4", "ext3"}, bad: []string{"ext2", "btrfs", "XFS", "ext4 "}}
	count := values{good: []string{"0", "100", "100000"}, warned: []string{"7", "100000001", "18446744073709551615"}, bad: []string{"", "-1", "1.5", "x", "10M"}}
	through := values{good: []string{"0", "1", "524288"}, warned: []string{"524289"}, bad: []string{"", "-1", "1.5", "x", "10M"}}
	requests := values{good: []string{"0", "100", "100000000"}, bad: []string{"", "-1", "99", "100000001", "1k"}}
	bytes := values{good: []string{"0", "1M", "512G", "1048576", "1024K"}, bad: []string{"", "1", "512", "-1", "10T", "513G", "1048577", "0.5G"}}
	for driver, rows := range map[string]map[string]values{
		DriverKeelson: {
			"replicas":                  {good: []string{"1", "5"}, bad: []string{"0", "6", "", "two", "2.0"}},
			"columns":                   {good: []string{"1", "16"}, bad: []string{"0", "17"}},
			"zoneSpread":                {good: []string{"true", "false"}, bad: []string{"zone", ""}},
			"media":                     {good: []string{"nvme", "ssd", "hdd"}, bad: []string{"", "tape", "SSD"}},
			"nodeSelector":              {good: []string{"", "disk=fast", "disk=fast,rack=r1"}, bad: []string{"fast", "a=b,a=c", "=x"}},
			"createOptions":             createOptions,
			"createoptions":             createOptions,
			"nodiscard":                 {good: []string{"true", "false"}, bad: []string{"x"}},
			"encrypt":                   anyBool,
			"iopsLimit":                 requests,
			"readIopsLimit":             requests,
			"writeIopsLimit":            requests,
			"bandwidthLimit":            bytes,
			"readBandwidthLimit":        bytes,
			"writeBandwidthLimit":       bytes,
			"ioPriority":                {good: []string{"high", "medium", "low", "1", "2", "3"}, bad: []string{"", "0", "4", "High"}},
			"group":                     {good: []string{"", "pg", "pg_1.a-b"}, bad: []string{"a b", "-a", "a/b"}},
			"groupRule":                 {good: []string{"", "prefer-apart", "apart", "prefer-together", "together"}, bad: []string{"near"}},
			"locality":                  {good: []string{"off", "prefer", "require"}, bad: []string{"", "on"}},
			"autoFstrim":                {good: []string{"true", "false", "1h", "24h", "8784h"}, bad: []string{"", "daily", "59m", "9000h", "-24h"}},
			"fsType":                    fs,
			"fstype":                    fs,
			"csi.storage.k8s.io/fstype": fs,
			"repl":                      {warned: []string{"3"}},
		},
		DriverPure: {
			"backend":                   {good: []string{"block"}, warned: []string{"file"}, bad: []string{"", "Block", "object"}},
			"csi.storage.k8s.io/fstype": fs,
			"createoptions":             createOptions,
			"iops_limit":                {good: []string{"100", "100000000"}, bad: []string{"99", "100000001", "", "30k", "-5"}},
			"bandwidth_limit": {
				good: []string{"1M", "1024K", "512G", "10G", "1048576", "549755813888"},
				bad:  []string{"0", "1023K", "513G", "1048575", "549755814400", "1048577", "1g", "10T", "10 G", "", "G", "9223372036854775807G"},
			},
			"exportrules":  text,
			"export_rules": text,
		},
		DriverPortworx: {
			"repl":              {good: []string{"1", "2", "3"}, bad: []string{"0", "4", "", "x"}},
			"fs":                {good: []string{"none", "xfs", "ext4"}, bad: []string{"ext3", "zfs"}},
			"block_size":        {good: []string{"4096"}, warned: []string{"8192"}, bad: []string{"4K", "-1"}},
			"queue_depth":       {good: []string{"128"}, warned: []string{"1", "256"}, bad: []string{"0", "257"}},
			"io_profile":        {good: []string{"auto", "none"}, warned: []string{"sequential", "random", "db", "db_remote", "cms", "sync_shared", "journal", "auto_journal"}, bad: []string{"fast", ""}},
			"io_priority":       {good: []string{"low", "1", "medium", "high", "2", "3"}, bad: []string{"0", "4", "highest"}},
			"priority_io":       {good: []string{"low", "high"}, bad: []string{"x"}},
			"aggregation_level": {good: []string{"1", "2", "3", "auto"}, bad: []string{"0", "4", "all"}},
			"snap_interval":     {good: []string{"0", "60", "1440"}, bad: []string{"59", "-60", "1h"}},
			"snap_schedule": {good: []string{"", "periodic=60,5", "daily=12:00,4", "weekly=sunday@12:00", "monthly=1@02:30,12", "daily=1:00;periodic=60"}, warned: []string{"policy=weekly"},
				bad: []string{"hourly", "daily=noon", "weekly=someday@12:00"}},
			"shared": someBool, "sharedv4": someBool, "sticky": someBool, "journal": someBool, "auto_fstrim": anyBool, "autofstrim": anyBool, "ephemeral": someBool,
			"secure":     anyBool,
			"nodiscard":  {good: []string{"true", "false"}, bad: []string{"x"}},
			"secret_key": text,
			"nodes":      {good: []string{"", "n1", "n1,n2", "n1;n2"}, bad: []string{"n 1*"}},
			"zones":      list, "racks": list, "regions": list,
			"group": {good: []string{"", "g"}, bad: []string{"a b"}}, "fg": anyBool,
			"label":               {good: []string{""}, warned: []string{"a=b", "a=b,c=d"}, bad: []string{"a", "=b"}},
			"labels":              {warned: []string{"a=b"}, bad: []string{"a"}},
			"io_throttle_rd_iops": count, "io_throttle_wr_iops": count, "io_throttle_rd_bw": through, "io_throttle_wr_bw": through,
			"export": text, "export_options": text, "sharedv4_mount_options": text,
			"mount_options":      {good: []string{"", "noatime", "noatime,nodiscard"}},
			"createoptions":      createOptions,
			"sharedv4_svc_type":  {good: []string{""}, warned: []string{"NodePort", "ClusterIP", "LoadBalancer"}, bad: []string{"nodeport", "Headless"}},
			"placement_strategy": text, "storage_policy": text,
		},
	} {
		d := ForDriver(driver)
		for key, v := range rows {
			d.check(t, key, v)
		}
		for _, p := range d.rows {
			for _, k := range p.keys {
				if _, ok := rows[k]; !ok && !slices.Contains(plainBools, k) {
					t.Errorf("%s: no values for %s", driver, k)
				}
			}
		}
	}
	for _, k := range plainBools {
		ForDriver(DriverPortworx).check(t, k, someBool)
	}
}

// plainBools are keys of Portworx that have no effect.
var plainBools = []string{"compressed", "cascaded", "direct_io", "proxy_write", "fastpath", "best_effort_location_provisioning", "force_unsupported_fs_type"}

func (d *Dialect) check(t *testing.T, key string, v values) {
	t.Helper()
	for _, value := range append(slices.Clone(v.good), v.warned...) {
		_, warnings, err := d.Translate(map[string]string{key: value})
		if err != nil {
			t.Errorf("%s: %s %q: %v", d.Driver, key, value, err)
		}
		if want := slices.Contains(v.warned, value); want != (len(warnings) == 1) {
			t.Errorf("%s: %s %q: warnings %v", d.Driver, key, value, warnings)
		}
	}
	for _, value := range v.bad {
		got, _, err := d.Translate(map[string]string{key: value})
		var bad *spec.InvalidError
		if !errors.As(err, &bad) {
			t.Errorf("%s: %s %q is taken: %+v, %v", d.Driver, key, value, got, err)
			continue
		}
		if !strings.Contains(bad.Field, key) || bad.Value != value || bad.Legal == "" {
			t.Errorf("%s: %s %q: %v", d.Driver, key, value, err)
		}
	}
}

func TestEffects(t *testing.T) {
	for _, x := range []struct {
		driver string
		params map[string]string
		want   Request
	}{
		{DriverKeelson, map[string]string{"replicas": "3", "columns": "4", "zoneSpread": "true", "media": "nvme", "nodeSelector": "disk=fast, rack=r1"},
			Request{Replicas: 3, Columns: 4, ZoneSpread: true, Media: "nvme", NodeSelector: map[string]string{"disk": "fast", "rack": "r1"}, FSType: "ext4"}},
		{DriverKeelson, map[string]string{"encrypt": "true"}, Request{Encrypt: true, FSType: "ext4"}},
		{DriverPortworx, map[string]string{"secure": "true"}, Request{Encrypt: true, Replicas: 1, FSType: "ext4"}},
		{DriverPortworx, map[string]string{"secure": "false"}, Request{Replicas: 1, FSType: "ext4"}},
		{DriverKeelson, map[string]string{"nodiscard": "true", "createOptions": "-i 8192", "fsType": "xfs"},
			Request{NoDiscard: true, CreateOptions: []string{"-i", "8192"}, FSType: "xfs"}},
		{DriverPortworx, map[string]string{"aggregation_level": "3", "fs": "xfs", "nodiscard": "1", "mount_options": "noatime,nobarrier"},
			Request{Replicas: 1, Columns: 3, FSType: "xfs", NoDiscard: true, MountOptions: []string{"noatime", "nobarrier"}}},
		{DriverKeelson, map[string]string{"iopsLimit": "500", "readBandwidthLimit": "2M", "ioPriority": "low", "group": "g", "groupRule": "together", "locality": "prefer", "autoFstrim": "2h"},
			Request{FSType: "ext4", Limits: spec.Limits{IOPS: 500, ReadBandwidth: 2 << 20}, TrimEvery: 2 * time.Hour,
				Placement: spec.Placement{Tier: "low", Group: "g", GroupRule: "together", Locality: "prefer"}}},
		{DriverPortworx, map[string]string{"io_throttle_rd_iops": "7", "io_throttle_wr_iops": "300", "io_throttle_rd_bw": "3", "io_throttle_wr_bw": "0", "io_priority": "2",
			"group": "pg", "fg": "true", "auto_fstrim": "true"},
			Request{Replicas: 1, FSType: "ext4", Limits: spec.Limits{ReadIOPS: 100, WriteIOPS: 300, ReadBandwidth: 3 << 20}, TrimEvery: 24 * time.Hour,
				Placement: spec.Placement{Tier: "medium", Group: "pg", GroupRule: "apart"}}},
		{DriverPortworx, map[string]string{"fg": "true"}, Request{Replicas: 1, FSType: "ext4"}},
		{DriverPortworx, map[string]string{"nodes": "n1;n2", "zones": "z1", "racks": "a,b", "regions": "eu"},
			Request{Replicas: 1, FSType: "ext4", Within: []Constraint{{KeyNode, []string{"n1", "n2"}}, {"rack", []string{"a", "b"}}, {"region", []string{"eu"}}, {KeyZone, []string{"z1"}}}}},
	} {
		got, _, err := ForDriver(x.driver).Translate(x.params)
		if err != nil || !reflect.DeepEqual(got, x.want) {
			t.Errorf("%v: %+v, %v, want %+v", x.params, got, err, x.want)
		}
	}
}

func TestTwoSpellings(t *testing.T) {
	d := ForDriver(DriverPortworx)
	if _, _, err := d.Translate(map[string]string{"io_priority": "low", "priority_io": "high"}); err == nil {
		t.Error("two spellings of one key with different values")
	}
	if _, _, err := d.Translate(map[string]string{"io_priority": "low", "priority_io": "low"}); err != nil {
		t.Error(err)
	}
}

func TestSidecarsKeysAreSilent(t *testing.T) {
	_, warnings, err := ForDriver(DriverPure).Translate(map[string]string{
		"csi.storage.k8s.io/pvc/name": "a", "csi.storage.k8s.io/provisioner-secret-name": "b", "backend": "block",
	})
	if err != nil || len(warnings) > 0 {
		t.Errorf("%v, %v", warnings, err)
	}
}

// FuzzTranslate: whatever stands in a class, the answer is a request within the limits or an error, and always the same.
func FuzzTranslate(f *testing.F) {
	f.Add("repl", "3", "snap_schedule", "daily=1:00")
	f.Add("bandwidth_limit", "10G", "createoptions", "-q")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		params := map[string]string{k1: v1, k2: v2}
		for _, driver := range []string{DriverKeelson, DriverPure, DriverPortworx} {
			r, w, err := ForDriver(driver).Translate(params)
			r2, w2, err2 := ForDriver(driver).Translate(maps.Clone(params))
			if !reflect.DeepEqual(r, r2) || !slices.Equal(w, w2) || (err == nil) != (err2 == nil) {
				t.Fatalf("%s: %v: two answers", driver, params)
			}
			if err != nil {
				continue
			}
			if r.Replicas < 0 || r.Replicas > spec.MaxReplicas || r.Columns < 0 || r.Columns > spec.MaxColumns || !slices.Contains(FileSystems, r.FSType) || !CheckCreateOptions(r.CreateOptions) {
				t.Fatalf("%s: %v: %+v", driver, params, r)
			}
		}
	})
}

func TestParseChange(t *testing.T) {
	for _, x := range []struct {
		driver string
		params map[string]string
		want   Request
		bad    string // the key that is refused
	}{
		{DriverKeelson, map[string]string{"iopsLimit": "500", "bandwidthLimit": "0"}, Request{Limits: spec.Limits{IOPS: 500}}, ""},
		{DriverKeelson, map[string]string{"locality": "off", "autoFstrim": "false", "ioPriority": "high"},
			Request{Limits: spec.Limits{Bandwidth: 7}, Placement: spec.Placement{Tier: "high", Locality: "off"}}, ""},
		{DriverPure, map[string]string{"iops_limit": "100"}, Request{Limits: spec.Limits{IOPS: 100, Bandwidth: 7}}, ""},
		{DriverPortworx, map[string]string{"io_throttle_wr_bw": "5"}, Request{Limits: spec.Limits{Bandwidth: 7, WriteBandwidth: 5 << 20}}, ""},
		{DriverKeelson, nil, Request{Limits: spec.Limits{Bandwidth: 7}}, ""},
		{DriverKeelson, map[string]string{"iopsLimit": "99"}, Request{}, "iopsLimit"},
		{DriverKeelson, map[string]string{"replicas": "3"}, Request{}, "replicas"},
		{DriverPure, map[string]string{"iopsLimit": "500"}, Request{}, "iopsLimit"},
		{DriverPure, map[string]string{"bandwidth_limit": "1K"}, Request{}, "bandwidth_limit"},
		{DriverPortworx, map[string]string{"io_throttle_rd_iops": "x"}, Request{}, "io_throttle_rd_iops"},
		{DriverKeelson, map[string]string{"tpyo": "1"}, Request{}, "tpyo"},
	} {
		c, err := ForDriver(x.driver).ParseChange(x.params)
		if x.bad != "" {
			var bad *spec.InvalidError
			if !errors.As(err, &bad) || !strings.HasSuffix(bad.Field, x.bad) || bad.Value != x.params[x.bad] || bad.Legal == "" {
				t.Errorf("%v: %v", x.params, err)
			}
			continue
		}
		got := Request{Limits: spec.Limits{Bandwidth: 7}}
		c.Apply(&got)
		if err != nil || !reflect.DeepEqual(got, x.want) {
			t.Errorf("%v: %+v, %v, want %+v", x.params, got, err, x.want)
		}
	}
}
