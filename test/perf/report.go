package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"
)

// A figure is one result, with what it must reach.
type figure struct {
	Name    string  `json:"name"`
	Cluster string  `json:"cluster"` // encrypted or plain
	Value   float64 `json:"value"`
	Floor   float64 `json:"floor"`
	Goal    float64 `json:"goal"`
	AtMost  bool    `json:"atMost,omitempty"` // less is better
	Detail  string  `json:"detail,omitempty"`
	Verdict string  `json:"verdict"` // goal, floor, or MISSED
}

// report collects figures and prints each as it comes.
type report struct {
	Version string    `json:"version"`
	Mode    string    `json:"mode"`
	Time    time.Time `json:"time"`
	Kernel  string    `json:"kernel"`
	CPUs    int       `json:"cpus"`
	Figures []figure  `json:"figures"`
}

func (r *report) note(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "  "+format+"\n", args...)
}

func (r *report) atLeast(name, cluster string, v float64, want target, detail string) {
	f := figure{Name: name, Cluster: cluster, Value: v, Floor: want.floor, Goal: want.goal, Detail: detail}
	f.judge(v >= want.goal, v >= want.floor)
	r.add(f)
}

func (r *report) atMost(name, cluster string, v float64, want target, detail string) {
	f := figure{Name: name, Cluster: cluster, Value: v, Floor: want.floor, Goal: want.goal, AtMost: true, Detail: detail}
	f.judge(v <= want.goal, v <= want.floor)
	r.add(f)
}

func (f *figure) judge(goal, floor bool) {
	switch {
	case goal:
		f.Verdict = "goal"
	case floor:
		f.Verdict = "floor"
	default:
		f.Verdict = "MISSED"
	}
}

func (r *report) add(f figure) {
	r.note("%s, %s: %.2f (%s) %s", f.Name, f.Cluster, f.Value, f.Verdict, f.Detail)
	r.Figures = append(r.Figures, f)
}

func (r *report) find(name, cluster string) *figure {
	for i := range r.Figures {
		if f := &r.Figures[i]; f.Name == name && f.Cluster == cluster {
			return f
		}
	}
	return nil
}

// print writes the table: encrypted and plain side by side, and the recorded baseline.
func (r *report) print(baseline *report) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FIGURE\tFLOOR\tGOAL\tENCRYPTED\tVERDICT\tPLAIN\tBASELINE\tDETAIL")
	for _, f := range r.Figures {
		if f.Cluster == "plain" {
			continue
		}
		plain, before := "", ""
		if p := r.find(f.Name, "plain"); p != nil {
			plain = fmt.Sprintf("%.2f", p.Value)
		}
		if baseline != nil {
			if p := baseline.find(f.Name, f.Cluster); p != nil {
				before = fmt.Sprintf("%.2f", p.Value)
			}
		}
		fmt.Fprintf(w, "%s\t%g\t%g\t%.2f\t%s\t%s\t%s\t%s\n", f.Name, f.Floor, f.Goal, f.Value, f.Verdict, plain, before, f.Detail)
	}
	w.Flush()
}

// missed lists the figures of the encrypted cluster below their floors.
func (r *report) missed() []string {
	var out []string
	for _, f := range r.Figures {
		if f.Verdict == "MISSED" && f.Cluster != "plain" {
			out = append(out, f.Name)
		}
	}
	return out
}

func (r *report) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func readReport(path string) (*report, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := &report{}
	return r, json.Unmarshal(b, r)
}
