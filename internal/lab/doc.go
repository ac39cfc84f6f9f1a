// Package lab runs a cluster of real daemons on one Linux machine: for tests, for the demo, and
// for people who try Keelson on a laptop.
//
// Every node has a network namespace with an address of its own on a bridge of the lab, a
// PID, mount, host name and IPC namespace, a data and a run directory, and a pool in a file.
// A small process, the node's keeper, is the first one in these namespaces and starts the
// daemon as an init system would. Killing the keeper is the crash of the node: the
// kernel ends all its processes and drops its mounts. The page cache is the host's, so a
// crash is no loss of power. Loop devices are the host's too; the lab detaches those of a
// node that is gone.
//
// What exists is recorded in DIR/lab.json before it is made, PIDs at once after with the time
// they began, so that no stranger is killed; names of namespaces and interfaces follow from the
// lab's name. So Down removes everything after a crash at any point, and can be repeated.
//
// Invariants: nothing outside DIR, /run/netns/keelson-NAME-*, interfaces named after
// the lab, and loop devices over files of the lab is made or removed. All functions need
// root. No goroutine outlives a call; a Lab isn't for concurrent use by several goroutines, save for
// Command, Address and NodeDir.
package lab
