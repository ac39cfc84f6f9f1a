package model_test

import (
	"flag"
	"testing"
)

var (
	full     = flag.Bool("full", false, "explore every configuration, not only the short ones")
	only     = flag.String("only", "", "explore only the configuration of this name")
	steplist = flag.Bool("steps", false, "print how often each kind of step was taken")
	limit    = flag.Int("limit", 0, "give up a configuration after so many states; 0 is never")
)

var configs = []*config{
	{name: "attach", about: "two coordinators attach at once; every message is a step of its own", members: 2, short: true, oneBlock: true,
		budget: budget{attach: 2, write: 1}},
	{name: "lease", about: "the lease expires under a holder that lives; three members", members: 3, short: true, served: true, oneBlock: true,
		budget: budget{attach: 1, write: 1}},
	{name: "reattach", about: "and again, with cuts", members: 2, oneBlock: true, prompt: true,
		budget: budget{attach: 2, write: 1, cut: 1}},
	{name: "lease-chunks", about: "the same with a block in each of two chunks", members: 3, served: true, prompt: true,
		budget: budget{attach: 1, write: 2}},
	{name: "lease-cut", about: "the same with a cut, and one block", members: 3, served: true, prompt: true, oneBlock: true,
		budget: budget{attach: 1, write: 1, cut: 1}},
	{name: "restart", about: "an engine with a member is killed meanwhile", members: 3, served: true, oneBlock: true, prompt: true, short: true,
		budget: budget{attach: 1, write: 1, kill: 1}},
	{name: "drain", about: "slow disks; an engine is killed", members: 2, served: true, oneBlock: true, prompt: true, slow: true, short: true,
		budget: budget{attach: 1, write: 1, kill: 1}},
	{name: "session", about: "slow disks; a session is lost and repaired", members: 2, served: true, oneBlock: true, slow: true, prompt: true,
		budget: budget{write: 2, cut: 2}},
	{name: "crash", about: "a machine crashes, and the holder changes", members: 2, served: true, oneBlock: true, prompt: true,
		budget: budget{attach: 1, write: 1, crash: 1}},
	{name: "loss", about: "a member is lost and comes back, and the holder changes", members: 2, served: true, oneBlock: true, prompt: true,
		budget: budget{attach: 1, write: 2, cut: 1, crash: 1, rejoin: 1}},
	{name: "rejoin", about: "the same with three members", members: 3, served: true, oneBlock: true, prompt: true, oldFirst: true,
		budget: budget{attach: 1, write: 1, crash: 1, rejoin: 1}},
	{name: "chunks", about: "two blocks in different chunks, two members", members: 2, served: true, prompt: true, oldFirst: true,
		budget: budget{attach: 1, write: 2, crash: 1, rejoin: 1}},
	{name: "chunks3", about: "and three", members: 3, served: true, prompt: true, oldFirst: true,
		budget: budget{attach: 1, write: 2}},
	{name: "flush", about: "flushes, and both machines crash", members: 2, served: true, oneBlock: true, prompt: true, oldFirst: true,
		budget: budget{attach: 1, write: 2, flush: 1, crash: 2}},
	{name: "checkpoint", about: "a checkpoint in its steps, a crash, a rejoin", members: 2, served: true, oneBlock: true, prompt: true, oldFirst: true, slow: true,
		budget: budget{attach: 1, write: 2, ckpt: 1, crash: 1, rejoin: 1}},
	{name: "takeover", about: "an engine is killed, the next one executes what the kernel resends", members: 2, served: true, oneBlock: true, prompt: true, late: true,
		budget: budget{attach: 2, write: 2, kill: 1}},
}

// TestModel visits every state of every configuration; without -full only of the short ones.
func TestModel(t *testing.T) {
	total := 0
	for _, cfg := range configs {
		if *only != "" && cfg.name != *only || *only == "" && !cfg.short && !*full {
			continue
		}
		t.Run(cfg.name, func(t *testing.T) {
			f := explore(cfg, *limit)
			total += f.states
			t.Logf("%-12s %s (%s)", cfg.name, f, cfg.about)
			if *steplist {
				for k, n := range f.kinds {
					t.Logf("%10d %s", n, action{k: step(k)})
				}
			}
			switch {
			case f.bad != "":
				t.Errorf("violated: %s\n%s", f.bad, explain(cfg, f.trace))
			case f.capped:
				t.Errorf("given up: not every state was seen")
			}
		})
	}
	t.Logf("%d states in all", total)
}
