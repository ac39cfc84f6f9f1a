package spec

import (
	"errors"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"4096": 4096, "4Gi": 4 << 30, "10G": 10e9, "512Mi": 512 << 20, "1T": 1e12, "1k": 1000, "1Ki": 1024,
		"1.5Gi": 3 << 29, " 4Gi ": 4 << 30, "2Pi": 2 << 50, "0": 0, "-1Gi": -1 << 30, "9223372036854775807": math.MaxInt64,
	} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "Gi", "4GB", "4gi", "4 Gi", "x", "1.2.3Gi", "9223372036854775808", "9000000Ti", "0x10", "1_000",
		"inf", "NaN", "infGi", "1.5", "--1"} {
		_, err := ParseSize(in)
		var invalid *InvalidError
		if !errors.As(err, &invalid) || invalid.Value != in || !strings.Contains(err.Error(), "4Gi") {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// TestParseSizeNeverPanics: whatever is typed gives a size or an InvalidError.
func TestParseSizeNeverPanics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(`[-+]?[0-9]{0,25}(\.[0-9]{0,25})?(e[0-9]{1,3})?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?`).Draw(t, "size")
		var invalid *InvalidError
		if _, err := ParseSize(s); err != nil && !errors.As(err, &invalid) {
			t.Fatalf("%q: %v", s, err)
		}
	})
}

// TestFormatSize: what is written can be read back, exactly if it is whole in its unit.
func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 4095: "4.0Ki", 4 << 30: "4Gi", 9771050598: "9.1Gi", -1 << 20: "-1Mi", 1 << 50: "1Pi"} {
		if got := FormatSize(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(1, 1023).Draw(t, "n") << (10 * rapid.IntRange(1, 5).Draw(t, "unit"))
		if got, err := ParseSize(FormatSize(n)); err != nil || got != n {
			t.Fatalf("%d was written %s and read %d, %v", n, FormatSize(n), got, err)
		}
	})
}

func TestColumnSize(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(MinVolumeSize/4096, MaxVolumeSize/4096).Draw(t, "blocks") * 4096
		columns := rapid.IntRange(1, MaxColumns).Draw(t, "columns")
		got := ColumnSize(size, columns)
		switch {
		case columns == 1 && got != size:
			t.Fatalf("one column of %d has %d", size, got)
		case columns > 1 && got%StripeUnit != 0:
			t.Fatalf("%d isn't whole stripe units", got)
		case got*int64(columns) < size:
			t.Fatalf("%d columns of %d don't hold %d", columns, got, size)
		case columns > 1 && (got-StripeUnit)*int64(columns) >= size:
			t.Fatalf("%d columns of %d hold more than %d needs", columns, got, size)
		}
	})
}

func TestVolumeValidate(t *testing.T) {
	good := Volume{Name: "pg-data", Size: 4 << 30, Replicas: 2, Columns: 1, NodeSelector: map[string]string{"example.com/disk": "fast"}}
	for name, tc := range map[string]struct {
		change func(*Volume)
		field  string // of the error; "" if it is legal
		says   string
	}{
		"good":            {func(*Volume) {}, "", ""},
		"smallest":        {func(v *Volume) { v.Size = MinVolumeSize }, "", ""},
		"largest":         {func(v *Volume) { v.Size = MaxVolumeSize }, "", ""},
		"no name":         {func(v *Volume) { v.Name = "" }, "volume name", "DNS label"},
		"capitals":        {func(v *Volume) { v.Name = "PG" }, "volume name", `"PG"`},
		"dash first":      {func(v *Volume) { v.Name = "-a" }, "volume name", "DNS label"},
		"dash last":       {func(v *Volume) { v.Name = "a-" }, "volume name", "DNS label"},
		"dots":            {func(v *Volume) { v.Name = "a.b" }, "volume name", "DNS label"},
		"slash":           {func(v *Volume) { v.Name = "../a" }, "volume name", "DNS label"},
		"newline":         {func(v *Volume) { v.Name = "a\n" }, "volume name", "DNS label"},
		"63 letters":      {func(v *Volume) { v.Name = strings.Repeat("a", 63) }, "", ""},
		"64 letters":      {func(v *Volume) { v.Name = strings.Repeat("a", 64) }, "volume name", "1 to 63"},
		"size zero":       {func(v *Volume) { v.Size = 0 }, "size", "from 4Mi to 64Ti"},
		"size negative":   {func(v *Volume) { v.Size = -4096 }, "size", "-4096"},
		"not in blocks":   {func(v *Volume) { v.Size++ }, "size", "4294967297"},
		"too large":       {func(v *Volume) { v.Size = MaxVolumeSize + 4096 }, "size", "64Ti"},
		"no replicas":     {func(v *Volume) { v.Replicas = 0 }, "replicas", "1 to 5"},
		"6 replicas":      {func(v *Volume) { v.Replicas = 6 }, "replicas", `"6"`},
		"no columns":      {func(v *Volume) { v.Columns = 0 }, "columns", "1 to 16"},
		"17 columns":      {func(v *Volume) { v.Columns = 17 }, "columns", `"17"`},
		"unknown media":   {func(v *Volume) { v.Media = "tape" }, "media", "nvme, ssd or hdd"},
		"known media":     {func(v *Volume) { v.Media = MediaHDD }, "", ""},
		"label key":       {func(v *Volume) { v.NodeSelector = map[string]string{"a b": "c"} }, "node-selector", "a b=c"},
		"label value":     {func(v *Volume) { v.NodeSelector = map[string]string{"a": "c d"} }, "node-selector", "a=c d"},
		"topology":        {func(v *Volume) { v.Topology = []map[string]string{{"a": "b"}, {TopologyZone: "z/1"}} }, "topology", "z/1"},
		"topologies":      {func(v *Volume) { v.Topology = make([]map[string]string, MaxTopologyTerms+1) }, "topology", "257"},
		"good topology":   {func(v *Volume) { v.Topology = []map[string]string{{"a": "b", TopologyNode: "n1"}} }, "", ""},
		"empty label":     {func(v *Volume) { v.NodeSelector = map[string]string{"a": ""} }, "", ""},
		"empty label key": {func(v *Volume) { v.NodeSelector = map[string]string{"": "a"} }, "node-selector", "=a"},
	} {
		v := good
		tc.change(&v)
		err := v.Validate()
		var invalid *InvalidError
		switch {
		case tc.field == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.field != "" && (!errors.As(err, &invalid) || invalid.Field != tc.field || !strings.Contains(err.Error(), tc.says)):
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseLabels(t *testing.T) {
	got, err := ParseLabels("label", []string{"a=b", "example.com/zone=x_1.y", "c=", "a=b"})
	if err != nil || len(got) != 3 || got["a"] != "b" || got["example.com/zone"] != "x_1.y" {
		t.Fatalf("%v, %v", got, err)
	}
	for _, bad := range [][]string{{"a"}, {"=b"}, {"a=b", "a=c"}, {"a=b=c"}, {"/a=b"}, {"a/=b"}, {strings.Repeat("a", 64) + "=b"}} {
		var invalid *InvalidError
		if _, err := ParseLabels("label", bad); !errors.As(err, &invalid) || invalid.Field != "label" {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		id := NewID()
		if err := ValidateID("id", id); err != nil || seen[id] {
			t.Fatalf("%q: %v", id, err)
		}
		seen[id] = true
	}
	for _, bad := range []string{"", "0123", "0123456789ABCDEF", "0123456789abcdeg", "0123456789abcdef0"} {
		if ValidateID("id", bad) == nil {
			t.Errorf("%q is valid", bad)
		}
	}
}
