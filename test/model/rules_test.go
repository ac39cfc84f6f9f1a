//go:build mutant

package model_test

import (
	"flag"
	"testing"

	"keelson.io/keelson/internal/invariant"
)

var rule = flag.String("rule", "", "take only this rule out, and look for a counterexample in every configuration")

// rules are rules of the protocol, by the name of the mistake that takes each out, and the configuration that shows that
// it is needed.
var rules = []struct{ mistake, config string }{
	{"old-term-writes", "attach"},
	{"silent-stay-in-sync", "attach"},
	{"serve-before-record", "attach"},
	{"no-reconcile", "attach"},
	{"no-journal", "attach"},
	{"fence-without-drain", "drain"},
	{"no-drain", "drain"},
	{"fence-not-durable", "restart"},
	{"other-run-chosen", "crash"},
	{"any-run-suffices", "crash"},
	{"run-not-compared", "crash"},
	{"restart-not-noticed", "crash"},
	{"answered-before-loss-recorded", "reattach"},
	{"reconcile-without-leaving", "reattach"},
	{"no-range-lock", "session"},
	{"no-barrier", "loss"},
	{"resync-ignores-journal", "loss"},
	{"resync-ignores-gens", "loss"},
	{"no-promote-flush", "loss"},
	{"no-hold-at-loss", "flush"},
	{"no-loss-flush", "flush"},
	{"journal-keyed-by-chunk", "checkpoint"},
	{"unlock-before-answer", "takeover"},
	{"others-before-resent", "takeover"},
	{"resent-in-any-term", "takeover"},
}

// TestRules takes every rule out in turn: the search must find a counterexample. Run it with make model-rules.
func TestRules(t *testing.T) {
	defer invariant.Plant("")
	if *rule != "" {
		tryRule(t, *rule)
		return
	}
	for _, r := range rules {
		t.Run(r.mistake, func(t *testing.T) {
			cfg := configNamed(t, r.config)
			invariant.Plant(r.mistake)
			f := explore(cfg, *limit)
			if f.bad == "" {
				t.Fatalf("no counterexample in configuration %s: %s", cfg.name, f)
			}
			t.Logf("configuration %s, after %s, %d steps are left: %s\n%s", cfg.name, f, len(f.trace), f.bad, explain(cfg, f.trace))
		})
	}
}

func tryRule(t *testing.T, mistake string) {
	invariant.Plant(mistake)
	for _, cfg := range configs {
		f := explore(cfg, *limit)
		if f.bad != "" {
			t.Logf("configuration %s, after %s, %d steps are left: %s\n%s", cfg.name, f, len(f.trace), f.bad, explain(cfg, f.trace))
			return
		}
		t.Logf("nothing in configuration %s: %s", cfg.name, f)
	}
	t.Error("no configuration has a counterexample")
}

func configNamed(t *testing.T, name string) *config {
	t.Helper()
	for _, cfg := range configs {
		if cfg.name == name {
			return cfg
		}
	}
	t.Fatalf("no configuration %q", name)
	return nil
}
