package meta

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"keelson.io/keelson/internal/invariant/alloc"
	"keelson.io/keelson/internal/spec"
)

// FuzzDecode reads anything as each noun: what can be read is written and read again as the same.
func FuzzDecode(f *testing.F) {
	now := time.Unix(1700000000, 5).UTC()
	for kind, noun := range []any{
		spec.Cluster{ID: "00000000000000aa", Name: "c", Created: now, Settings: spec.DefaultSettings()},
		spec.Node{Name: "n1", ID: "00000000000000ab", Roles: []spec.Role{spec.RoleStorage}, Labels: map[string]string{"a": "b"}, APIAddr: "h:1", Joined: now},
		spec.Pool{ID: "00000000000000ac", Node: "n1", Media: spec.MediaSSD, Capacity: 1 << 40},
		spec.Volume{ID: "00000000000000ad", Name: "v", Size: 1 << 30, State: spec.State{Term: 1<<64 - 1, Columns: []spec.Column{{Members: []spec.Member{{Replica: "1", State: spec.InSync, Since: now}}}}}},
		spec.Token{ID: "00000000000000ae", SecretHash: "00", Expires: now},
		spec.APIToken{ID: "00000000000000af", SecretHash: "00", Role: spec.RoleAdmin, Expires: now},
	} {
		b, err := Encode(noun)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(kind), b)
	}
	f.Add(uint8(0), []byte(`{"v":2,"data":{}}`))
	f.Add(uint8(3), []byte(`{"v":1,"data":null}`))
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		switch kind % 6 {
		case 0:
			roundTrip[spec.Cluster](t, b)
		case 1:
			roundTrip[spec.Node](t, b)
		case 2:
			roundTrip[spec.Pool](t, b)
		case 3:
			roundTrip[spec.Volume](t, b)
		case 4:
			roundTrip[spec.Token](t, b)
		case 5:
			roundTrip[spec.APIToken](t, b)
		}
	})
}

func roundTrip[T any](t *testing.T, b []byte) {
	var v, again T
	var err error
	// A list of empty objects, "{}," each, takes the most.
	alloc.Bounded(t, 512*len(b), func() { err = Decode("it", b, &v) })
	if err != nil {
		if !errors.Is(err, ErrFormat) {
			t.Fatal(err)
		}
		return
	}
	out, err := Encode(v)
	if err != nil {
		return // a time that JSON can't say
	}
	if err := Decode("it", out, &again); err != nil {
		t.Fatalf("%s was read, but %s, which was written of it, isn't: %v", b, out, err)
	}
	out2, err := Encode(again)
	if err != nil || string(out2) != string(out) {
		t.Fatalf("%s became %s, %v\n%+v\n%+v %v", out, out2, err, v, again, reflect.DeepEqual(v, again))
	}
}
