package power

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
)

const sector = 512

// Flags of an entry of dm-log-writes.
const (
	flagFlush   = 1 << 0
	flagFUA     = 1 << 1
	flagDiscard = 1 << 2
	flagMark    = 1 << 3
)

// entry is one write, flush or mark, in the order in which they reached the disk: writes stand before the flush
// that made them durable.
type entry struct {
	at    int64 // sector on the disk
	n     int64 // sectors
	flags uint64
	data  int64 // offset in the log
	mark  string
}

// readLog reads what dm-log-writes recorded.
func readLog(f *os.File) ([]entry, error) {
	le := binary.LittleEndian
	b := make([]byte, sector)
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, err
	}
	if le.Uint64(b) != 0x6a736677736872 || le.Uint64(b[8:]) != 1 || le.Uint32(b[24:]) != sector {
		return nil, fmt.Errorf("the log begins with % x", b[:32])
	}
	var out []entry
	off := int64(sector)
	for range le.Uint64(b[16:]) {
		e := make([]byte, sector)
		if _, err := f.ReadAt(e, off); err != nil {
			return nil, fmt.Errorf("entry %d: %w", len(out), err)
		}
		off += sector
		x := entry{at: int64(le.Uint64(e)), n: int64(le.Uint64(e[8:])), flags: le.Uint64(e[16:]), data: off}
		if x.flags&flagMark != 0 {
			x.mark = strings.TrimRight(string(e[32:32+min(le.Uint64(e[24:]), sector-32)]), "\x00")
		} else if x.flags&flagDiscard == 0 {
			off += x.n * sector
		}
		out = append(out, x)
	}
	return out, nil
}

// disk is what the sectors hold that were written since the file system was made.
type disk struct {
	log  *os.File
	made map[int64][]byte
}

func (d *disk) clone() *disk {
	c := &disk{log: d.log, made: make(map[int64][]byte, len(d.made))}
	for k, v := range d.made {
		c.made[k] = v
	}
	return c
}

// apply carries out an entry. With torn, each of its sectors is written or not.
func (d *disk) apply(e entry, torn *rand.Rand) error {
	if e.flags&flagMark != 0 || e.n == 0 {
		return nil
	}
	buf := make([]byte, e.n*sector)
	if e.flags&flagDiscard == 0 {
		if _, err := d.log.ReadAt(buf, e.data); err != nil {
			return err
		}
	}
	for i := range e.n {
		if torn == nil || torn.IntN(2) == 0 {
			d.made[e.at+i] = buf[i*sector : (i+1)*sector]
		}
	}
	return nil
}

// build writes the disk to a file: fresh is the file system as it was made.
func (d *disk) build(path, fresh string) error {
	// Another file than the disk before: a mount namespace that was made while that was mounted has it mounted still, and its file system goes on
	// writing to it.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	in, err := os.Open(fresh)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := copySparse(out, in); err != nil {
		return err
	}
	for at, data := range d.made {
		if _, err := out.WriteAt(data, at*sector); err != nil {
			return err
		}
	}
	return nil
}

func copySparse(out, in *os.File) error {
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	for pos := int64(0); ; {
		const seekData, seekHole = 3, 4
		from, err := in.Seek(pos, seekData)
		if err != nil {
			return nil // no more data
		}
		to, err := in.Seek(from, seekHole)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, from), io.NewSectionReader(in, from, to-from)); err != nil {
			return err
		}
		pos = to
	}
}
