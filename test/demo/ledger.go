package main

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"keelson.io/keelson/internal/lab"
	"keelson.io/keelson/test/pgnode"
)

const ledgerSchema = `CREATE TABLE ledger (client text, seq bigint, value bigint, PRIMARY KEY (client, seq))`

// runClient writes rows, each in a transaction of its own, until ctx ends or the database is lost. A row
// goes into the ledger, a file that is not on the volume, once its commit was answered:
// what stands there must never be missing.
func runClient(ctx context.Context, ledger, url string) error {
	f, err := os.OpenFile(ledger, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	db, err := sql.Open("postgres", url)
	if err != nil {
		return err
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	name := filepath.Base(ledger)
	for seq := 1; ctx.Err() == nil; seq++ {
		value := rand.Int64()
		if _, err := conn.ExecContext(ctx, "INSERT INTO ledger VALUES ($1, $2, $3)", name, seq, value); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(f, "%s %d %d\n", name, seq, value); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// clients are all that write to the database: some on the database's own node, which goes on when
// the node is cut off, some outside, and pgbench.
type clients struct {
	remote, local int
	cancel        context.CancelFunc
	procs         []*exec.Cmd
}

func startClients(ctx context.Context, l *lab.Lab, pg *pgnode.Server, dir string) (*clients, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &clients{remote: 4, local: 2, cancel: cancel}
	for i := range c.remote {
		cmd := exec.CommandContext(ctx, self, "-client", filepath.Join(dir, fmt.Sprintf("remote%d", i)), "-url", pg.URL())
		c.procs = append(c.procs, cmd)
	}
	commands := [][]string{{"sh", "-c", "exec " + pg.Pgbench("-c", "4", "-T", "3600")}}
	for i := range c.local {
		url := fmt.Sprintf("host=%s user=postgres dbname=postgres sslmode=disable", pg.Dir)
		commands = append(commands, []string{self, "-client", filepath.Join(dir, fmt.Sprintf("local%d", i)), "-url", url})
	}
	for _, argv := range commands {
		cmd, err := l.Command(ctx, pg.Node, argv...)
		if err != nil {
			c.stop()
			return c, err
		}
		c.procs = append(c.procs, cmd)
	}
	for _, cmd := range c.procs {
		if err := cmd.Start(); err != nil {
			c.stop()
			return c, err
		}
	}
	return c, nil
}

func (c *clients) describe() string {
	return fmt.Sprintf("pgbench with 4 connections, %d clients that keep a ledger on the node and %d outside", c.local, c.remote)
}

// stop kills the clients and waits until they are gone.
func (c *clients) stop() {
	c.cancel()
	for _, cmd := range c.procs {
		if cmd.Process != nil {
			_ = cmd.Wait()
		}
	}
	c.procs = nil
}

// ledgers reads all ledgers: "client seq" to value.
func ledgers(dir string) (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return nil, err
	}
	rows := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(bytes.NewReader(b))
		for lines.Scan() {
			client, rest, _ := strings.Cut(lines.Text(), " ")
			seq, value, ok := strings.Cut(rest, " ")
			if !ok {
				return nil, fmt.Errorf("%s: %q is no line of a ledger", f, lines.Text())
			}
			rows[client+" "+seq] = value
		}
	}
	return rows, nil
}

func countLedgers(dir string) (int, error) {
	rows, err := ledgers(dir)
	return len(rows), err
}

// audit looks for every row of the ledgers in the table. The table may have more: rows whose commit was
// done but whose client never heard of it.
func audit(ctx context.Context, p *pgnode.Server, dir string) (int, error) {
	want, err := ledgers(dir)
	if err != nil {
		return 0, err
	}
	total := len(want)
	var wrong []string
	err = p.Query(ctx, func(ctx context.Context, db *sql.DB) error {
		rows, err := db.QueryContext(ctx, "SELECT client || ' ' || seq, value::text FROM ledger")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var key, value string
			if err := rows.Scan(&key, &value); err != nil {
				return err
			}
			if w, ok := want[key]; ok && w != value {
				wrong = append(wrong, fmt.Sprintf("%s is %s, the client wrote %s", key, value, w))
			}
			delete(want, key)
		}
		return rows.Err()
	})
	if err != nil {
		return total, err
	}
	for key := range want {
		wrong = append(wrong, key+" is missing")
	}
	if len(wrong) > 0 {
		return total, fmt.Errorf("LOST: %d of %d committed rows: %s", len(wrong), total, strings.Join(wrong[:min(5, len(wrong))], "; "))
	}
	if total == 0 {
		return 0, errors.New("the ledgers are empty: nothing was shown")
	}
	return total, nil
}

// settle is how often something is looked at that takes a moment.
const settle = 100 * time.Millisecond
