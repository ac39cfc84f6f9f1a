package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/spec"
)

// progress shows how far a copy is: a bar on a terminal, otherwise a line now and then. Its methods may be called from any goroutine.
type progress struct {
	w        io.Writer
	what     string
	total    int64
	terminal bool

	mu    sync.Mutex
	began time.Time
	last  time.Time
	first int64 // where it began
	shown bool
}

// How often progress is shown on a terminal, and elsewhere.
const (
	barEvery  = 200 * time.Millisecond
	lineEvery = 10 * time.Second
)

func newProgress(w io.Writer, what string, total int64) *progress {
	p := &progress{w: w, what: what, total: total, began: time.Now(), last: time.Now(), first: -1}
	if f, ok := w.(*os.File); ok {
		_, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
		p.terminal = err == nil
	}
	return p
}

// say writes a line above the bar.
func (p *progress) say(text string) { fmt.Fprintln(p.w, text) }

// set tells how far it is, and how much of that was data.
func (p *progress) set(pos, data int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.first < 0 {
		p.first = pos
	}
	every := lineEvery
	if p.terminal {
		every = barEvery
	}
	if time.Since(p.last) < every {
		return
	}
	p.last = time.Now()
	p.show(pos, data)
}

func (p *progress) show(pos, data int64) {
	p.shown = true
	share := 1.0
	if p.total > 0 {
		share = float64(pos) / float64(p.total)
	}
	text := fmt.Sprintf("%s %3.0f%% of %s", p.what, 100*share, spec.FormatSize(p.total))
	if data > 0 {
		text += ", " + spec.FormatSize(data) + " of data"
	}
	if passed := time.Since(p.began); pos > p.first && passed > time.Second {
		left := time.Duration(float64(passed) / float64(pos-p.first) * float64(p.total-pos))
		text += ", " + left.Round(time.Second).String() + " left"
	}
	if !p.terminal {
		fmt.Fprintln(p.w, text)
		return
	}
	const width = 30
	full := int(share * width)
	fmt.Fprintf(p.w, "\r\x1b[K[%s%s] %s", strings.Repeat("#", full), strings.Repeat(" ", width-full), text)
}

// end leaves the line of the bar.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal && p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
