package system

import "keelson.io/keelson/test/enginestat"

// counter asks a node's engine for one of its counters.
func (c *cluster) counter(node, name string) int64 {
	c.t.Helper()
	all, err := enginestat.Counters(c.ctx(), c.Lab, node)
	if err != nil {
		c.t.Fatal(err)
	}
	n, ok := all[name]
	if !ok {
		c.t.Fatalf("%s has no counter %s: %v", node, name, all)
	}
	return n
}
