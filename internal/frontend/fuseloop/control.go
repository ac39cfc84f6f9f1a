package fuseloop

import (
	"bytes"
	"syscall"
)

// control answers the requests that don't reach the device: there is one directory with
// one file in it, and neither ever changes.
func (s *session) control(h header, n int) {
	b := s.short[:outHeaderLen]
	switch h.opcode {
	case opInit:
		s.init(h, n)
		return
	case opForget, opBatchForget:
		return // these have no answer
	case opLookup:
		if h.node != rootNode || s.name(n) != fileName {
			s.fail(h.unique, syscall.ENOENT)
			return
		}
		b = appendEntry(b, s.dev.Size())
	case opGetattr:
		b = appendAttrOut(b, h.node, s.dev.Size())
	case opSetattr:
		valid, size := order.Uint32(s.head[inHeaderLen:]), order.Uint64(s.head[inHeaderLen+16:])
		if valid&(setattrMode|setattrUID|setattrGID) != 0 || valid&setattrSize != 0 && size != uint64(s.dev.Size()) {
			s.fail(h.unique, syscall.EPERM)
			return
		}
		b = appendAttrOut(b, h.node, s.dev.Size())
	case opOpen, opOpendir:
		b = appendOpen(b, h.node)
	case opReaddir:
		b = s.readdir(b)
	case opStatfs:
		b = appendStatfs(b, s.dev.Size())
	case opRelease, opReleasedir, opFlush, opFsyncdir, opDestroy:
		// Nothing is kept for an open file.
	default:
		// Also INTERRUPT: the kernel doesn't send it again after ENOSYS. Everything at the
		// device is answered soon enough.
		s.fail(h.unique, syscall.ENOSYS)
		return
	}
	s.reply(h.unique, len(b), nil)
}

// name is the name that a LOOKUP of n bytes asks for.
func (s *session) name(n int) string {
	name := s.head[inHeaderLen:min(n, headLen)]
	if i := bytes.IndexByte(name, 0); i >= 0 {
		return string(name[:i])
	}
	return "" // longer than the only name there is
}

// init agrees with the kernel on version and flags.
func (s *session) init(h header, n int) {
	if n < inHeaderLen+16 {
		s.fail(h.unique, syscall.EPROTO)
		return
	}
	a := s.head[inHeaderLen:]
	major, minor := order.Uint32(a), order.Uint32(a[4:])
	if major != kernelMajor || minor < oldestMinor {
		s.log.Error("kernel's FUSE interface is too old", "major", major, "minor", minor, "needs", oldestMinor)
		s.fail(h.unique, syscall.EPROTO)
		return
	}
	offered := uint64(order.Uint32(a[12:]))
	if offered&initExt != 0 && n >= inHeaderLen+20 {
		offered |= uint64(order.Uint32(a[16:])) << 32
	}
	s.flags = offered & (initAsyncRead | initBigWrites | initAsyncDIO | initMaxPages | initExt | initResend)
	b := appendInit(s.short[:outHeaderLen], s.flags, maxInFlight)
	s.reply(h.unique, len(b), nil)
	if !s.initDone {
		s.initDone = true
		close(s.inited)
	}
}

// readdir appends the entries from the offset that was asked for.
func (s *session) readdir(b []byte) []byte {
	from := order.Uint64(s.head[inHeaderLen+8:])
	room := int(order.Uint32(s.head[inHeaderLen+16:])) + len(b)
	for i, e := range []struct {
		node uint64
		typ  uint32
		name string
	}{{rootNode, syscall.DT_DIR, "."}, {rootNode, syscall.DT_DIR, ".."}, {fileNode, syscall.DT_REG, fileName}} {
		if uint64(i) < from {
			continue
		}
		if longer := appendDirent(b, e.node, uint64(i+1), e.typ, e.name); len(longer) <= room {
			b = longer
		}
	}
	return b
}
