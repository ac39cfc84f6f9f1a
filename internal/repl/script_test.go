package repl

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/spec"
)

var update = flag.Bool("update", false, "rewrite the expected traces")

// TestScripts runs the scenarios in testdata: events, each followed by the effects that the column asked for.
// Lines that begin with "> " are events, the rest is the expected trace.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.script")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".script"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runScript(t, string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(want) {
				t.Errorf("the trace differs from %s; run with -update and read the difference\n%s", file, got)
			}
		})
	}
}

func runScript(t *testing.T, text string) string {
	w := &world{t: t, ops: map[string]*Op{}, dead: map[string]bool{}}
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "#"), line == "":
			w.printf("%s", line)
		case strings.HasPrefix(line, "> "):
			w.printf("%s", line)
			w.event(strings.Fields(line[2:]))
		}
	}
	return w.out.String()
}

// world runs the effects of one column by writing them down.
type world struct {
	t       *testing.T
	c       *Column
	now     time.Duration
	out     strings.Builder
	ops     map[string]*Op
	dead    map[string]bool
	session [MaxMembers]uint32
	flushes int
}

func (w *world) printf(format string, args ...any) { fmt.Fprintf(&w.out, format+"\n", args...) }

func (w *world) slot(name string) int {
	m := w.c.Slot(name)
	if m < 0 {
		w.t.Fatalf("no member %q", name)
	}
	return m
}

func (w *world) name(m int) string { return w.c.members[m].Replica }

func (w *world) opName(op *Op) string {
	for n, o := range w.ops {
		if o == op {
			return n
		}
	}
	return "?"
}

func (w *world) names(mask uint32) string {
	var list []string
	for m := range w.c.members {
		if mask&(1<<m) != 0 {
			list = append(list, w.name(m))
		}
	}
	return strings.Join(list, ",")
}

func (w *world) Fence(m int, s uint32, _ uint64) {
	w.session[m] = s
	w.printf("fence %s session=%d", w.name(m), s)
}
func (w *world) Send(m int, op *Op, s uint32) {
	w.printf("send %s -> %s session=%d", w.opName(op), w.name(m), s)
}
func (w *world) Complete(op *Op) {
	still := ""
	if op.Abandoned() != 0 {
		still = " still at " + w.names(op.Abandoned())
	}
	w.printf("complete %s failed=%v%s", w.opName(op), op.Failed, still)
}
func (w *world) Flush(p Purpose, mask uint32) {
	w.flushes++
	name := fmt.Sprintf("flush%d", w.flushes)
	w.printf("flush %s purpose=%d members=%s", name, p, w.names(mask))
	op := &Op{}
	w.ops[name] = op
	w.c.BeginFlush(op, p, mask, w.now)
}
func (w *world) Commit(c Change) {
	var list []string
	for _, m := range c.Members {
		list = append(list, strings.TrimSuffix(fmt.Sprintf("%s=%s/%s", m.Replica, m.State, m.Run), "/"))
	}
	w.printf("commit attach=%v %s", c.Attach, strings.Join(list, " "))
}
func (w *world) Serve()        { w.printf("serve") }
func (w *world) CatchUp(m int) { w.printf("catch up %s", w.name(m)) }
func (w *world) Dropped(m int) { w.printf("dropped %s", w.name(m)) }
func (w *world) Stop(err error) {
	w.printf("stop: %v", err)
}

