package auditlog

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/invariant/alloc"
)

// FuzzRead takes anything for an audit log, and for the file before it. Entries are read without harm, no more than were asked
// for and none from before; and what is recorded then is the last one that is read, whatever the file ended with.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"time":"2026-01-02T03:04:05Z","node":"n1","id":"a","caller":"node/n1","call":"x"}`+"\n"), []byte(nil))
	f.Add([]byte(`{"time":"2026-01-02T03:04:05Z","no`), []byte("\n\n{}\n"))
	f.Add([]byte(`{"time":"9999-12-31T23:59:59.999999999Z","took":"-315576000000s"}`), []byte(`{"unknown":[[[[{}]]]]}`))
	f.Add([]byte{0xff, '\n', 0}, []byte("null\n[]\n\"\"\n"))
	f.Fuzz(func(t *testing.T, newest, older []byte) {
		dir := t.TempDir()
		for name, b := range map[string][]byte{name: newest, name + ".1": older} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l, err := Open(dir, MaxSize, MaxFiles)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		since := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		var es []*pb.AuditEntry
		alloc.Bounded(t, 8*maxLine+1000*(len(newest)+len(older)), func() { es, err = l.Entries(since, 3) })
		if err != nil || len(es) > 3 {
			t.Fatalf("%d entries, %v", len(es), err)
		}
		for _, e := range es {
			if e.Time.AsTime().Before(since) {
				t.Fatalf("an entry of %s", e.Time.AsTime())
			}
		}
		now := since.Add(time.Hour)
		if err := l.Record(&pb.AuditEntry{Time: timestamppb.New(now), Id: "last"}); err != nil {
			t.Fatal(err)
		}
		es, err = l.Entries(since, 1)
		if err != nil || len(es) != 1 || es[0].Id != "last" {
			t.Fatalf("recorded, and read %v, %v", es, err)
		}
	})
}
