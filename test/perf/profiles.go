package main

// A profile is one kind of I/O that is measured: on a raw file of the pool, and on a volume through
// each of its frontends. All overwrite space that was written before, in blocks of 4 KiB unless said.
type profile struct {
	name string
	fio  []string
	// want has what is to be reached, as a ratio to the raw file, by frontend.
	want map[string]target
	// flushed is set when every write is followed by a flush.
	flushed bool
	// cpu says that the processor time of the engines per operation is of interest too.
	cpu bool
}

// target is what a figure must reach: the floor, and what we are after.
type target struct{ floor, goal float64 }

var profiles = []profile{
	{
		name: "random write, 32 in flight",
		fio:  []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"},
		want: map[string]target{"nbd": {0.25, 0.40}, "fuse": {0.22, 0.35}},
		cpu:  true,
	},
	{
		name: "random write, 1 in flight",
		fio:  []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"},
		want: map[string]target{"nbd": {0.30, 0.45}, "fuse": {0.25, 0.45}},
	},
	{
		name:    "random write and flush, 1 in flight",
		fio:     []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"},
		want:    map[string]target{"nbd": {0.20, 0.35}, "fuse": {0.20, 0.35}},
		flushed: true,
	},
	{
		name: "random read, 32 in flight",
		fio:  []string{"--rw=randread", "--bs=4k", "--iodepth=32"},
		want: map[string]target{"nbd": {0.70, 0.85}, "fuse": {0.70, 0.85}},
	},
	{
		name: "1 MiB write, 8 in flight",
		fio:  []string{"--rw=randwrite", "--bs=1m", "--iodepth=8"},
		want: map[string]target{"nbd": {0.35, 0.45}, "fuse": {0.35, 0.45}},
	},
}

// What else is measured, and what it must reach.
var (
	wantCPU      = target{40, 25} // µs of all engines per random write at 32
	wantPgbench  = target{0.40, 0.60}
	wantFailover = target{15, 15} // seconds
	wantRejoin   = target{10, 10} // seconds
	wantMoved    = target{2, 2}   // times what changed
	wantIdleCPU  = target{3, 3}   // % of a core, per node
	wantIdleRSS  = target{200, 200}
)

// mode is how long and how often is measured.
type mode struct {
	rounds  int
	seconds int    // of each run of fio and pgbench
	size    string // of the space that is overwritten
	volume  string // of the volume
	idle    int    // volumes
	leak    bool   // run the test with 200 volumes
}

var modes = map[string]mode{
	"short": {rounds: 1, seconds: 3, size: "512m", volume: "1Gi", idle: 20},
	"full":  {rounds: 3, seconds: 6, size: "1g", volume: "4Gi", idle: 100, leak: true},
}
