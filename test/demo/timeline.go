package main

import (
	"fmt"
	"io"
	"time"
)

// timeline prints what happens, when it began, and how long it took.
type timeline struct {
	w     io.Writer
	began time.Time
}

func newTimeline(w io.Writer) timeline {
	fmt.Fprintf(w, "%8s  %7s\n", "at", "took")
	return timeline{w: w, began: time.Now()}
}

func (t timeline) elapsed() time.Duration { return time.Since(t.began) }

// step does something and prints a line about it; do returns what there is to say of it.
func (t timeline) step(what string, do func() (string, error)) error {
	at := t.elapsed()
	note, err := do()
	took := t.elapsed() - at
	if err != nil {
		fmt.Fprintf(t.w, "%6.1f s  %5.1f s  %s: FAILED\n", at.Seconds(), took.Seconds(), what)
		return fmt.Errorf("%s: %w", what, err)
	}
	if note != "" {
		what += ": " + note
	}
	fmt.Fprintf(t.w, "%6.1f s  %5.1f s  %s\n", at.Seconds(), took.Seconds(), what)
	return nil
}

type task struct {
	what string
	do   func() (string, error)
}

// steps does one after the other, up to the first that fails.
func (t timeline) steps(tasks ...task) error {
	for _, k := range tasks {
		if err := t.step(k.what, k.do); err != nil {
			return err
		}
	}
	return nil
}

// say prints a line that is no step.
func (t timeline) say(format string, args ...any) {
	fmt.Fprintf(t.w, "%8s  %7s  "+format+"\n", append([]any{"", ""}, args...)...)
}
