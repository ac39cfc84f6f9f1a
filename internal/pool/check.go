package pool

import "context"

// CheckDevice says why no pool can be made of a device as it is: ErrInvalid, ErrInUse or ErrSigned. It changes nothing.
func CheckDevice(ctx context.Context, device string) error {
	return prepareDevice(ctx, AddOptions{Device: device})
}
