package csi

import "testing"

func TestSameTerms(t *testing.T) {
	type m = map[string]string
	a, b := m{"zone": "z1"}, m{"zone": "z2", "rack": "r"}
	for _, c := range []struct {
		x, y []m
		same bool
	}{
		{nil, nil, true}, {[]m{a}, []m{a}, true}, {[]m{a, b}, []m{b, a}, true}, {[]m{a, a}, []m{a}, true},
		{[]m{a}, nil, false}, {nil, []m{a}, false}, {[]m{a}, []m{b}, false}, {[]m{a, b}, []m{a}, false},
	} {
		if got := sameTerms(c.x, c.y); got != c.same {
			t.Errorf("%v and %v: %t", c.x, c.y, got)
		}
	}
}
