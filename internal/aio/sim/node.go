package sim

import (
	"fmt"
	"time"
)

// Node is a machine: a disk, a clock, a place in the network, and at most one process.
type Node struct {
	w     *World
	index int
	name  string
	disk  *Disk
	loop  *Loop // of the running process, or nil
	on    bool  // the machine has power
	boot  int
	rate  float64       // how fast its clock runs, 1 is right
	epoch time.Duration // what its clock showed at time 0
}

// NewNode adds a machine that is switched on and runs nothing yet.
func (w *World) NewNode(name string) *Node {
	n := &Node{w: w, index: len(w.nodes), name: name, on: true, boot: 1, rate: 1, epoch: time.Hour}
	n.disk = newDisk(w, n)
	w.nodes = append(w.nodes, n)
	return n
}

// Name is the node's name.
func (n *Node) Name() string { return n.name }

// Loop is the loop of the running process; nil if there is none.
func (n *Node) Loop() *Loop { return n.loop }

// Disk is the machine's disk.
func (n *Node) Disk() *Disk { return n.disk }

// Boot counts how often the machine was switched on.
func (n *Node) Boot() int { return n.boot }

// SetClock makes the machine's clock run fast or slow by that many parts in a million.
func (n *Node) SetClock(ppm float64) {
	now := n.clock()
	n.rate = 1 + ppm/1e6
	n.epoch = now - time.Duration(float64(n.w.now)*n.rate)
}

func (n *Node) clock() time.Duration { return n.epoch + time.Duration(float64(n.w.now)*n.rate) }

// Start starts a process on the node (and switches the machine on).
func (n *Node) Start() *Loop {
	if n.loop != nil {
		panic(fmt.Sprintf("sim: node %s runs a process already", n.name))
	}
	if !n.on {
		n.on = true
		n.w.resume(n)
	}
	n.loop = newLoop(n)
	n.w.Tracef("%s: process started", n.name)
	return n.loop
}

// Crash kills the process. Its callbacks never run again. Each of its disk writes in
// flight happens, doesn't, or happens later. Its connections break.
func (n *Node) Crash() {
	l := n.loop
	if l == nil {
		return
	}
	n.w.Tracef("%s: process killed", n.name)
	n.kill(l)
	n.w.netKilled(l, true)
}

// PowerLoss kills the process and takes the machine's power: of what was not synced,
// any part may be lost. Peers are not told.
func (n *Node) PowerLoss() {
	n.w.Tracef("%s: power lost", n.name)
	l := n.loop
	if l != nil {
		n.kill(l)
		n.w.netKilled(l, false)
	}
	n.on = false
	n.boot++
	n.disk.powerLoss()
}

// Pause stops the process without killing it, as a debugger or a starved machine
// does: nothing of it runs until Resume. What it asked of disks and the network goes on.
func (n *Node) Pause() {
	if n.loop != nil {
		n.w.Tracef("%s: process paused", n.name)
		n.loop.paused = true
	}
}

// Resume lets a paused process go on.
func (n *Node) Resume() {
	l := n.loop
	if l == nil || !l.paused {
		return
	}
	n.w.Tracef("%s: process resumed", n.name)
	l.paused = false
	held := l.held
	l.held = nil
	for _, e := range held {
		n.w.schedule(0, l, e.what, e.fn)
	}
}

// On reports whether the machine has power.
func (n *Node) On() bool { return n.on }

// CrashInWork kills the process at one of its next FS calls, between two steps of what a
// function given to Work does.
func (n *Node) CrashInWork() {
	if n.loop != nil {
		n.loop.crashAt = 1 + n.w.rng.IntN(6)
	}
}

func (n *Node) kill(l *Loop) {
	l.dead = true
	n.loop = nil
	n.disk.orphan(l)
}
