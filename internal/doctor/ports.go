package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// tcpListen is the state LISTEN in /proc/net/tcp.
const tcpListen = "0A"

// listeners returns the sockets' inodes by the ports that are listened on.
func (m *Machine) listeners() map[int]string {
	out := map[int]string{}
	for _, file := range []string{"proc/net/tcp", "proc/net/tcp6"} {
		for line := range strings.Lines(m.read(file)) {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != tcpListen {
				continue
			}
			_, hex, _ := strings.Cut(f[1], ":")
			if port, err := strconv.ParseUint(hex, 16, 16); err == nil {
				out[int(port)] = f[9]
			}
		}
	}
	return out
}

// holder returns the command line of the process that has a socket, "" if it can't be found.
func (m *Machine) holder(inode string) string {
	links, _ := filepath.Glob(m.path("proc/[0-9]*/fd/*"))
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && to == "socket:["+inode+"]" {
			pid := filepath.Base(filepath.Dir(filepath.Dir(l)))
			return strings.TrimSpace(strings.ReplaceAll(m.read("proc", pid, "cmdline"), "\x00", " "))
		}
	}
	return ""
}

func checkPorts(_ context.Context, m *Machine, o Options) []Finding {
	if len(o.Ports) == 0 {
		return one(Note, "no ports are given")
	}
	taken := m.listeners()
	var out []Finding
	ours, names := 0, make([]string, 0, len(o.Ports))
	for _, p := range o.Ports {
		names = append(names, strconv.Itoa(p.Number))
		inode, busy := taken[p.Number]
		if !busy {
			continue
		}
		who := m.holder(inode)
		if strings.HasPrefix(filepath.Base(strings.SplitN(who, " ", 2)[0]), "keelson") {
			ours++
			continue
		}
		if who == "" {
			who = "a process that can't be seen from here"
		}
		out = append(out, Finding{
			State: Danger, Found: fmt.Sprintf("port %d is taken by %s", p.Number, who), Why: "it is that of " + p.Name,
			Do: "end that process, or give Keelson another port in its configuration (apiPort, enginePort, etcdClientPort, etcdPeerPort)",
		})
	}
	if len(out) > 0 {
		return out
	}
	if ours > 0 {
		return one(OK, "of the ports %s, %d are Keelson's, and the others free", strings.Join(names, ", "), ours)
	}
	return one(OK, "the ports %s are free", strings.Join(names, ", "))
}