// event runs one line. Words: new, up, down, start, fence, commit, begin, flush, done, tick, reconciled,
// unrecorded, caughtup, failed, close, dead, members, silence, roles, readable.
func (w *world) event(f []string) {
	arg := map[string]string{}
	for _, a := range f[1:] {
		if k, v, ok := strings.Cut(a, "="); ok {
			arg[k] = v
		}
	}
	switch f[0] {
	case "new":
		w.create(f[1:], arg)
	case "start":
		w.c.Start(w.now)
	case "up":
		w.c.LinkUp(w.slot(f[1]), w.now)
	case "down":
		w.c.LinkDown(w.slot(f[1]), w.now)
	case "dead":
		w.dead[f[1]] = true
	case "fence":
		m := w.slot(f[1])
		w.c.FenceDone(m, w.session[m], resultOf(f[2]), answerOf(w.t, arg), w.now)
	case "commit":
		var err error
		if f[1] == "lost" {
			err = ErrLost
		}
		w.c.Committed(err, w.now)
	case "unrecorded":
		w.c.Unrecorded(f[1])
	case "begin", "flush":
		op := &Op{}
		w.ops[f[1]] = op
		mask := w.c.Everyone()
		if f[0] == "flush" {
			mask = w.c.Required()
		}
		w.c.Begin(op, mask, w.now)
	case "done":
		op, m := w.ops[f[2]], w.slot(f[1])
		s := op.session[m]
		w.c.Done(m, op, s, resultOf(f[3]), w.now)
	case "tick":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			w.t.Fatal(err)
		}
		w.now += d
		w.c.Tick(w.now)
	case "reconciled":
		w.c.Reconciled(w.now)
	case "caughtup":
		w.c.CaughtUp(w.slot(f[1]), w.now)
	case "failed":
		w.c.CatchUpFailed(w.slot(f[1]), w.now)
	case "close":
		w.c.Close(w.now)
	case "members":
		var replicas int
		fmt.Sscan(arg["replicas"], &replicas)
		w.c.UpdateMembers(membersOf(f[1:]), replicas, w.now)
	case "silence": // so much later: whoever has owed an answer for more than 10 s
		d, err := time.ParseDuration(f[1])
		if err != nil {
			w.t.Fatal(err)
		}
		w.now += d
		w.c.CheckSilence(w.now, 0, 10*time.Second, &[MaxMembers]time.Duration{})
	case "roles":
		for m := range w.c.members {
			if mb := w.c.Member(m); mb != nil {
				w.printf("%s %s open=%v", mb.Replica, mb.Role, mb.Open)
			}
		}
	case "readable":
		w.printf("readable=%v condition=%q", w.now < w.c.ReadableUntil(), w.c.Condition(w.now))
	default:
		w.t.Fatalf("unknown event %q", f[0])
	}
}

func (w *world) create(f []string, arg map[string]string) {
	cfg := Config{Prev: PrevOther, Members: membersOf(f), Alive: func(n string) bool { return !w.dead[n] }}
	fmt.Sscan(arg["term"], &cfg.Term)
	fmt.Sscan(arg["fenced"], &cfg.Fenced)
	switch arg["prev"] {
	case "detached":
		cfg.Prev = PrevDetached
	case "own":
		cfg.Prev = PrevOwnDead
	}
	w.now = 100 * time.Second
	w.c = New(cfg, w)
}

// membersOf reads members written name:node:state[:run].
func membersOf(f []string) (list []spec.Member) {
	for _, a := range f {
		if p := strings.Split(a, ":"); len(p) >= 3 {
			m := spec.Member{Replica: p[0], Node: p[1], Pool: "pool-" + p[0], State: spec.MemberState(p[2])}
			if len(p) > 3 {
				m.Run = p[3]
			}
			m.Removing = len(p) > 4 && p[4] == "removing"
			list = append(list, m)
		}
	}
	return list
}

func resultOf(s string) Result {
	return map[string]Result{"ok": OK, "lost": Lost, "fenced": Fenced, "oldsession": OldSess, "nospace": NoSpace, "failed": Failed}[s]
}

func answerOf(t *testing.T, arg map[string]string) FenceAnswer {
	a := FenceAnswer{Run: arg["run"], SinceConfirm: -1, Exact: true}
	fmt.Sscan(arg["prev"], &a.PrevFence)
	fmt.Sscan(arg["checkpoint"], &a.Checkpoint)
	if s := arg["since"]; s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		a.SinceConfirm = d
	}
	return a
}

func TestErrorsAreDistinct(t *testing.T) {
	if errors.Is(ErrLost, ErrRunLost) {
		t.Fatal("two reasons to stop are one")
	}
}
