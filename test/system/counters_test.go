package system

import "keelson.io/keelson/test/enginestat"

// counter asks a node's engine for one of its counters.
func (c *cluster) counter(node, name string) int64 {
	c.T.Helper()
	all, err := enginestat.Counters(c.ctx(), c.Lab, node)
	if err != nil {
		c.T.Fatal(err)
	}
	n, ok := all[name]
	if !ok {
		c.T.Fatalf("%s has no counter %s: %v", node, name, all)
	}
	return n
}
