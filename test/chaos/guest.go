package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// The kinds of guests.
const (
	kindNBD  = "nbd"  // a client of its own on the NBD socket
	kindRaw  = "raw"  // FUSE and loop, the device itself
	kindExt4 = "ext4" // FUSE and loop, a file system
	kindXFS  = "xfs"
	kindFio  = "fio" // FUSE and loop, fio with verification
)

// guest is a volume and whoever uses it. live owns everything but what mu guards.
type guest struct {
	r          *run
	name, kind string
	size       int64
	args       []string // of volume create
	copies     []string // the nodes that have one
	ledger     *ledger
	ledgerPath string

	moves chan move
	halts chan chan error

	mu      sync.Mutex
	node    string // where it is attached, or is going to be
	device  string
	running bool
	// excuse says why the application may see an error, since when; see run.excuse.
	excuse   string
	excused  time.Time
	lastFail error

	longest time.Duration // of one I/O; guarded by run.mu
}

// move asks a guest to go on elsewhere.
type move struct {
	target string
	// clean detaches first; otherwise the volume is taken from a node that can't be reached.
	clean bool
	done  chan struct{}
}

func (g *guest) frontend() string {
	if g.kind == kindNBD {
		return "nbd"
	}
	return "fuse"
}

func (g *guest) mounted() bool { return g.kind == kindExt4 || g.kind == kindXFS }

func (g *guest) mnt(node string) string { return filepath.Join(g.r.lab.NodeDir(node), "mnt-"+g.name) }

func (g *guest) where() (node, device string, running bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.node, g.device, g.running
}

func (g *guest) set(node, device string, running bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.node, g.device, g.running = node, device, running
	if running {
		g.lastFail = nil
		if time.Since(g.excused) > graceOfExcuse {
			g.excuse = ""
		}
	}
}

// graceOfExcuse: a fault that comes while a load begins is seen by that load.
const graceOfExcuse = 10 * time.Second

// allow says that the application may see an error now, and why.
func (g *guest) allow(why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.excuse, g.excused = why, time.Now()
}

func (g *guest) allowed() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.excuse
}

// live uses the volume until it is halted: it attaches it, starts the load, and begins anew on every error
// that the application was allowed to see.
func (g *guest) live(ctx context.Context, node string) {
	g.set(node, "", false)
	for {
		l, answer := g.begin(ctx)
		if answer != nil {
			answer <- nil
			return
		}
		if l == nil {
			return
		}
		again := g.use(ctx, l)
		if !again {
			return
		}
	}
}

// use waits for what happens to a load. It returns false when the guest was halted.
func (g *guest) use(ctx context.Context, l load) (again bool) {
	select {
	case <-l.done():
		g.ended(l.err())
		g.cleanUp(ctx)
		return true
	case m := <-g.moves:
		if m.target == g.node { // it has come there in between
			close(m.done)
			return g.use(ctx, l)
		}
		taken := true
		if m.clean {
			g.leave(ctx, l)
			g.set(m.target, "", false)
		} else {
			taken = g.flee(ctx, l, m.target)
		}
		close(m.done)
		return taken || g.use(ctx, l)
	case answer := <-g.halts:
		err := stopAndWait(ctx, l, 90*time.Second)
		if err != nil && g.allowed() != "" && !errors.Is(err, errWrong) {
			g.r.say("%s: while it was halted: %v", g.name, err)
			err = nil
		}
		g.set(g.node, g.device, false)
		answer <- err
		return false
	case <-ctx.Done():
		l.stop()
		return false
	}
}

// ended judges a load that ended by itself.
func (g *guest) ended(err error) {
	why := g.allowed()
	switch {
	case errors.Is(err, errWrong):
		g.r.violation("%s: %v", g.name, err)
	case g.kind == kindNBD && errors.Is(err, errConnection) && why != "", why != "":
		g.r.say("%s on %s: the application saw: %v (allowed: %s)", g.name, g.node, firstLine(err), why)
	default:
		g.r.violation("%s on %s: the application saw an error, and no fault explains it: %v", g.name, g.node, err)
	}
	g.set(g.node, "", false)
}

func firstLine(err error) string {
	s, _, _ := strings.Cut(fmt.Sprint(err), "\n")
	return s
}

// begin attaches the volume, and starts the load. It tries for as long as it takes; run.awaitAll notices if
// that is too long. It returns a channel if the guest was halted instead.
func (g *guest) begin(ctx context.Context) (load, chan error) {
	for {
		l, err := g.tryBegin(ctx)
		if err == nil {
			return l, nil
		}
		if errors.Is(err, errWrong) {
			g.r.violation("%s: %v", g.name, err)
		}
		g.mu.Lock()
		g.lastFail = err
		g.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, nil
		case m := <-g.moves:
			g.set(m.target, "", false)
			close(m.done)
		case answer := <-g.halts:
			return nil, answer
		case <-time.After(settle):
		}
	}
}

