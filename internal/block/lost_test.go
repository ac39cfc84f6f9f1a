package block

import "testing"

func TestIntact(t *testing.T) {
	data := make([]byte, Size)
	data[7] = 1
	if !Intact(data, Sum(data)) || Intact(data, Sum(data)^1) {
		t.Error("a block with its own checksum must be intact, one with another mustn't")
	}
	if zeros := make([]byte, Size); !Intact(zeros, 0) {
		t.Error("zeros must be intact")
	}
	lost := make([]byte, 2*Size)
	PutLost(lost)
	for _, b := range [][]byte{lost[:Size], lost[Size:]} {
		if Intact(b, Sum(b)) {
			t.Error("a lost block must not be intact")
		}
	}
	if Sum(lost[:Size]) != LostSum {
		t.Error("LostSum isn't that of a lost block")
	}
	lost[Size-1] ^= 1
	if b := lost[:Size]; !Intact(b, Sum(b)) {
		t.Error("a block that only looks like a lost one is data")
	}
}
