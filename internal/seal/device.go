package seal

import (
	"syscall"

	"keelson.io/keelson/internal/block"
)

// Volume is what a Device stands before.
type Volume interface {
	Size() int64
	Submit(*block.Request)
	Full() bool
}

// Device encrypts a volume. It is a frontend's device.
//
// A block is encrypted where it is, in the request's own memory: nobody reads that again once it was submitted, as whoever sends a
// request anew has it from its client anew. A block of zeros in the volume is one that was never written, or was trimmed, and
// reads as zeros; one that is written with zeros becomes ciphertext as any other.
type Device struct {
	vol    Volume
	cipher *Cipher // nil once closed
	post   func(func())
	free   *read
	reads  int // at the volume
	closed bool
}

// read is a read that is at the volume.
type read struct {
	d    *Device
	done func(*block.Request) // the request's own
	fn   func(*block.Request)
	next *read
}

// NewDevice returns a volume whose data is encrypted with a cipher, which is the device's from now on. post has a function called
// later, on the volume's loop.
func NewDevice(vol Volume, c *Cipher, post func(func())) *Device {
	return &Device{vol: vol, cipher: c, post: post}
}

// Size is the volume's.
func (d *Device) Size() int64 { return d.vol.Size() }

// Full is the volume's.
func (d *Device) Full() bool { return d.vol.Full() }

// Submit starts a request.
func (d *Device) Submit(r *block.Request) {
	switch {
	case d.closed && r.Op != block.OpFlush:
		r.Err = syscall.EIO
		d.post(func() { r.Done(r) })
		return
	case (r.Op != block.OpRead && r.Op != block.OpWrite) || !whole(r):
		// Nothing to encrypt; or the volume says what is wrong with it.
	case r.Op == block.OpWrite:
		d.cipher.Encrypt(r.Data, r.Data, number(r))
	default:
		d.watch(r)
	}
	d.vol.Submit(r)
}

// whole reports whether a read or write is of whole blocks.
func whole(r *block.Request) bool {
	return r.Off >= 0 && r.Off%block.Size == 0 && r.Len%block.Size == 0 && int64(len(r.Data)) == r.Len
}

// number is that of a request's first block: its tweak.
func number(r *block.Request) uint64 { return uint64(r.Off) / block.Size }

// watch has a read come back here first.
func (d *Device) watch(r *block.Request) {
	w := d.free
	if w == nil {
		w = &read{d: d}
		w.fn = w.answered
	} else {
		d.free = w.next
	}
	w.done, r.Done = r.Done, w.fn
	d.reads++
}

// answered takes the answer to a read.
func (w *read) answered(r *block.Request) {
	d := w.d
	r.Done = w.done
	w.done, w.next, d.free = nil, d.free, w
	if r.Err == nil {
		d.decrypt(r.Data, number(r))
	}
	d.reads--
	d.finish()
	r.Done(r)
}

// decrypt decrypts whole blocks, but for those of zeros.
func (d *Device) decrypt(data []byte, first uint64) {
	for from := 0; from < len(data); {
		to := from
		for to < len(data) && !block.IsZero(data[to:to+block.Size]) {
			to += block.Size
		}
		if to > from {
			d.cipher.Decrypt(data[from:to], data[from:to], first+uint64(from/block.Size))
		}
		from = to + block.Size
	}
}

// Close wipes the key, once the reads that are at the volume are answered. What is submitted then fails. On the loop.
func (d *Device) Close() {
	d.closed = true
	d.finish()
}

func (d *Device) finish() {
	if d.closed && d.reads == 0 && d.cipher != nil {
		_ = d.cipher.Close() // it was wiped, which is what counts
		d.cipher = nil
	}
}
