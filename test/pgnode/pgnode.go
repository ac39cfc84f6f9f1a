// Package pgnode runs PostgreSQL on a node of a lab, on a file system on a block device: for the demo and
// the benchmark. It needs Debian's postgresql-15, and starts no goroutine.
package pgnode

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	_ "github.com/lib/pq"

	"keelson.io/keelson/internal/lab"
)

// serverPrograms is where Debian keeps the programs that only a server's host needs.
const serverPrograms = "/usr/lib/postgresql/15/bin/"

// Server is PostgreSQL on one node of the lab, on a file system on the volume.
type Server struct {
	Lab    *lab.Lab
	Node   string
	Device string // what Mount mounts
	Dir    string // of mount point, log and socket; in the node's directory
}

// New returns the server of a node; nothing runs yet.
func New(l *lab.Lab, node string) *Server {
	return &Server{Lab: l, Node: node, Dir: filepath.Join(l.NodeDir(node), "pg")}
}

// Mnt is the mount point.
func (p *Server) Mnt() string  { return filepath.Join(p.Dir, "mnt") }
func (p *Server) data() string { return filepath.Join(p.Mnt(), "data") }
func (p *Server) log() string  { return filepath.Join(p.Dir, "postgres.log") }

// Shell runs a line of shell on the node, as root.
func (p *Server) Shell(ctx context.Context, line string) error {
	cmd, err := p.Lab.Command(ctx, p.Node, "sh", "-c", line)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("on %s: %s: %w: %s", p.Node, line, err, lastLines(out.String(), 8))
	}
	return nil
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// as runs a program of PostgreSQL as its user.
func as(program string, args ...string) string {
	return "runuser -u postgres -- " + serverPrograms + program + " " + strings.Join(args, " ")
}

// Mount mounts the device, for PostgreSQL to write to.
func (p *Server) Mount(ctx context.Context) error {
	if err := os.MkdirAll(p.Mnt(), 0o755); err != nil {
		return err
	}
	return p.Shell(ctx, fmt.Sprintf("mount %s %s && chown postgres: %s %s", p.Device, p.Mnt(), p.Dir, p.Mnt()))
}

// Unmount undoes Mount.
func (p *Server) Unmount(ctx context.Context) error { return p.Shell(ctx, "umount "+p.Mnt()) }

// InitDB makes an empty database cluster that the lab's network may use.
func (p *Server) InitDB(ctx context.Context) error {
	if err := p.Shell(ctx, as("initdb", "-A", "trust", "-D", p.data())); err != nil {
		return err
	}
	hba, conf := filepath.Join(p.data(), "pg_hba.conf"), filepath.Join(p.data(), "postgresql.conf")
	return p.Shell(ctx, fmt.Sprintf("echo host all all samenet trust >>%[1]s && echo \"listen_addresses = '*'\" >>%[2]s && sync %[1]s %[2]s", hba, conf))
}

// Start starts PostgreSQL, which answers when this returns. Only the volume's fence makes it right to
// remove the lock file of the server on the other node, and not to ask whether that still runs.
func (p *Server) Start(ctx context.Context) error {
	err := p.Shell(ctx, fmt.Sprintf("rm -f %s/postmaster.pid; ", p.data())+
		as("pg_ctl", "-D", p.data(), "-l", p.log(), "-w", "-t", "60", "-o", "'-k "+p.Dir+"'", "start", ">/dev/null"))
	if err != nil {
		if log, rerr := os.ReadFile(p.log()); rerr == nil {
			err = fmt.Errorf("%w\n%s", err, lastLines(string(log), 10))
		}
	}
	return err
}

// Stop ends PostgreSQL without ceremony.
func (p *Server) Stop(ctx context.Context) {
	_ = p.Shell(ctx, as("pg_ctl", "-D", p.data(), "-m", "fast", "-t", "20", "stop", ">/dev/null"))
}

// Kill kills PostgreSQL and all that it started: on a file system that fails it can't end in
// order.
func (p *Server) Kill(ctx context.Context) {
	_ = p.Shell(ctx, "fuser -k -KILL -m "+p.Mnt()+" >/dev/null 2>&1")
}

// Pgbench returns a command line for the node's shell.
func (p *Server) Pgbench(args ...string) string {
	return as("pgbench", append([]string{"-h", p.Dir, "-n"}, append(args, "postgres", ">/dev/null")...)...)
}

// URL returns where the database answers, on the lab's network.
func (p *Server) URL() string {
	return fmt.Sprintf("host=%s port=5432 user=postgres dbname=postgres sslmode=disable connect_timeout=2", p.Lab.Address(p.Node))
}

// Query runs fn with a connection from outside the node.
func (p *Server) Query(ctx context.Context, fn func(ctx context.Context, db *sql.DB) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	db, err := sql.Open("postgres", p.URL())
	if err != nil {
		return err
	}
	defer db.Close()
	if err := fn(ctx, db); err != nil {
		return fmt.Errorf("PostgreSQL on %s: %w", p.Node, err)
	}
	return nil
}

// Exec runs a statement.
func (p *Server) Exec(ctx context.Context, statement string) error {
	return p.Query(ctx, func(ctx context.Context, db *sql.DB) error {
		_, err := db.ExecContext(ctx, statement)
		return err
	})
}

// Count counts rows, in a transaction that is committed.
func (p *Server) Count(ctx context.Context, table string) (int, error) {
	var n int
	err := p.Query(ctx, func(ctx context.Context, db *sql.DB) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM "+table).Scan(&n); err != nil {
			return err
		}
		return tx.Commit()
	})
	return n, err
}

// Balance checks what holds after any number of whole pgbench transactions, and after no half one.
func (p *Server) Balance(ctx context.Context) (string, error) {
	var accounts, tellers, branches, history, n int64
	err := p.Query(ctx, func(ctx context.Context, db *sql.DB) error {
		return db.QueryRowContext(ctx, `SELECT
			(SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
			(SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history),
			(SELECT count(*) FROM pgbench_history)`).Scan(&accounts, &tellers, &branches, &history, &n)
	})
	if err == nil && (accounts != tellers || accounts != branches || accounts != history) {
		err = fmt.Errorf("accounts %d, tellers %d, branches %d, history %d: they differ", accounts, tellers, branches, history)
	}
	return fmt.Sprintf("%d transactions, %d in every book", n, accounts), err
}
