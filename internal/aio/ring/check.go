package ring

// Check says why no loop can be made on this machine: it makes a small io_uring of the kind that a loop has, and lets it go.
func Check() error {
	u, err := newUring(8)
	if err != nil {
		return err
	}
	u.close()
	return nil
}
