package pki

import (
	"crypto/x509"
	"time"
)

// Valid is for how long the certificate of a node is.
const Valid = nodeValid

// Issued returns when a certificate was made, by the clock of the node that signed it. Certificates are valid from a while before
// that on.
func Issued(cert *x509.Certificate) time.Time { return cert.NotBefore.Add(backdated) }
