package fuseloop_test

import (
	"testing"

	"keelson.io/keelson/internal/frontend/frontendtest"
)

// BenchmarkNull measures the frontend alone, the FUSE file and the loop device over
// it: the device behind it does nothing. Run it with -benchtime=1x.
func BenchmarkNull(b *testing.B) {
	loop := frontendtest.NewLoop(b)
	s := open(b, loop, frontendtest.NewNull(loop, 1<<30), "null")
	for _, target := range []struct{ name, path string }{{"file", s.File()}, {"loop", s.Path()}} {
		for _, job := range []struct{ name, rw, bs, depth string }{
			{"write-4k-qd1", "randwrite", "4k", "1"},
			{"write-4k-qd32", "randwrite", "4k", "32"},
			{"read-4k-qd32", "randread", "4k", "32"},
			{"write-1m-qd8", "write", "1m", "8"},
			{"read-1m-qd8", "read", "1m", "8"},
		} {
			b.Run(target.name+"/"+job.name, func(b *testing.B) {
				frontendtest.Report(b, "--ioengine=io_uring", "--direct=1", "--filename="+target.path,
					"--rw="+job.rw, "--bs="+job.bs, "--iodepth="+job.depth)
			})
		}
	}
}
