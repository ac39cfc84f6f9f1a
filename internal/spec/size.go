package spec

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// suffixes are the units that sizes are written in, as Kubernetes quantities: binary and decimal.
var suffixes = []struct {
	name  string
	bytes int64
}{
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40}, {"Pi", 1 << 50},
	{"k", 1e3}, {"K", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"P", 1e15}, {"", 1},
}

const legalSize = "a number of bytes, or a number with one of Ki Mi Gi Ti (powers of 1024) or K M G T (powers of 1000), such as 4Gi"

// ParseSize reads a size in bytes, such as "4Gi", "10G" or "1073741824". The error is an *InvalidError.
func ParseSize(s string) (int64, error) {
	bad := &InvalidError{Field: "size", Value: s, Legal: legalSize}
	text := strings.TrimSpace(s)
	for _, u := range suffixes {
		num, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		if n, err := strconv.ParseInt(num, 10, 64); err == nil {
			if n > math.MaxInt64/u.bytes || n < math.MinInt64/u.bytes {
				return 0, bad
			}
			return n * u.bytes, nil
		}
		f, err := strconv.ParseFloat(num, 64)
		if u.name == "" || err != nil || strings.ContainsAny(num, "xXpPnNiI_") || math.Abs(f*float64(u.bytes)) > math.MaxInt64/2 {
			return 0, bad
		}
		return int64(f * float64(u.bytes)), nil
	}
	return 0, bad
}

// FormatSize writes a number of bytes for people, such as "4Gi" or "9.1Gi".
func FormatSize(n int64) string {
	if n < 0 {
		return "-" + FormatSize(-max(n, -math.MaxInt64))
	}
	for i := 4; i >= 0; i-- {
		u := suffixes[i]
		if n < u.bytes {
			continue
		}
		if n%u.bytes == 0 {
			return fmt.Sprintf("%d%s", n/u.bytes, u.name)
		}
		return fmt.Sprintf("%.1f%s", float64(n)/float64(u.bytes), u.name)
	}
	return fmt.Sprintf("%dB", n)
}