func (g *guest) tryBegin(ctx context.Context) (load, error) {
	node, _, _ := g.where()
	device, err := g.attach(ctx, node)
	if err != nil {
		return nil, err
	}
	l, err := g.start(ctx, node, device)
	if err != nil {
		g.cleanUp(ctx)
		return nil, err
	}
	g.set(node, device, true)
	return l, nil
}

// attach attaches the volume to a node; one that another node has although it lives is detached there first.
func (g *guest) attach(ctx context.Context, node string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	out, err := g.r.lab.Keelson(ctx, node, "volume", "attach", g.name, "--frontend", g.frontend(), "--wait", "20s")
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 4 && !g.r.calm.Load() {
		return "", err
	}
	if errors.As(err, &exit) && exit.ExitCode() == 4 {
		if _, derr := g.r.lab.Keelson(ctx, node, "volume", "detach", g.name); derr != nil {
			return "", errors.Join(err, derr)
		}
	}
	return strings.TrimSpace(out), err
}

func (g *guest) start(ctx context.Context, node, device string) (load, error) {
	switch g.kind {
	case kindNBD:
		_, socket, _ := strings.Cut(device, "?socket=")
		d, err := dialNBD(socket, g.name)
		if err != nil {
			return nil, err
		}
		return g.startRaw(d)
	case kindRaw:
		d, err := openDevice(device)
		if err != nil {
			return nil, err
		}
		return g.startRaw(d)
	case kindFio:
		return startFio(g.r, node, device)
	}
	if err := g.mount(ctx, node, device); err != nil {
		return nil, err
	}
	return startFiles(g.r, g, node, g.mnt(node))
}

func (g *guest) startRaw(d disk) (load, error) {
	l, err := startRaw(g.name, g.ledger, d, g.r.cfg.pace)
	if err != nil {
		d.Close()
		return nil, err
	}
	return l, nil
}

func (g *guest) mount(ctx context.Context, node, device string) error {
	mnt := g.mnt(node)
	if err := os.MkdirAll(mnt, 0o700); err != nil {
		return err
	}
	return g.r.shell(ctx, node, 60*time.Second, fmt.Sprintf("mountpoint -q %[2]s && umount -l %[2]s; mount %[1]s %[2]s", device, mnt))
}

// leave stops the load, and detaches the volume.
func (g *guest) leave(ctx context.Context, l load) {
	if err := stopAndWait(ctx, l, 90*time.Second); err != nil {
		g.ended(err)
	}
	g.set(g.node, g.device, false)
	if err := g.detach(ctx); err != nil {
		g.r.say("%s: detach before it moves: %v", g.name, err)
	}
}

func (g *guest) detach(ctx context.Context) error {
	if g.mounted() {
		if err := g.r.shell(ctx, g.node, 90*time.Second, fmt.Sprintf("mountpoint -q %[1]s || exit 0; umount %[1]s", g.mnt(g.node))); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	_, err := g.r.lab.Keelson(ctx, g.node, "volume", "detach", g.name)
	return err
}

// flee attaches the volume on another node while the old one, which can't be reached or is dead, still has
// it and writes. From then on no answer may come from there. It returns false if it wasn't taken before all was healed:
// then the old node keeps it, and its load goes on.
func (g *guest) flee(ctx context.Context, l load, target string) (taken bool) {
	began := time.Now()
	old := g.node
	for ctx.Err() == nil {
		_, err := g.attach(ctx, target)
		if err == nil {
			break
		}
		g.mu.Lock()
		g.lastFail = err
		g.mu.Unlock()
		if g.r.calm.Load() {
			g.r.say("%s: not taken by %s before all was healed: %v", g.name, target, firstLine(err))
			return false
		}
		time.Sleep(settle)
	}
	g.r.say("%s: attached on %s %.1f s after it was asked to leave %s", g.name, target, time.Since(began).Seconds(), old)
	g.r.failover(time.Since(began))
	if g.ledger != nil {
		g.ledger.nextEpoch()
	}
	l.abandon()
	g.r.ghosts.Go(func() { g.bury(l, old, target) })
	g.set(target, "", false)
	return true
}

// bury waits until the load on the node that lost the volume has ended, and lets go of the old mount.
func (g *guest) bury(l load, old, target string) {
	select {
	case <-l.done():
	case <-g.r.healed():
		select {
		case <-l.done():
		case <-time.After(90 * time.Second):
			g.r.violation("%s: whoever used it on %s hangs 90 s after everything was healed", g.name, old)
		}
	}
	if g.mounted() && old != target {
		_ = g.r.shell(context.Background(), old, 20*time.Second, "umount -l "+g.mnt(old))
	}
}

// cleanUp lets go of what the dead load left, so that a device which is gone can go.
func (g *guest) cleanUp(ctx context.Context) {
	if node, _, _ := g.where(); g.mounted() {
		_ = g.r.shell(ctx, node, 20*time.Second, "umount -l "+g.mnt(node))
	}
}

// halt stops the guest, and returns what was wrong.
func (g *guest) halt(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case g.halts <- answer:
	case <-ctx.Done():
		return ctx.Err()
	}
	return <-answer
}
