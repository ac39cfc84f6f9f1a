package block

// lostText fills a lost block. It is long enough that no guest writes it by chance; one that does on purpose can't read that block again.
const lostText = "keelson: every copy of this block was damaged; reads fail until it is written anew. 7f1c9a4e52d0b386\n"

var lostBlock = func() (b [Size]byte) {
	for n := 0; n < Size; {
		n += copy(b[n:], lostText)
	}
	return b
}()

// LostSum is the checksum of a lost block.
var LostSum = Sum(lostBlock[:])

// PutLost fills a block, or several, with the content that says that the real one is lost. A member that is brought up to date gets
// it in place of a block of which no in-sync member has an intact copy, so that one such block doesn't keep a whole replica from
// being made. It is data as any other, with a checksum that matches: a crash doesn't undo it.
func PutLost(b []byte) {
	for len(b) > 0 {
		b = b[copy(b, lostBlock[:]):]
	}
}

// Intact reports whether b, one block, has the checksum sum, and isn't a lost one.
func Intact(b []byte, sum uint64) bool {
	return Sum(b) == sum && (sum != LostSum || string(b) != string(lostBlock[:]))
}
