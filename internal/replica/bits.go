package replica

import "math/bits"

// bitset is a set of chunks. Its memory is taken when the first one is added.
type bitset struct {
	size  int64
	count int64
	words []uint64
}

func (s *bitset) has(i int64) bool {
	return s.count > 0 && s.words[i>>6]&(1<<(i&63)) != 0
}

func (s *bitset) add(i int64) {
	if s.words == nil {
		s.words = make([]uint64, (s.size+63)/64)
	}
	if w := &s.words[i>>6]; *w&(1<<(i&63)) == 0 {
		*w |= 1 << (i & 63)
		s.count++
	}
}

func (s *bitset) remove(i int64) {
	if !s.has(i) {
		return
	}
	s.words[i>>6] &^= 1 << (i & 63)
	if s.count--; s.count == 0 {
		s.words = nil
	}
}

func (s *bitset) addAll() {
	for i := range s.size {
		s.add(i)
	}
}

// next returns the first member ≥ i, or -1.
func (s *bitset) next(i int64) int64 {
	for s.count > 0 && i < s.size {
		if w := s.words[i>>6] >> (i & 63); w != 0 {
			return i + int64(bits.TrailingZeros64(w))
		}
		i = (i>>6 + 1) << 6
	}
	return -1
}

// blockMap has a bit for each block of a chunk.
type blockMap [16]uint64

// claim adds the blocks [from, from+n), and reports whether none was there.
func (m *blockMap) claim(from, n int) bool {
	for f, left := from, n; left > 0; {
		k := min(left, 64-f&63)
		if m[f>>6]&((^uint64(0)>>(64-k))<<(f&63)) != 0 {
			return false
		}
		f, left = f+k, left-k
	}
	for f, left := from, n; left > 0; {
		k := min(left, 64-f&63)
		m[f>>6] |= (^uint64(0) >> (64 - k)) << (f & 63)
		f, left = f+k, left-k
	}
	return true
}

func (m *blockMap) clear(from, n int) {
	for n > 0 {
		k := min(n, 64-from&63)
		m[from>>6] &^= (^uint64(0) >> (64 - k)) << (from & 63)
		from, n = from+k, n-k
	}
}

func (m *blockMap) has(i int) bool { return m[i>>6]&(1<<(i&63)) != 0 }

func (m *blockMap) set(i int) { m[i>>6] |= 1 << (i & 63) }
