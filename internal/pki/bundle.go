package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Roots are the certificates of all CAs that are trusted; that of the one that signs comes first.
func (ca *CA) Roots() []*x509.Certificate { return append([]*x509.Certificate{ca.Cert}, ca.Others...) }

// Pool returns a pool with all CAs that are trusted.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range ca.Roots() {
		pool.AddCert(c)
	}
	return pool
}

// Trust is a Trust that doesn't change.
func (ca *CA) Trust() (*x509.CertPool, error) { return ca.Pool(), nil }

// Trusts reports whether a CA of that hash is trusted.
func (ca *CA) Trusts(hash string) bool {
	return slices.ContainsFunc(ca.Roots(), func(c *x509.Certificate) bool { return Hash(c) == hash })
}

// Issuer is the hash of the CA, of those that are trusted, that has signed a certificate; "" if none has.
func (ca *CA) Issuer(cert *x509.Certificate) string {
	for _, c := range ca.Roots() {
		if cert.CheckSignatureFrom(c) == nil {
			return Hash(c)
		}
	}
	return ""
}

// Chain is what goes with a node's certificate: all CAs, for those who know one by its hash, and how they vouch for each other.
func (ca *CA) Chain() (der [][]byte) {
	for _, c := range append(ca.Roots(), ca.Cross...) {
		der = append(der, c.Raw)
	}
	return der
}

// Vouch returns a certificate of next by this CA: who trusts this one alone accepts what next signs. It ends when this CA does.
func (ca *CA) Vouch(next *CA) (*x509.Certificate, error) {
	if ca.Key == nil {
		return nil, errors.New("the key of the CA is needed to vouch for another one")
	}
	tmpl := template(next.Cert.Subject, 0)
	tmpl.NotAfter, tmpl.SubjectKeyId = ca.Cert.NotAfter, next.Cert.SubjectKeyId
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, next.Cert.KeyUsage
	return sign(tmpl, ca.Cert, next.Cert.PublicKey, ca.Key)
}

// Encode writes all certificates of a CA as PEM, the one that signs first.
func (ca *CA) Encode() []byte {
	var b bytes.Buffer
	for _, c := range append(ca.Roots(), ca.Cross...) {
		b.Write(EncodeCert(c))
	}
	return b.Bytes()
}

// EncodeRoots writes the certificates of the CAs that are trusted, and no others.
func (ca *CA) EncodeRoots() []byte { return (&CA{Cert: ca.Cert, Others: ca.Others}).Encode() }

// maxCAs bounds how many certificates a bundle may have.
const maxCAs = 16

// ParseCA reads what Encode has written.
func ParseCA(b []byte) (*CA, error) {
	ca := &CA{}
	for n := 0; ; n++ {
		block, rest := pem.Decode(b)
		switch {
		case block == nil && n == 0:
			return nil, errors.New("no certificate in PEM")
		case block == nil:
			return ca, nil
		case n == maxCAs:
			return nil, fmt.Errorf("more than %d certificates", maxCAs)
		case block.Type != "CERTIFICATE":
			return nil, fmt.Errorf("%q in PEM is no certificate", block.Type)
		}
		b = rest
		c, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			return nil, err
		case n == 0:
			ca.Cert = c
		case c.CheckSignatureFrom(c) == nil:
			ca.Others = append(ca.Others, c)
		default:
			ca.Cross = append(ca.Cross, c)
		}
	}
}

// SaveTrust writes the CA's certificates. One file changes: a reader at any moment, or after a crash, finds the old ones or the new.
func (d Dir) SaveTrust(ca *CA) error { return d.write(caCertFile, ca.Encode()) }

// SaveNextKey keeps the key of a CA beside that of the one that signs now, until that is dropped.
func (d Dir) SaveNextKey(key crypto.Signer) error {
	ca, err := d.LoadCA()
	if err != nil {
		return err
	}
	// Of a change that was never ended, as when the metadata was taken back: its next CA signs already.
	if have, err := d.key(caNextFile); err != nil || have != nil && belongs(ca.Cert, have) {
		if err := errors.Join(err, d.KeepKeyOf(ca.Cert)); err != nil {
			return err
		}
	}
	b, err := EncodeKey(key)
	if err != nil {
		return err
	}
	return d.write(caNextFile, b)
}

// KeyOf returns the key of a CA; nil where it isn't kept.
func (d Dir) KeyOf(ca *x509.Certificate) (crypto.Signer, error) {
	keys, err := d.Keys()
	for _, k := range keys {
		if belongs(ca, k) {
			return k, nil
		}
	}
	return nil, err
}

// KeepKeyOf drops the keys of all other CAs. It can be repeated.
func (d Dir) KeepKeyOf(ca *x509.Certificate) error {
	next, err := d.key(caNextFile)
	if err != nil {
		return err
	}
	if next != nil && belongs(ca, next) {
		if err := os.Rename(d.Path(caNextFile), d.Path(caKeyFile)); err != nil {
			return err
		}
		return d.sync()
	}
	have, err := d.key(caKeyFile)
	if err == nil && next != nil {
		err = d.remove(caNextFile)
	}
	if err == nil && have != nil && !belongs(ca, have) {
		err = d.remove(caKeyFile)
	}
	return err
}

// NoteFormer writes down which CAs are trusted, and soon won't be: tokens that name these are of this cluster all the same.
func (d Dir) NoteFormer(have *CA, next *x509.Certificate) error {
	list, err := d.Former()
	if err != nil {
		return err
	}
	n := len(list)
	for _, c := range have.Roots() {
		if h := Hash(c); h != Hash(next) && !slices.Contains(list, h) {
			list = append(list, h)
		}
	}
	if len(list) == n {
		return nil
	}
	return d.write(caFormerFile, []byte(strings.Join(list, "\n")+"\n"))
}

// Former returns the hashes of the CAs that were trusted once.
func (d Dir) Former() ([]string, error) {
	b, err := os.ReadFile(d.Path(caFormerFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.Fields(string(b)), err
}

// Keys reads the keys of CAs that this node has. That of the next one is read first: it takes the place of the other.
func (d Dir) Keys() (keys []crypto.Signer, err error) {
	for _, name := range []string{caNextFile, caKeyFile} {
		k, err := d.key(name)
		if err != nil {
			return nil, err
		}
		if k != nil {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

func (d Dir) key(name string) (crypto.Signer, error) {
	b, err := os.ReadFile(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	k, err := ParseKey(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Path(name), err)
	}
	return k, nil
}

func (d Dir) remove(name string) error {
	if err := os.Remove(d.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.sync()
}

// Belongs reports whether a certificate is for a key.
func Belongs(cert *x509.Certificate, key crypto.Signer) bool { return belongs(cert, key) }
