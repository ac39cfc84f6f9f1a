package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"time"
)

// load is what a guest does with its volume.
type load interface {
	done() <-chan struct{} // closed when it has ended
	err() error            // then: why; nil if it was told to stop
	stop()                 // finish what is in flight, and end
	abandon()              // end although the device may not answer
}

// processLoad is a load that runs on the node, and dies with it.
type processLoad struct {
	cancel context.CancelFunc
	input  io.Closer
	ended  chan struct{}
	failed error // set before ended is closed
	quit   atomic.Bool
}

func (p *processLoad) done() <-chan struct{} { return p.ended }
func (p *processLoad) err() error            { return p.failed }

func (p *processLoad) stop() {
	p.quit.Store(true)
	if p.input != nil {
		p.input.Close()
	}
}

func (p *processLoad) abandon() {
	p.quit.Store(true)
	p.cancel()
}

// startFiles runs writeFiles on the node, and returns when it has found all files as they must be.
func startFiles(r *run, g *guest, node, mnt string) (*processLoad, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	epoch := g.ledger.nextEpoch()
	ctx, cancel := context.WithCancel(context.Background())
	cmd, err := r.lab.Command(ctx, node, self, g.name, g.ledgerPath, mnt, fmt.Sprint(epoch), r.cfg.pace.String())
	if err != nil {
		cancel()
		return nil, err
	}
	cmd.Env = append(cmd.Env, writerEnv+"=1")
	var msg bytes.Buffer
	cmd.Stderr = &msg
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		cancel()
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	p := &processLoad{cancel: cancel, input: in, ended: make(chan struct{})}
	ready, _ := bufio.NewReader(out).ReadString('\n')
	go func() {
		defer cancel()
		p.failed = filesEnded(cmd.Wait(), msg.String())
		close(p.ended)
	}()
	if ready == "ready\n" {
		return p, nil
	}
	<-p.ended
	if p.failed == nil {
		p.failed = errors.New("the writer ended before it was ready")
	}
	return nil, p.failed
}

func filesEnded(err error, msg string) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() == exitWrong:
		return fmt.Errorf("%w: %s", errWrong, strings.TrimSpace(msg))
	}
	return fmt.Errorf("the writer on the file system: %w: %s", err, strings.TrimSpace(msg))
}

// startFio runs fio on the node again and again, each time to write and then to verify.
func startFio(r *run, node, device string) (*processLoad, error) {
	ctx, cancel := context.WithCancel(context.Background())
	p := &processLoad{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer cancel()
		for !p.quit.Load() && p.failed == nil {
			p.failed = fioOnce(ctx, r, node, device)
		}
		if p.quit.Load() && ctx.Err() != nil {
			p.failed = nil
		}
		close(p.ended)
	}()
	return p, nil
}

func fioOnce(ctx context.Context, r *run, node, device string) error {
	cmd, err := r.lab.Command(ctx, node, "fio", "--name=verify", "--filename="+device, "--direct=1", "--rw=randwrite", "--bs=4k-32k",
		"--size=12M", "--offset="+fmt.Sprint(r.fioRuns.Add(1)%4*12)+"M", "--ioengine=libaio", "--iodepth=4", "--rate_iops=150", "--verify=crc32c", "--verify_state_save=0",
		"--verify_fatal=1", "--do_verify=1", "--randrepeat=0", "--output-format=terse")
	if err != nil {
		return err
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	if err == nil {
		r.fioVerified.Add(1)
		return nil
	}
	var lines []string
	wrong := false
	for _, line := range strings.Split(out.String(), "\n") {
		if strings.HasPrefix(line, "verify:") || strings.Contains(line, "verify failed") {
			wrong = true
		}
		if !strings.HasPrefix(line, "3;") && line != "" {
			lines = append(lines, line)
		}
	}
	said := strings.Join(lines[max(0, len(lines)-4):], "; ")
	if wrong {
		return fmt.Errorf("%w: fio: %s", errWrong, said)
	}
	return fmt.Errorf("fio: %w: %s", err, said)
}

// settle is how often something is looked at that takes a moment.
const settle = 200 * time.Millisecond
