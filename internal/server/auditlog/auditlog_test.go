package auditlog

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
)

func entry(i int) *pb.AuditEntry {
	return &pb.AuditEntry{Time: timestamppb.New(time.Unix(int64(i), 0)), Id: fmt.Sprint(i), Caller: "node/n1", Arguments: "two\nlines"}
}

func ids(t *testing.T, l *Log, since, limit int) string {
	t.Helper()
	es, err := l.Entries(time.Unix(int64(since), 0), limit)
	if err != nil {
		t.Fatal(err)
	}
	s := ""
	for _, e := range es {
		s += e.Id + " "
	}
	return s
}

func TestRotationKeepsTheNewest(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, 300, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 40 {
		if err := l.Record(entry(i)); err != nil {
			t.Fatal(err)
		}
		if got, want := ids(t, l, 0, 1), fmt.Sprintf("%d ", i); got != want {
			t.Fatalf("the newest is %q, not %q", got, want)
		}
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != 3 {
		t.Errorf("files: %v", files)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > 300 || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st, err)
		}
	}
	if got := ids(t, l, 0, 4); got != "36 37 38 39 " {
		t.Errorf("over two files: %q", got)
	}
	if got := ids(t, l, 38, 100); got != "38 39 " {
		t.Errorf("since: %q", got)
	}
}

func TestUnfinishedLine(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		l, err := Open(dir, MaxSize, MaxFiles)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Record(entry(i)); err != nil {
			t.Fatal(err)
		}
		if _, err := l.mu.f.WriteString(`{"id":"torn`); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l, err := Open(dir, MaxSize, MaxFiles)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := ids(t, l, 0, 10); got != "0 1 2 " {
		t.Errorf("%q", got)
	}
}
