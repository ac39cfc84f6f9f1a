package server

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestProgramPages(t *testing.T) {
	mapping := func(head, anonymous, swap, locked string) string {
		return head + "\nSize: 8 kB\nRss: 8 kB\nPrivate_Dirty: 8 kB\nAnonymous: " + anonymous + " kB\nSwap: " + swap + " kB\nSwapPss: " + swap + " kB\nLocked: " + locked + " kB\nTHPeligible: 0\nVmFlags: rd mr mw me\n"
	}
	for name, c := range map[string]struct {
		text string
		want []addresses
	}{
		"text and constants": {
			mapping("00400000-00402000 r-xp 00000000 fe:00 1 /bin/keelson", "0", "0", "0") + mapping("00402000-00403000 r--p 00002000 fe:00 1 /bin/keelson", "0", "0", "0"),
			[]addresses{{0x400000, 0x402000}, {0x402000, 0x403000}},
		},
		"data":                  {mapping("00403000-00404000 rw-p 00003000 fe:00 1 /bin/keelson", "0", "0", "0"), nil},
		"relocated by a loader": {mapping("00402000-00403000 r--p 00002000 fe:00 1 /bin/keelson", "4", "0", "0"), nil},
		"changed, in swap":      {mapping("00402000-00403000 r--p 00002000 fe:00 1 /bin/keelson", "0", "4", "0"), nil},
		"locked":                {mapping("00402000-00403000 r--p 00002000 fe:00 1 /bin/keelson", "0", "0", "8"), nil},
		"another file":          {mapping("00402000-00403000 r--p 00002000 fe:00 1 /bin/keelson2", "0", "0", "0"), nil},
		"replaced meanwhile":    {mapping("00402000-00403000 r--p 00002000 fe:00 1 /bin/keelson (deleted)", "0", "0", "0"), nil},
		"no file":               {mapping("00402000-00403000 r--p 00000000 00:00 0", "0", "0", "0"), nil},
		"no addresses":          {mapping("zzz-00403000 r--p 00000000 fe:00 1 /bin/keelson", "0", "0", "0"), nil},
		"cut off":               {"00402000-00403000 r--p 00000000 fe:00 1 /bin/keelson\nAnonymous: 0 kB\n", nil},
	} {
		if got := programPages([]byte(c.text), "/bin/keelson"); !slices.Equal(got, c.want) {
			t.Errorf("%s: %x, want %x", name, got, c.want)
		}
	}
}

// The program goes on after its pages were given back, with data that it changed, and constants. In a process of its own: other tests
// run an engine here, which locks all memory.
func TestUnmapProgram(t *testing.T) {
	const own = "KEELSON_TEST_UNMAP"
	if os.Getenv(own) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestUnmapProgram$")
		cmd.Env = append(os.Environ(), own+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	if len(programPages(maps, self)) == 0 {
		t.Fatalf("no page of %s is found that can be given back:\n%.800s", self, maps)
	}
	before := strings.Clone(unmapChanged)
	if err := unmapProgram(); err != nil {
		t.Fatal(err)
	}
	if unmapChanged != before || strings.ToUpper("constant") != "CONSTANT" {
		t.Error("what the program had was lost")
	}
}

var unmapChanged = strings.Repeat("changed", 2)
