package spec

import (
	"errors"
	"strings"
	"testing"
)

func grownVolume(columns int, members ...Member) Volume {
	v := Volume{Name: "db", Size: 8 << 20, Columns: columns, Replicas: len(members)}
	for range columns {
		v.State.Columns = append(v.State.Columns, Column{Members: append([]Member(nil), members...)})
	}
	return v
}

func TestPlanGrowth(t *testing.T) {
	for what, size := range map[string]int64{
		"smaller": 4 << 20, "zero": 0, "negative": -8 << 20, "no multiple": 8<<20 + 1, "too large": MaxVolumeSize + 4096,
	} {
		v := grownVolume(1, Member{State: InSync})
		var invalid *InvalidError
		if err := v.PlanGrowth(size); !errors.As(err, &invalid) || invalid.Field != "size" || !strings.Contains(err.Error(), "64Ti") {
			t.Errorf("%s: %v", what, err)
		}
		if v.Growth != (Growth{}) {
			t.Errorf("%s: %+v", what, v.Growth)
		}
	}
}

// The steps of a growth, with one member that isn't in sync: it is never waited for.
func TestGrowthSteps(t *testing.T) {
	v := grownVolume(1, Member{Replica: "a", State: InSync}, Member{Replica: "b", State: InSync}, Member{Replica: "c", State: Stale})
	m := v.State.Columns[0].Members
	if err := v.PlanGrowth(8 << 20); err != nil || v.Growth != (Growth{}) || !v.Holds(m[0], v.Size) {
		t.Fatalf("the size that it has: %v, %+v", err, v.Growth)
	}
	if err := v.PlanGrowth(20 << 20); err != nil || v.Planned() != 20<<20 || v.Size != 8<<20 {
		t.Fatalf("%v, %+v", err, v)
	}
	for i, want := range []int{2, 1, 0} {
		if n := len(v.Waiting()); n != want {
			t.Fatalf("step %d: %d are waited for, want %d", i, n, want)
		}
		if want > 0 {
			if v.AdmitGrowth() || v.Size != 8<<20 {
				t.Fatalf("step %d: admitted", i)
			}
			m[i].Size = 20 << 20
		}
	}
	if !v.AdmitGrowth() || v.Size != 20<<20 || v.Growth.To != 0 || v.Growth.Base != 8<<20 || v.AdmitGrowth() {
		t.Fatalf("%+v", v)
	}
	if !v.Holds(m[0], v.Size) || v.Holds(m[2], v.Size) {
		t.Fatal("the stale member hasn't grown, and the others have")
	}
	if err := v.PlanGrowth(30 << 20); err != nil || v.Growth.Base != 8<<20 {
		t.Fatalf("the second time: %v, %+v", err, v.Growth)
	}
	if err := v.PlanGrowth(25 << 20); err == nil {
		t.Fatal("a plan was made smaller")
	}
}

func TestGrowthOfColumns(t *testing.T) {
	v := grownVolume(3, Member{Replica: "a", State: InSync})
	v.Scrub.Position = 5
	if err := v.PlanGrowth(20 << 20); err != nil {
		t.Fatal(err)
	}
	for i := range v.State.Columns {
		if v.AdmitGrowth() {
			t.Fatalf("admitted with %d of 3 columns grown", i)
		}
		v.State.Columns[i].Members[0].Size = ColumnSize(20<<20, 3)
	}
	if !v.AdmitGrowth() || v.Scrub.Position != 0 {
		t.Fatalf("%+v", v)
	}
}

func TestRelocate(t *testing.T) {
	c := Column{Members: []Member{{Replica: "a"}, {Replica: "b"}}}
	c.Relocate(1, EvictMove, Member{Replica: "c"})
	if c.Staying() != 2 || !c.Members[1].Removing || c.Members[1].Evict != EvictMove || len(c.Members) != 3 {
		t.Errorf("%+v", c)
	}
}
