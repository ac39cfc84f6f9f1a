package main

import (
	"fmt"
	"strings"
)

// volume is what is read of a volume of Keelson.
type volume struct {
	Name       string            `json:"name"`
	Size       int64             `json:"size"`
	Node       string            `json:"node"`
	Health     string            `json:"health"`
	Condition  string            `json:"condition"`
	Attributes map[string]string `json:"attributes"`
	Limits     struct {
		IOPS      int64 `json:"iops"`
		Bandwidth int64 `json:"bandwidth"`
	} `json:"limits"`
	Columns []struct {
		Members []struct {
			Node  string `json:"node"`
			State string `json:"state"`
		} `json:"members"`
	} `json:"columns"`
}

// bad says which replica isn't in sync, "" if all are.
func (v *volume) bad() string {
	var out []string
	for _, c := range v.Columns {
		for _, m := range c.Members {
			if m.State != "InSync" {
				out = append(out, fmt.Sprintf("the replica on %s is %s", m.Node, m.State))
			}
		}
	}
	return strings.Join(out, ", ")
}

// volume asks Keelson.
func (s *space) volume(name string) (volume, error) {
	all, err := s.volumes()
	if err != nil {
		return volume{}, err
	}
	for _, v := range all {
		if v.Name == name {
			return v, nil
		}
	}
	return volume{}, fmt.Errorf("there is no volume %s", name)
}

func (s *space) volumes() ([]volume, error) {
	var all []volume
	err := s.keelson(s.ctx, &all, "volume", "list")
	return all, err
}

// volumeOf is the name of the volume of a claim.
func (s *space) volumeOf(claim string) string {
	s.t.Helper()
	name, err := s.Field(s.ctx, "{.spec.volumeName}", "-n", s.name, "pvc", claim)
	if err != nil || name == "" {
		s.t.Fatalf("claim %s has no volume: %v", claim, err)
	}
	return name
}

type errVolumesLeft []volume

func (e errVolumesLeft) Error() string {
	var names []string
	for _, v := range e {
		names = append(names, v.Name)
	}
	return "there are still the volumes " + strings.Join(names, ", ")
}
