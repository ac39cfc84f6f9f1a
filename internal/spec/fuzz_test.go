package spec

import (
	"strings"
	"testing"
)

// FuzzSize reads anything as a size: what is shown of it exactly is read again as the same.
func FuzzSize(f *testing.F) {
	for _, s := range []string{"4Gi", "1.5T", "0", "4096", "-1", "9223372036854775807", "8Ei", "1e9", "99999999999999999999Pi", "4G+1", "Gi", "0x10"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err != nil {
			return
		}
		shown := FormatSize(n)
		if strings.ContainsAny(shown, ".B") {
			return // rounded, or a number of bytes with its unit
		}
		if again, err := ParseSize(shown); err != nil || again != n {
			t.Fatalf("%q is %d, shown as %q, which is %d: %v", s, n, shown, again, err)
		}
	})
}
