package nbd

import (
	"encoding/binary"
	"errors"
)

// Why a negotiation ends the connection.
var (
	errAborted   = errors.New("nbd: client ended the negotiation")
	errNegotiate = errors.New("nbd: client doesn't speak fixed newstyle negotiation")
	errNoExport  = errors.New("nbd: client asked for an export that isn't here")
)

// negotiation is the handshake as a state machine over bytes: feed consumes what
// the client sent and appends what the server answers. It does no I/O.
//
//	flags -> option -> option ... -> done (export name, or go)
type negotiation struct {
	name     string
	size     int64
	readOnly bool

	state      negState
	noZeroes   bool
	structured bool
	option     uint32 // while skipping: which option the bytes belong to
	skip       int    // bytes of a refused option that are still to come
}

type negState uint8

const (
	negFlags negState = iota
	negOption
	negSkip
	negDone
)

// greeting is what the server says first.
func greeting() []byte {
	b := binary.BigEndian.AppendUint64(nil, magicServer)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	return binary.BigEndian.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
}

// feed consumes from p and appends answers to out. It returns how many bytes it
// consumed and the answers; what it left needs more bytes behind it. An error ends the
// connection once the answers were sent. With state negDone the rest of p are commands.
func (n *negotiation) feed(p, out []byte) (int, []byte, error) {
	used := 0
	for {
		rest := p[used:]
		switch n.state {
		case negFlags:
			if len(rest) < 4 {
				return used, out, nil
			}
			f := binary.BigEndian.Uint32(rest)
			if f&flagFixedNewstyle == 0 || f&^(flagFixedNewstyle|flagNoZeroes) != 0 {
				return used, out, errNegotiate
			}
			n.noZeroes = f&flagNoZeroes != 0
			n.state = negOption
			used += 4
		case negSkip:
			k := min(n.skip, len(rest))
			n.skip -= k
			used += k
			if n.skip > 0 {
				return used, out, nil
			}
			out = appendOptReply(out, n.option, repErrTooBig, nil)
			n.state = negOption
		case negOption:
			k, o, err := n.feedOption(rest, out)
			used, out = used+k, o
			if err != nil || (k == 0 && n.state == negOption) {
				return used, out, err
			}
		case negDone:
			return used, out, nil
		}
	}
}

// feedOption handles one option if it is there as a whole.
func (n *negotiation) feedOption(p, out []byte) (int, []byte, error) {
	if len(p) < 16 {
		return 0, out, nil
	}
	if binary.BigEndian.Uint64(p) != magicOption {
		return 0, out, errNegotiate
	}
	opt := binary.BigEndian.Uint32(p[8:])
	length := binary.BigEndian.Uint32(p[12:])
	switch {
	case length > maxOptionSkip:
		return 0, out, errNegotiate
	case length > maxOptionLen:
		n.option, n.skip, n.state = opt, int(length), negSkip
		return 16, out, nil
	case len(p) < 16+int(length):
		return 0, out, nil
	}
	used := 16 + int(length)
	out, err := n.handle(opt, p[16:used], out)
	return used, out, err
}

func (n *negotiation) handle(opt uint32, data, out []byte) ([]byte, error) {
	switch opt {
	case optExportName:
		if !n.known(data) {
			return out, errNoExport
		}
		out = binary.BigEndian.AppendUint64(out, uint64(n.size))
		out = binary.BigEndian.AppendUint16(out, n.transmissionFlags())
		if !n.noZeroes {
			out = append(out, make([]byte, exportNameZeros)...)
		}
		n.state = negDone
		return out, nil
	case optAbort:
		return appendOptReply(out, opt, repAck, nil), errAborted
	case optList:
		if len(data) != 0 {
			return appendOptReply(out, opt, repErrInvalid, nil), nil
		}
		name := binary.BigEndian.AppendUint32(nil, uint32(len(n.name)))
		out = appendOptReply(out, opt, repServer, append(name, n.name...))
		return appendOptReply(out, opt, repAck, nil), nil
	case optStructured:
		if len(data) != 0 {
			return appendOptReply(out, opt, repErrInvalid, nil), nil
		}
		n.structured = true
		return appendOptReply(out, opt, repAck, nil), nil
	case optInfo, optGo:
		return n.info(opt, data, out), nil
	}
	return appendOptReply(out, opt, repErrUnsup, nil), nil
}

// info answers NBD_OPT_INFO and NBD_OPT_GO.
func (n *negotiation) info(opt uint32, data, out []byte) []byte {
	if len(data) < 6 {
		return appendOptReply(out, opt, repErrInvalid, nil)
	}
	nameLen := binary.BigEndian.Uint32(data)
	if nameLen > maxName || int(nameLen) > len(data)-6 {
		return appendOptReply(out, opt, repErrInvalid, nil)
	}
	name := data[4 : 4+nameLen]
	asked := data[4+nameLen:]
	if count := int(binary.BigEndian.Uint16(asked)); len(asked) != 2+2*count {
		return appendOptReply(out, opt, repErrInvalid, nil)
	}
	if !n.known(name) {
		return appendOptReply(out, opt, repErrUnknown, nil)
	}
	for i := 2; i < len(asked); i += 2 {
		if binary.BigEndian.Uint16(asked[i:]) == infoName {
			b := binary.BigEndian.AppendUint16(nil, infoName)
			out = appendOptReply(out, opt, repInfo, append(b, n.name...))
			break
		}
	}
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(n.size))
	b = binary.BigEndian.AppendUint16(b, n.transmissionFlags())
	out = appendOptReply(out, opt, repInfo, b)

	b = binary.BigEndian.AppendUint16(nil, infoBlockSize)
	b = binary.BigEndian.AppendUint32(b, minBlock)
	b = binary.BigEndian.AppendUint32(b, preferredBlock)
	b = binary.BigEndian.AppendUint32(b, maxPayload)
	out = appendOptReply(out, opt, repInfo, b)

	if opt == optGo {
		n.state = negDone
	}
	return appendOptReply(out, opt, repAck, nil)
}

// known reports whether the client may have asked for this export: by its name, or
// by the empty name, which means the default.
func (n *negotiation) known(name []byte) bool {
	return len(name) == 0 || string(name) == n.name
}

func (n *negotiation) transmissionFlags() uint16 {
	f := uint16(sendFlags | sendFlush | sendFUA | sendTrim | sendWriteZeroes | canMultiConn | sendFastZero)
	if n.readOnly {
		f = sendFlags | sendReadOnly | sendFlush | canMultiConn
	}
	if n.structured {
		f |= sendDF
	}
	return f
}

func appendOptReply(b []byte, opt, typ uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOptReply)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, typ)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}
