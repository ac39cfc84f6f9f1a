package xts

// narrow returns the same without wide instructions; nil if it is without them anyway.
func narrow(w *native) *native {
	if w == nil || !w.wide {
		return nil
	}
	n := *w
	n.wide = false
	return &n
}
