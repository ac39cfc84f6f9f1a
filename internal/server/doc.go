// Package server makes a node of the parts: it reads the configuration, prepares the
// data directory (a new cluster, or joining one), supervises the child processes, and
// wires the metadata, the engine, the API and the reconcilers together in them.
//
// One process each: the supervisor (Supervise) starts, in order, the children etcd
// (RunEtcd), engine (RunEngine) and control (RunControl), restarts them when they die, and
// stops them in the reverse order. It keeps the descriptors of the block frontends
// (package fdstore), so that no child's death detaches a device, and does no work that can fail:
// what can is done by the children, first of all by the one-shot child `prepare`.
//
// Invariants: a data directory belongs to one node of one cluster for ever (state file);
// every step of the first start can be repeated.
//
// Goroutines: each Run function owns those that it starts and returns when all have ended.
package server
