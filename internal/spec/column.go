package spec

// ColumnSize returns the size in bytes of each column of a volume: the volume itself for one column, else its
// share, rounded up to whole stripe units.
func ColumnSize(size int64, columns int) int64 {
	if columns <= 1 {
		return size
	}
	stripes := (size + StripeUnit - 1) / StripeUnit
	return (stripes + int64(columns) - 1) / int64(columns) * StripeUnit
}
