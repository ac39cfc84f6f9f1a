package frontendtest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// NeedTool skips the test if a program isn't installed.
func NeedTool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s isn't installed; make test installs it", name)
	}
	return path
}

// Cost is what a run of fio did and what it cost this process, which has the server.
type Cost struct {
	Ops     int64
	PerSec  float64
	CPU     time.Duration // of this process, per operation
	Mallocs float64       // heap allocations of this process, per operation
}

// Fio runs one fio job and returns its cost. args are added to the job's command line.
func Fio(t testing.TB, args ...string) Cost {
	t.Helper()
	dir := t.TempDir()
	output := filepath.Join(dir, "result.json") // its standard output has other things as well
	args = append([]string{"--name=job", "--output-format=json", "--output=" + output, "--group_reporting"}, args...)
	cmd := exec.Command(NeedTool(t, "fio"), args...)
	cmd.Dir = dir
	before, allocs := usage(t), mallocs()
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("fio %v: %v\n%s", args, err, said)
	}
	out, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	var result struct {
		Jobs []struct {
			Error             int
			Read, Write, Trim struct {
				TotalIos int64 `json:"total_ios"`
				Iops     float64
			}
		}
	}
	if err := json.Unmarshal(out, &result); err != nil || len(result.Jobs) == 0 {
		t.Fatalf("fio %v printed no result: %v\n%s", args, err, out)
	}
	j := result.Jobs[0]
	if j.Error != 0 {
		t.Fatalf("fio %v: error %d", args, j.Error)
	}
	c := Cost{
		Ops:    j.Read.TotalIos + j.Write.TotalIos + j.Trim.TotalIos,
		PerSec: j.Read.Iops + j.Write.Iops + j.Trim.Iops,
	}
	if c.Ops > 0 {
		c.CPU = (usage(t) - before) / time.Duration(c.Ops)
		c.Mallocs = float64(mallocs()-allocs) / float64(c.Ops)
	}
	return c
}

// usage is the CPU time of this process.
func usage(t testing.TB) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func mallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}

// Report runs the fio job for two seconds, whatever b.N is, and reports its cost.
func Report(b *testing.B, args ...string) {
	b.Helper()
	c := Fio(b, append(args, "--time_based", "--runtime=2")...)
	b.ReportMetric(c.PerSec, "ops/s")
	b.ReportMetric(float64(c.CPU.Nanoseconds())/1000, "cpu-µs/op")
	b.ReportMetric(c.Mallocs, "mallocs/op")
	b.ReportMetric(0, "ns/op")
}
