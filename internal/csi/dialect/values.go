package dialect

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"keelson.io/keelson/internal/spec"
)

// setter takes a value into a request.
type setter = func(r *Request, v string) (idle, ok bool)

// What values may be, in words.
const (
	legalFS      = "ext4, xfs or ext3"
	legalBool    = "true or false"
	legalUint    = "a whole number, 0 or more"
	legalOptions = "options of mkfs: words that begin with '-', each with at most one value, none with a '/'"
)

// FileSystems are those that a volume can be given.
var FileSystems = []string{"ext4", "xfs", "ext3"}

func setFS(r *Request, v string) (bool, bool) {
	if v == "" {
		return true, true
	}
	r.FSType = v
	return false, slices.Contains(FileSystems, v)
}

// number takes a whole number from lo to hi. The value def asks for nothing.
func number(lo, hi, def int64, to func(r *Request, n int64)) setter {
	return func(r *Request, v string) (bool, bool) {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < lo || n > hi {
			return false, false
		}
		if to != nil {
			to(r, n)
		}
		return n == def, true
	}
}

// boolean takes what Go's ParseBool takes. false asks for nothing.
func boolean(to func(r *Request, b bool)) setter {
	return func(r *Request, v string) (bool, bool) {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return false, false
		}
		if to != nil {
			to(r, b)
		}
		return !b, true
	}
}

// choice takes one of the values; those of idle ask for nothing.
func choice(values, idle []string) setter {
	return func(_ *Request, v string) (bool, bool) {
		return slices.Contains(idle, v), slices.Contains(values, v) || slices.Contains(idle, v)
	}
}

// text takes anything; "" asks for nothing.
func text(_ *Request, v string) (bool, bool) { return v == "", true }

// within takes a list of values of which the node must have one.
func within(key, separators string) setter {
	return func(r *Request, v string) (bool, bool) {
		list := words(v, separators)
		for _, x := range list {
			if spec.CheckLabels(key, map[string]string{key: x}) != nil {
				return false, false
			}
		}
		if len(list) > 0 {
			r.Within = append(r.Within, Constraint{key, list})
		}
		return len(list) == 0, true
	}
}

func words(v, separators string) []string {
	return slices.DeleteFunc(strings.FieldsFunc(v, func(c rune) bool { return strings.ContainsRune(separators, c) }), func(s string) bool {
		return strings.TrimSpace(s) == ""
	})
}

func setSelector(r *Request, v string) (bool, bool) {
	labels, err := spec.ParseLabels("nodeSelector", words(v, ", "))
	if err != nil {
		return false, false
	}
	r.NodeSelector = labels
	return len(labels) == 0, true
}

func setMountOptions(r *Request, v string) (bool, bool) {
	r.MountOptions = words(v, ", ")
	return len(r.MountOptions) == 0, true
}

func setCreateOptions(r *Request, v string) (bool, bool) {
	r.CreateOptions = strings.Fields(v)
	return len(r.CreateOptions) == 0, CheckCreateOptions(r.CreateOptions)
}

// CheckCreateOptions reports whether the words can be given to mkfs: it runs as root, and its options must not name
// another file or device than the volume's.
func CheckCreateOptions(words []string) bool {
	valueMayFollow := false
	for _, w := range words {
		option := strings.HasPrefix(w, "-")
		if strings.Contains(w, "/") || !option && !valueMayFollow || w == "-" || w == "--" {
			return false
		}
		valueMayFollow = option
	}
	return true
}

// bandwidth takes bytes a second, or a number with K, M or G (powers of 1024), a multiple of 512 in the range of limits; 0 is none, if it may be.
func bandwidth(name string, least int64) setter {
	to := limitTo(name)
	return func(r *Request, v string) (bool, bool) {
		num, unit := v, int64(1)
		for suffix, u := range map[string]int64{"K": 1 << 10, "M": 1 << 20, "G": 1 << 30} {
			if n, ok := strings.CutSuffix(v, suffix); ok {
				num, unit = n, u
			}
		}
		n, err := strconv.ParseInt(num, 10, 64)
		if err != nil || n < 0 || n > spec.MaxBandwidthLimit/unit {
			return false, false
		}
		n *= unit
		if n != 0 && n < spec.MinBandwidthLimit || n < least || n%512 != 0 {
			return false, false
		}
		*to(r) = n
		return n == 0, true
	}
}

var schedule = regexp.MustCompile(`^(periodic=\d+(,\d+)?|daily=\d{1,2}:\d{2}(,\d+)?|` +
	`weekly=(sunday|monday|tuesday|wednesday|thursday|friday|saturday)@\d{1,2}:\d{2}(,\d+)?|monthly=\d{1,2}@\d{1,2}:\d{2}(,\d+)?|policy=.+)$`)

func snapSchedule(r *Request, v string) (bool, bool) {
	var own []string
	list := words(v, ";")
	for _, s := range list {
		s = strings.ToLower(strings.TrimSpace(s))
		if !schedule.MatchString(s) {
			return false, false
		}
		if !strings.HasPrefix(s, "policy=") {
			own = append(own, s)
		}
	}
	return len(own) == len(list), addSchedule(r, own)
}

func snapInterval(r *Request, v string) (bool, bool) {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n != 0 && n < 60 {
		return false, false
	}
	return true, n == 0 || addSchedule(r, []string{"periodic=" + v})
}

// addSchedule reports whether Keelson takes snapshots at these times, and has it do so.
func addSchedule(r *Request, list []string) bool {
	if r.Schedule != "" {
		list = append([]string{r.Schedule}, list...)
	}
	text := strings.Join(list, ";")
	if _, err := spec.ParseSchedules("schedule", text, time.Time{}); err != nil {
		return false
	}
	r.Schedule = text
	return true
}

// labels takes k=v, separated by commas.
func labels(_ *Request, v string) (bool, bool) {
	list := words(v, ",")
	for _, s := range list {
		if k, _, ok := strings.Cut(s, "="); !ok || k == "" {
			return false, false
		}
	}
	return len(list) == 0, true
}
