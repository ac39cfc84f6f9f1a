package main

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"sync"
	"time"

	"github.com/lib/pq"
)

// commit is a transaction whose commit was answered.
type commit struct {
	client string
	seq    int
	at     time.Time
	node   string // where the database was that answered
}

// ledger is what was committed, kept outside of the database: what stands here must never be missing there.
type ledger struct {
	mu   sync.Mutex
	rows []commit
	last error // of a client
}

func (l *ledger) failed(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = err
}

func (l *ledger) lastError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

func (l *ledger) add(c commit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rows = append(l.rows, c)
}

func (l *ledger) all() []commit {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]commit(nil), l.rows...)
}

// firstOn returns the first transaction after a time that a database on another node answered.
func (l *ledger) firstNotOn(node string, after time.Time) (commit, bool) {
	for _, c := range l.all() {
		if c.at.After(after) && c.node != node {
			return c, true
		}
	}
	return commit{}, false
}

// place is where the database answers at the moment.
type place func() (ip, node string, err error)

// writeRemote writes a row after another, each in a transaction of its own, and looks for the database anew when it is lost, until ctx ends.
func (l *ledger) writeRemote(ctx context.Context, client string, where place) {
	for seq := 1; ctx.Err() == nil; {
		ip, node, err := where()
		if err == nil {
			seq, err = l.session(ctx, client, ip, node, seq)
		}
		if err != nil {
			l.failed(fmt.Errorf("%s on %s: %w", ip, node, err))
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// answerLimit is how long a statement may take before the database counts as lost; a checkpoint on this machine takes less.
const answerLimit = 2 * time.Second

func (l *ledger) session(ctx context.Context, client, ip, node string, seq int) (int, error) {
	connector, err := pq.NewConnector(postgresURL(ip))
	if err != nil {
		return seq, err
	}
	connector.Dialer(impatient{})
	db := sql.OpenDB(connector)
	defer db.Close()
	for ctx.Err() == nil {
		if _, err := db.ExecContext(ctx, "INSERT INTO ledger VALUES ($1, $2)", client, seq); err != nil {
			// It may have been committed all the same, so its number isn't used again.
			return seq + 1, err
		}
		l.add(commit{client, seq, time.Now(), node})
		seq++
	}
	return seq, nil
}

// impatient makes connections on which an answer that takes too long is an error. The driver itself would wait for the end of a
// statement whose server is gone.
type impatient struct{}

// Dial implements pq.Dialer.
func (impatient) Dial(network, address string) (net.Conn, error) {
	return impatient{}.DialTimeout(network, address, answerLimit)
}

// DialTimeout implements pq.Dialer.
func (impatient) DialTimeout(network, address string, d time.Duration) (net.Conn, error) {
	c, err := net.DialTimeout(network, address, d)
	return impatientConn{c}, err
}

type impatientConn struct{ net.Conn }

func (c impatientConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(answerLimit)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func postgresURL(ip string) string {
	return fmt.Sprintf("host=%s user=postgres dbname=demo sslmode=disable connect_timeout=1", ip)
}

// writeLocal runs a client beside the database, which goes on when the node is cut off: the program prints the number of each row
// whose commit was answered.
func (l *ledger) writeLocal(cmd *exec.Cmd, client, node string) error {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		defer func() { _, _ = io.Copy(io.Discard, out) }()
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var seq int
			if _, err := fmt.Sscan(lines.Text(), &seq); err == nil {
				l.add(commit{client, seq, time.Now(), node})
			}
		}
	}()
	return nil
}

// audit looks for every transaction of the ledger in the database.
func (l *ledger) audit(ctx context.Context, ip string) (int, error) {
	all := l.all() // before the database is asked, as the clients go on
	db, err := sql.Open("postgres", postgresURL(ip))
	if err != nil {
		return 0, err
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, "SELECT client, seq FROM ledger")
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	type key struct {
		client string
		seq    int
	}
	has := map[key]bool{}
	for rows.Next() {
		var k key
		if err := rows.Scan(&k.client, &k.seq); err != nil {
			return 0, err
		}
		has[k] = true
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	var missing []commit
	for _, c := range all {
		if !has[key{c.client, c.seq}] {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		return len(all), fmt.Errorf("LOST: %d of %d committed rows, the first of them %+v", len(missing), len(all), missing[0])
	}
	if len(all) == 0 {
		return 0, errors.New("the ledger is empty: nothing was shown")
	}
	return len(all), nil
}
