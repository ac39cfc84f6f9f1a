package system

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/lab"
	"keelson.io/keelson/internal/lab/labtest"
	"keelson.io/keelson/internal/pki"
)

// Of the certificates of the lab of TestCertificatesRotateUnderLoad.
const (
	briefValid  = 40 * time.Second
	briefBefore = 30 * time.Second // a new one each 10 s
)

// TestCertificatesRotateUnderLoad has certificates that last for seconds, in a lab of its own, and verified load on a volume with
// a copy on the other node, beyond the end of the certificates with which everything was connected. Whoever uses the volume
// notices nothing; nor when engines and the metadata then start anew, with the certificates of that moment.
func TestCertificatesRotateUnderLoad(t *testing.T) {
	c := briefLab(t)
	v := c.create("turn", "--size", "64Mi", "--zone-spread")
	holder, other := v.members()[0].Node, v.members()[1].Node
	dev := c.attach(holder, "turn", "fuse")
	first := map[string]*x509.Certificate{holder: c.certificate(holder), other: c.certificate(other)}
	lost := c.lostLinks()
	load := c.fio(holder, dev)

	seen := map[string]map[string]bool{holder: {}, other: {}}
	c.Eventually(2*time.Minute, "three rotations", func() error {
		for n, s := range seen {
			cert := c.certificate(n)
			if time.Now().After(cert.NotAfter) {
				t.Fatalf("the certificate of %s ended at %s, and there is no new one", n, cert.NotAfter)
			}
			s[cert.SerialNumber.Text(16)] = true
			if len(s) < 4 || time.Now().Before(first[n].NotAfter) {
				return fmt.Errorf("%s had %d certificates, and its first one ends at %s", n, len(s), first[n].NotAfter)
			}
		}
		return nil
	})
	if err := load.running(); err != nil {
		t.Fatal(err)
	}
	if now := c.lostLinks(); now != lost {
		t.Errorf("connections between engines were lost: %d lines in the logs, %d before the certificates rotated", now, lost)
	}
	for n := range seen {
		c.serves(n, first[n])
	}
	// What starts now has to connect with the new ones.
	for _, victim := range [][2]string{{other, "engine"}, {holder, "engine"}, {other, "control"}, {other, "etcd"}} {
		if err := c.KillProcess(victim[0], victim[1]); err != nil {
			t.Fatal(err)
		}
		c.awaitHealthy(holder, "turn", 60*time.Second)
	}
	c.serves(other, first[other])
	c.serves(holder, first[holder])
	if err := load.stop(); err != nil {
		t.Errorf("whoever uses the volume saw: %v", err)
	}
	t.Logf("%d and %d certificates", len(seen[holder]), len(seen[other]))
	c.remove(holder, "turn")
}

// briefLab is a lab of two nodes whose certificates last for briefValid.
func briefLab(t *testing.T) *cluster {
	t.Helper()
	return &cluster{labtest.Up(t, lab.Config{Name: labtest.Name("-brief"), Nodes: 2, Zones: 2, PoolSize: "2Gi", Settings: map[string]any{
		"certificates": map[string]any{"valid": briefValid.String(), "renewBefore": briefBefore.String()},
	}})}
}

func (c *cluster) certificate(node string) *x509.Certificate {
	c.T.Helper()
	p, err := pki.Dir(filepath.Join(c.NodeDir(node), "data", "pki")).LoadPair(pki.NodePair)
	if err != nil {
		c.T.Fatal(err)
	}
	return p.Cert
}

// lostLinks counts what the logs say of connections between engines that ended or couldn't be made.
func (c *cluster) lostLinks() (n int) {
	for _, node := range c.Nodes() {
		for _, s := range []string{"no connection to engine", "engine disconnected", "connection from an engine ended", "refused a connection"} {
			n += bytes.Count(c.log(node), []byte(s))
		}
	}
	return n
}

// serves looks at the certificate that the engine and the API of a node show to those who connect now: it is valid, and not the
// first one.
func (c *cluster) serves(node string, first *x509.Certificate) {
	c.T.Helper()
	own, err := pki.Dir(filepath.Join(c.NodeDir(node), "data", "pki")).LoadPair(pki.NodePair)
	if err != nil {
		c.T.Fatal(err)
	}
	conf := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: [][]byte{own.Cert.Raw}, PrivateKey: own.Key}}}
	for _, port := range []string{"9500", "9501", "9502"} {
		conn, err := tls.Dial("tcp", c.Address(node)+":"+port, conf)
		if err != nil {
			c.T.Errorf("port %s of %s: %v", port, node, err)
			continue
		}
		shown := conn.ConnectionState().PeerCertificates[0]
		conn.Close()
		if time.Now().After(shown.NotAfter) || shown.Equal(first) {
			c.T.Errorf("port %s of %s shows a certificate that ends at %s; the first one ended at %s", port, node, shown.NotAfter, first.NotAfter)
		}
	}
}

// load is a fio that verifies all that it wrote.
type load struct {
	done chan error
	end  context.CancelFunc
}

// fio writes to a device in rounds, each verified, until it is stopped.
func (c *cluster) fio(node, dev string) *load {
	c.T.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	flag := filepath.Join(c.T.TempDir(), "stop")
	line := fmt.Sprintf("while [ ! -e %s ]; do fio --name=v --filename=%s --rw=randwrite --bs=4k --iodepth=8 --ioengine=libaio --direct=1 --size=16M --rate_iops=1500 "+
		"--verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --minimal || exit 1; done", flag, dev)
	cmd, err := c.Command(ctx, node, "sh", "-c", line)
	if err != nil {
		c.T.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		c.T.Fatal(err)
	}
	l := &load{done: make(chan error, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := cmd.Wait()
		rounds := strings.Count(out.String(), ";v;")
		if err != nil {
			err = fmt.Errorf("fio, in round %d: %w: %s", rounds+1, err, out.String()[max(0, out.Len()-1000):])
		} else if rounds == 0 {
			err = errors.New("fio did nothing")
		}
		l.done <- err
	}()
	l.end = func() { c.shell(node, "touch "+flag) }
	c.T.Cleanup(func() { cancel(); <-ended })
	return l
}

// running is an error if the load has ended by itself.
func (l *load) running() error {
	select {
	case err := <-l.done:
		return fmt.Errorf("the load ended: %w", err)
	default:
		return nil
	}
}

// stop ends the load after the round that is under way, and returns what it saw.
func (l *load) stop() error {
	l.end()
	select {
	case err := <-l.done:
		return err
	case <-time.After(2 * time.Minute):
		return errors.New("the load doesn't end: I/O hangs")
	}
}
