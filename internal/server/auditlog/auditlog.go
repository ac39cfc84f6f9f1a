// Package auditlog keeps a node's audit log: one entry a line, in JSON, in files that are rotated by their size. The newest
// is <directory>/audit.log; audit.log.1 is the one before it, and so on.
//
// Invariants: an entry that Record returned for was handed to the kernel, so that it outlives the process (not a loss of
// power); a line is never split over two files; a line that a crash left unfinished is passed over, and the next entry
// begins on a line of its own. The package owns no goroutine.
package auditlog

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	pb "keelson.io/keelson/internal/api/keelsonv1"
)

// Defaults of New.
const (
	MaxSize  = 16 << 20 // bytes of a file before the next one begins
	MaxFiles = 8        // that are kept, the newest included
)

const (
	name = "audit.log"
	// maxLine bounds a line that is read, in bytes; longer ones are passed over.
	maxLine = 64 << 10
)

// Log is the audit log in a directory. Safe for concurrent use within one process.
type Log struct {
	dir      string
	maxSize  int64
	maxFiles int

	mu struct {
		sync.Mutex
		f    *os.File
		size int64
	}
}

// Open opens the log for appending, and makes it if there is none.
func Open(dir string, maxSize int64, maxFiles int) (*Log, error) {
	l := &Log{dir: dir, maxSize: maxSize, maxFiles: maxFiles}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l, l.openLocked()
}

func (l *Log) path(i int) string {
	if i == 0 {
		return filepath.Join(l.dir, name)
	}
	return filepath.Join(l.dir, fmt.Sprintf("%s.%d", name, i))
}

func (l *Log) openLocked() error {
	f, err := os.OpenFile(l.path(0), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.mu.f, l.mu.size = f, st.Size()
	last := make([]byte, 1)
	if l.mu.size == 0 {
		return nil
	}
	if _, err := f.ReadAt(last, l.mu.size-1); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	if last[0] != '\n' {
		return l.writeLocked([]byte{'\n'})
	}
	return nil
}

func (l *Log) writeLocked(b []byte) error {
	n, err := l.mu.f.Write(b)
	l.mu.size += int64(n)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}

// Record writes an entry.
func (l *Log) Record(e *pb.AuditEntry) error {
	b, err := protojson.Marshal(e)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	b = append(b, '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.f == nil {
		if err := l.openLocked(); err != nil {
			return err
		}
	}
	if l.mu.size > 0 && l.mu.size+int64(len(b)) > l.maxSize {
		if err := l.rotateLocked(); err != nil {
			return err
		}
	}
	return l.writeLocked(b)
}

// rotateLocked makes each file the one before it, drops the oldest, and begins a new one.
func (l *Log) rotateLocked() error {
	if err := l.mu.f.Close(); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	l.mu.f = nil
	for i := l.maxFiles - 1; i > 0; i-- {
		if err := os.Rename(l.path(i-1), l.path(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("audit log: %w", err)
		}
	}
	return l.openLocked()
}

// Entries returns the newest entries since a time, at most limit, the oldest first.
func (l *Log) Entries(since time.Time, limit int) ([]*pb.AuditEntry, error) {
	var files [][]*pb.AuditEntry // the newest first
	n := 0
	for i := 0; i < l.maxFiles && n < limit; i++ {
		es, err := l.read(i, since, limit-n)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, err
		}
		n += len(es)
		files = append(files, es)
	}
	slices.Reverse(files)
	return slices.Concat(files...), nil
}

// read returns the newest entries of one file, at most limit.
func (l *Log) read(i int, since time.Time, limit int) ([]*pb.AuditEntry, error) {
	f, err := os.Open(l.path(i))
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	defer f.Close()
	var es []*pb.AuditEntry
	r := bufio.NewReaderSize(f, maxLine)
	for {
		line, err := r.ReadSlice('\n')
		tooLong := errors.Is(err, bufio.ErrBufferFull)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = r.ReadSlice('\n')
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("audit log: %w", err)
		}
		if e, ok := parse(line); ok && !tooLong && !e.Time.AsTime().Before(since) {
			es = append(es, e)
			if len(es) > 2*limit {
				es = slices.Clone(es[len(es)-limit:])
			}
		}
		if err != nil {
			return es[max(0, len(es)-limit):], nil
		}
	}
}

// parse reads a line. Fields that a newer version wrote are passed over.
func parse(line []byte) (*pb.AuditEntry, bool) {
	line = bytes.TrimSpace(line)
	e := &pb.AuditEntry{}
	err := protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(line, e)
	return e, len(line) > 0 && err == nil
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.f == nil {
		return nil
	}
	f := l.mu.f
	l.mu.f = nil
	return f.Close()
}
