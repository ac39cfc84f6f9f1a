package ring

import (
	"crypto/cipher"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"

	"keelson.io/keelson/internal/aio/ring/gcm"
)

// After the handshake and the preambles, which are TLS 1.3, a connection goes on in records of this package
// (docs/format/wire.md): a length, then that many bytes of AES-128-GCM. The keys come from the handshake (RFC 8446,
// 7.5), for each direction and each epoch of 2^22 records anew; the nonce of a record is made of its number as in TLS
// (RFC 8446, 5.3), and the length is authenticated with it. So no record can be changed, left out, repeated, moved or
// sent back without the connection ending.
const (
	recordMost   = 64 << 10 // bytes in a record
	recordHeader = 4        // its length, little endian: of what follows
	recordTag    = gcm.TagSize
	recordExtra  = recordHeader + recordTag

	// epochRecords is how many records the keys of one epoch seal: at most 2^34 blocks of AES, which leaves an attacker's
	// advantage below 2^-60.
	epochRecords = 1 << 22

	exportLabel = "EXPORTER-keelson-engine-records"
	keyLen      = gcm.KeySize
	nonceLen    = gcm.NonceSize
)

var errRecord = errors.New("a record that the other side didn't send so")

// keyring gives the keys of a connection's direction.
type keyring struct {
	export  func(label string, context []byte, length int) ([]byte, error)
	dialler bool // of what the dialling side sends

	aead  cipher.AEAD
	iv    [nonceLen]byte
	nonce [nonceLen]byte
	n     uint64 // records so far
}

// sealer makes records, opener opens them. They belong to the connection's loop.
type (
	sealer struct{ keyring }
	opener struct{ keyring }
)

// newKeyrings returns what one side of a connection seals and opens with.
func newKeyrings(t *tls.Conn, dialler bool) (*sealer, *opener, error) {
	state := t.ConnectionState()
	s := &sealer{keyring{export: state.ExportKeyingMaterial, dialler: dialler}}
	o := &opener{keyring{export: state.ExportKeyingMaterial, dialler: !dialler}}
	return s, o, errors.Join(s.turn(), o.turn())
}

// turn takes the keys of the epoch of record n.
func (k *keyring) turn() error {
	var context [9]byte
	binary.LittleEndian.PutUint64(context[:], k.n/epochRecords)
	if k.dialler {
		context[8] = 1
	}
	b, err := k.export(exportLabel, context[:], keyLen+nonceLen)
	if err != nil {
		return fmt.Errorf("ring: derive keys: %w", err)
	}
	if k.aead, err = gcm.New(b[:keyLen]); err != nil {
		return fmt.Errorf("ring: derive keys: %w", err)
	}
	copy(k.iv[:], b[keyLen:])
	return nil
}

// next prepares the nonce of the next record.
func (k *keyring) next() error {
	if k.n > 0 && k.n%epochRecords == 0 {
		if err := k.turn(); err != nil {
			return err
		}
	}
	k.nonce = k.iv
	last := k.nonce[nonceLen-8:]
	binary.BigEndian.PutUint64(last, binary.BigEndian.Uint64(last)^k.n)
	k.n++
	return nil
}

// record appends the record of p to dst, which has room for it.
func (s *sealer) record(dst, p []byte) ([]byte, error) {
	if err := s.next(); err != nil {
		return dst, err
	}
	at := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(p)+recordTag))
	return s.aead.Seal(dst, s.nonce[:], p, dst[at:at+recordHeader]), nil
}

// nextRecord returns the length of the body of the record at the start of b, or 0 if it isn't there as a whole.
func nextRecord(b []byte) (body int, err error) {
	if len(b) < recordHeader {
		return 0, nil
	}
	n := binary.LittleEndian.Uint32(b)
	if n <= recordTag || n > recordMost+recordTag {
		return 0, fmt.Errorf("%w: %d bytes", errRecord, n)
	}
	if len(b) < recordHeader+int(n) {
		return 0, nil
	}
	return int(n), nil
}

// record opens a whole record into dst, whose capacity is that of the content.
func (o *opener) record(dst, record []byte) error {
	if err := o.next(); err != nil {
		return err
	}
	if _, err := o.aead.Open(dst, o.nonce[:], record[recordHeader:], record[:recordHeader]); err != nil {
		return fmt.Errorf("%w: number %d", errRecord, o.n-1)
	}
	return nil
}
