package spec

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// InvalidError is a value that a person gave and that isn't legal. Nothing was changed.
type InvalidError struct {
	Field string // what the value is, in the words of the command line
	Value string
	Legal string // what would be legal
}

// Error names the field, the value and what is legal.
func (e *InvalidError) Error() string {
	return fmt.Sprintf("%s %q isn't valid: it must be %s", e.Field, e.Value, e.Legal)
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// CheckName checks that a name of a volume, node or zone is a DNS label. The error is an *InvalidError.
func CheckName(field, name string) error {
	if !dnsLabel.MatchString(name) {
		return &InvalidError{field, name, "a DNS label: 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"}
	}
	return nil
}

// CheckVolumeSize checks a volume's size in bytes. The error is an *InvalidError.
func CheckVolumeSize(n int64) error {
	if n < MinVolumeSize || n > MaxVolumeSize || n%4096 != 0 {
		return &InvalidError{"size", fmt.Sprint(n), fmt.Sprintf("a multiple of 4096 bytes from %s to %s",
			FormatSize(MinVolumeSize), FormatSize(MaxVolumeSize))}
	}
	return nil
}

var labelKey = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
var labelValue = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$`)

// ParseLabels reads labels written k=v. The error is an *InvalidError.
func ParseLabels(field string, list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range list {
		k, v, ok := strings.Cut(s, "=")
		if !ok || !labelKey.MatchString(k) || !labelValue.MatchString(v) {
			return nil, &InvalidError{field, s, "key=value, both as Kubernetes labels are written"}
		}
		if old, twice := out[k]; twice && old != v {
			return nil, &InvalidError{field, s, fmt.Sprintf("given once: %s=%s is there already", k, old)}
		}
		out[k] = v
	}
	return out, nil
}

// CheckLabels checks labels that were parsed elsewhere. The error is an *InvalidError.
func CheckLabels(field string, labels map[string]string) error {
	for k, v := range labels {
		if !labelKey.MatchString(k) || !labelValue.MatchString(v) {
			return &InvalidError{field, k + "=" + v, "key=value, both as Kubernetes labels are written"}
		}
	}
	return nil
}

// Validate checks what a person may ask for in a new volume. The error is an *InvalidError.
func (v *Volume) Validate() error {
	if err := CheckName("volume name", v.Name); err != nil {
		return err
	}
	if err := CheckVolumeSize(v.Size); err != nil {
		return err
	}
	if err := CheckReplicas(v.Replicas); err != nil {
		return err
	}
	if v.Columns < 1 || v.Columns > MaxColumns {
		return &InvalidError{"columns", fmt.Sprint(v.Columns), fmt.Sprintf("1 to %d", MaxColumns)}
	}
	if err := CheckMedia(v.Media); v.Media != "" && err != nil {
		return err
	}
	if n := len(v.Topology); n > MaxTopologyTerms {
		return &InvalidError{"topology", fmt.Sprint(n), fmt.Sprintf("at most %d terms", MaxTopologyTerms)}
	}
	for _, term := range v.Topology {
		if err := CheckLabels("topology", term); err != nil {
			return err
		}
	}
	if err := v.validateData(); err != nil {
		return err
	}
	if err := v.Ephemeral.Validate(); err != nil {
		return err
	}
	return CheckLabels("node-selector", v.NodeSelector)
}

// CheckMedia checks a kind of media. The error is an *InvalidError.
func CheckMedia(m Media) error {
	if !slices.Contains([]Media{MediaNVMe, MediaSSD, MediaHDD}, m) {
		return &InvalidError{"media", string(m), "nvme, ssd or hdd"}
	}
	return nil
}

// CheckFrontend checks the name of a frontend that a person may ask for. The error is an *InvalidError.
func CheckFrontend(f string) error {
	if f != FrontendFUSE && f != FrontendNBD {
		return &InvalidError{"frontend", f, "fuse or nbd"}
	}
	return nil
}

// CheckRoles checks the roles of a node. The error is an *InvalidError.
func CheckRoles(roles []Role) error {
	for _, r := range roles {
		if r != RoleMetadata && r != RoleStorage {
			return &InvalidError{"role", string(r), "metadata or storage"}
		}
	}
	if len(roles) == 0 {
		return &InvalidError{"roles", "", "metadata, storage, or both"}
	}
	return nil
}

// CheckReplicas checks how many copies a volume shall have. The error is an *InvalidError.
func CheckReplicas(n int) error {
	if n < 1 || n > MaxReplicas {
		return &InvalidError{"replicas", fmt.Sprint(n), fmt.Sprintf("1 to %d", MaxReplicas)}
	}
	return nil
}
