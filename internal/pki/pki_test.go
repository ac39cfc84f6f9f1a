package pki

import (
	"crypto/tls"
	"crypto/x509/pkix"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/spec"
)

func newCluster(t *testing.T, id string) (*CA, *Pair) {
	t.Helper()
	ca, err := NewCA(id)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ca.NewPair(Identity{Cluster: id, Role: RoleNode, Node: "n1"}, []string{"127.0.0.1", "host.example"})
	if err != nil {
		t.Fatal(err)
	}
	return ca, p
}

// shake makes a TLS connection and returns both sides' errors.
func shake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // a pipe has no buffers, and an alert would meet what isn't read any more
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	a.SetDeadline(deadline)
	b.SetDeadline(deadline)
	done := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		done <- err
		a.Close()
	}()
	c := tls.Client(b, client)
	clientErr = c.Handshake()
	if clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	b.Close()
	return <-done, clientErr
}

func TestMutualTLS(t *testing.T) {
	ca, n1 := newCluster(t, "0000000000000001")
	otherCA, alien := newCluster(t, "0000000000000002")
	person, err := ca.NewPair(Identity{Cluster: "0000000000000001", Role: "person", Node: "n1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	impostor, err := ca.NewPair(Identity{Cluster: "0000000000000002", Role: RoleNode, Node: "n1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	server := func(optional bool) *tls.Config {
		cfg, err := ServerTLS(ca.Trust, n1, optional)
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	client := func(ca *CA, p *Pair, node string) *tls.Config {
		cfg, err := ClientTLS(ca.Trust, p, node)
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	old := template(pkix.Name{CommonName: "n1"}, -time.Hour)
	old.URIs = n1.Cert.URIs
	oldCert, err := sign(old, ca.Cert, n1.Key.Public(), ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	expired, err := ServerTLS(ca.Trust, &Pair{oldCert, n1.Key}, false)
	if err != nil {
		t.Fatal(err)
	}
	asPerson := server(false)
	asPerson.Certificates = []tls.Certificate{person.tls()}
	byPerson := client(ca, n1, "")
	byPerson.Certificates = asPerson.Certificates
	sendsCA := server(true)
	sendsCA.Certificates[0].Certificate = append(sendsCA.Certificates[0].Certificate, ca.Cert.Raw)
	claimsCA := server(true)
	claimsCA.Certificates[0].Certificate = append(claimsCA.Certificates[0].Certificate, otherCA.Cert.Raw)
	join := func(ca *CA) *tls.Config { return PinnedTLS(Hash(ca.Cert), ErrTokenCluster) }
	for _, tc := range []struct {
		name           string
		server, client *tls.Config
		want           string // part of either side's error; "" is success
	}{
		{"node to node", server(false), client(ca, n1, "n1"), ""},
		{"client is no node", server(false), byPerson, "not a certificate"},
		{"client is no node, where none is needed", server(true), byPerson, "not a certificate"},
		{"wrong node", server(false), client(ca, n1, "n2"), `node "n2" was meant`},
		{"client of another CA", server(false), client(ca, alien, ""), "another cluster"},
		{"client names another cluster", server(false), client(ca, impostor, ""), "another cluster"},
		{"server of another CA", server(false), client(otherCA, alien, "n1"), "another cluster"},
		{"no certificate", server(false), join(ca), "certificate"},
		{"joining", sendsCA, join(ca), ""},
		{"joining another cluster's server", sendsCA, join(otherCA), "another cluster"},
		{"joining a server that shows a CA it isn't of", claimsCA, join(otherCA), "another cluster"},
		{"joining a server that shows no CA", server(true), join(ca), "another cluster"},
		{"server's certificate has expired", expired, client(ca, n1, ""), "are the clocks right"},
		{"server is no node", asPerson, client(ca, n1, ""), "not a certificate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, c := shake(t, tc.server, tc.client)
			err := errors.Join(s, c)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestJoinRequest(t *testing.T) {
	ca, _ := newCluster(t, "0000000000000001")
	key, csr, err := NewRequest("n7", []string{"10.0.0.7"})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignRequest("0000000000000001", csr)
	if err != nil {
		t.Fatal(err)
	}
	id, err := IdentityOf(cert)
	if err != nil || id.Node != "n7" || id.Role != RoleNode || len(cert.IPAddresses) != 1 {
		t.Fatalf("%+v, %v", id, err)
	}
	if time.Until(cert.NotBefore) > -time.Hour {
		t.Fatal("a clock that is an hour behind would refuse this certificate")
	}
	d := Dir(t.TempDir())
	if err := d.SavePair(NodePair, &Pair{cert, key}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.LoadPair(NodePair); err != nil {
		t.Fatal(err)
	}
	csr[len(csr)-1] ^= 1
	if _, err := ca.SignRequest("0000000000000001", csr); err == nil {
		t.Fatal("a damaged request was signed")
	}
}

func TestFiles(t *testing.T) {
	ca, p := newCluster(t, "0000000000000001")
	d := Dir(t.TempDir() + "/pki")
	for _, err := range []error{d.SaveCA(ca), d.SavePair(NodePair, p)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := d.LoadCA()
	if err != nil || Hash(got.Cert) != Hash(ca.Cert) || got.Key == nil {
		t.Fatalf("%v", err)
	}
	for _, f := range []string{"ca.crt", "ca.key", "node.crt", "node.key"} {
		if st, err := os.Stat(d.Path(f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st, err)
		}
	}
	other, _ := ca.NewPair(Identity{Cluster: "0000000000000001", Role: RoleNode, Node: "n2"}, nil)
	if err := d.SaveCert(NodePair, other.Cert); err == nil {
		t.Fatal("a certificate for another key was taken")
	}
	ca.NodeValid = time.Hour
	renewed, err := ca.Renew(Identity{Cluster: "0000000000000001", Role: RoleNode, Node: "n1"}, nil, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SaveCert(NodePair, renewed.Cert); err != nil {
		t.Fatal(err)
	}
	if got, err := d.LoadPair(NodePair); err != nil || !got.Cert.Equal(renewed.Cert) || NeedsRenewal(got.Cert, time.Now(), time.Minute) ||
		!NeedsRenewal(got.Cert, time.Now(), 2*time.Hour) {
		t.Fatalf("%v, %v", got, err)
	}
	key, _ := EncodeKey(other.Key)
	if err := d.write("ca.key", key); err != nil {
		t.Fatal(err)
	}
	if _, err := d.LoadCA(); err == nil || !strings.Contains(err.Error(), "belong together") {
		t.Fatalf("a key of another CA was taken: %v", err)
	}
	if err := d.write("node.key", key); err != nil {
		t.Fatal(err)
	}
	if _, err := d.LoadPair(NodePair); err == nil || !strings.Contains(err.Error(), "belong together") {
		t.Fatalf("a key of another certificate was taken: %v", err)
	}
}

func TestTokens(t *testing.T) {
	ca, _ := newCluster(t, "0000000000000001")
	otherCA, _ := newCluster(t, "0000000000000001")
	now := time.Now()
	tok, rec := NewToken(ca.Cert, []spec.Role{spec.RoleStorage}, time.Hour, now)
	got, err := ParseToken(" " + tok.String() + "\n")
	if err != nil || got != tok {
		t.Fatalf("%v, %v", got, err)
	}
	if strings.Contains(rec.SecretHash, tok.Secret) {
		t.Fatal("the record has the secret")
	}
	wrong := tok
	wrong.Secret = strings.Repeat("0", 32)
	for _, tc := range []struct {
		err, want error
	}{
		{got.Check(rec, now), nil},
		{got.Check(rec, now.Add(2*time.Hour)), ErrTokenExpired},
		{wrong.Check(rec, now), ErrTokenUnknown},
		{got.CheckCA(ca), nil},
		{got.CheckCA(otherCA), ErrTokenCluster},
	} {
		if !errors.Is(tc.err, tc.want) {
			t.Errorf("got %v, want %v", tc.err, tc.want)
		}
	}
	for _, s := range []string{"", "K1", "K1::.", tok.String()[2:], tok.String() + "0", "K1zz::" + tok.ID + "." + tok.Secret} {
		if _, err := ParseToken(s); !errors.Is(err, ErrTokenForm) {
			t.Errorf("%q: %v", s, err)
		}
	}
}
