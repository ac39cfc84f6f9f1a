package doctor

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// Kernel versions, major<<32 | minor<<16 | patch.
type kernelVersion uint64

func version(major, minor, patch uint64) kernelVersion {
	return kernelVersion(major<<32 | minor<<16 | patch)
}

// String writes it as 6.1.64.
func (v kernelVersion) String() string {
	return fmt.Sprintf("%d.%d.%d", v>>32, v>>16&0xffff, v&0xffff)
}

var versionText = regexp.MustCompile(`^(\d+)\.(\d+)(?:\.(\d+))?`)

func parseVersion(text string) (kernelVersion, bool) {
	f := versionText.FindStringSubmatch(text)
	if f == nil {
		return 0, false
	}
	var n [3]uint64
	for i := range n {
		n[i], _ = strconv.ParseUint(f[i+1], 10, 16) // "" is 0
	}
	return version(n[0], n[1], n[2]), true
}

// minKernel is the first that can resend what a dead FUSE server left unanswered.
var minKernel = version(6, 9, 0)

func checkKernel(_ context.Context, m *Machine, _ Options) []Finding {
	v, ok := parseVersion(m.Release)
	if !ok {
		return one(Warning, "release %q can't be read", m.Release)
	}
	if v < minKernel {
		return []Finding{{
			State: Danger, Found: "Linux " + m.Release,
			Why: "before 6.9 the kernel can't be asked to resend what an engine left unanswered: when the engine ends, the requests in flight hang for good, and with them whoever uses the volume",
			Do:  "boot a kernel of 6.9 or newer",
		}}
	}
	return one(OK, "Linux %s", m.Release)
}

//go:embed kernels.yaml
var kernelList []byte

// badKernels is an entry of kernels.yaml.
type badKernels struct {
	Name   string   `json:"name"`
	State  State    `json:"state"`
	Ranges []string `json:"ranges"` // FROM..FIXED: FIXED is the first that is good again
	Why    string   `json:"why"`
	Source string   `json:"source"`

	ranges [][2]kernelVersion
}

// readKernelList reads the list. Its errors are mistakes in the file.
func readKernelList(b []byte) ([]badKernels, error) {
	var list []badKernels
	if err := yaml.UnmarshalStrict(b, &list); err != nil {
		return nil, err
	}
	for i := range list {
		k := &list[i]
		if k.Name == "" || k.Why == "" || k.Source == "" || len(k.Ranges) == 0 || k.State != Danger && k.State != Warning {
			return nil, fmt.Errorf("entry %d (%s): name, state, ranges, why and source are needed", i+1, k.Name)
		}
		for _, r := range k.Ranges {
			from, to, ok := strings.Cut(r, "..")
			a, aok := parseVersion(from)
			b, bok := parseVersion(to)
			if !ok || !aok || !bok || a >= b {
				return nil, fmt.Errorf("entry %s: %q is no range FROM..FIXED", k.Name, r)
			}
			k.ranges = append(k.ranges, [2]kernelVersion{a, b})
		}
	}
	return list, nil
}

var (
	// debianVersion is in uname's version: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.66-1 (2023-12-09)". The release doesn't say it.
	debianVersion = regexp.MustCompile(`Debian (\d+\.\d+\.\d+)-`)
	// vendorKernel are releases whose number says little of what is in them: fixes are taken into an old version for years.
	vendorKernel = regexp.MustCompile(`\.(el|amzn|oe|an|ocs|tl)\d|-default$|-gke|-azure|-aws`)
)

// upstream returns the version of the stable series that a kernel was made of; ok is false if that can't be told.
func (m *Machine) upstream() (v kernelVersion, ok bool) {
	if f := debianVersion.FindStringSubmatch(m.Version); f != nil {
		return parseVersion(f[1])
	}
	// Ubuntu: "Ubuntu 6.8.0-31.31-generic 6.8.1".
	if f := strings.Fields(m.read("proc/version_signature")); len(f) == 3 && f[0] == "Ubuntu" {
		return parseVersion(f[2])
	}
	if vendorKernel.MatchString(m.Release) {
		return 0, false
	}
	return parseVersion(m.Release)
}

func checkKernelList(_ context.Context, m *Machine, _ Options) []Finding {
	list, err := readKernelList(kernelList)
	if err != nil {
		return one(Warning, "the list of bad kernels can't be read: %v", err)
	}
	v, ok := m.upstream()
	if !ok {
		return one(Note, "%s is a vendor's kernel: which fixes are in it can't be told from its version; see the list in doctor.md", m.Release)
	}
	var out []Finding
	for _, k := range list {
		for _, r := range k.ranges {
			if v >= r[0] && v < r[1] {
				out = append(out, Finding{
					State: k.State, Found: fmt.Sprintf("Linux %s has %s", v, k.Name), Why: k.Why + " (" + k.Source + ")",
					Do: fmt.Sprintf("boot another kernel: this is mended in %s", r[1]),
				})
			}
		}
	}
	if len(out) == 0 {
		return one(OK, "Linux %s is on no list of bad kernels (%d entries)", v, len(list))
	}
	slices.SortStableFunc(out, func(a, b Finding) int { return cmp.Compare(a.State, b.State) })
	return out
}
