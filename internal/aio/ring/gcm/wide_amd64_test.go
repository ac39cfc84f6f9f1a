package gcm

import "crypto/cipher"

// everyLength returns the same AEAD, but one that does short messages itself too.
func everyLength(a cipher.AEAD) cipher.AEAD {
	w, ok := a.(*wide)
	if !ok {
		return nil
	}
	all := *w
	all.least = 0
	return &all
}
