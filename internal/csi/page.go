package csi

import (
	"cmp"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// tokenPrefix begins the tokens of lists; the id of the last that was shown follows.
const tokenPrefix = "after/"

// beginOf returns the id behind which a list that goes on begins.
func beginOf(r interface {
	GetMaxEntries() int32
	GetStartingToken() string
}) (after string, err error) {
	if r.GetMaxEntries() < 0 {
		return "", status.Errorf(codes.InvalidArgument, "max_entries: %d is negative", r.GetMaxEntries())
	}
	after, ok := strings.CutPrefix(r.GetStartingToken(), tokenPrefix)
	if r.GetStartingToken() != "" && !ok {
		return "", status.Errorf(codes.Aborted, "starting_token %q isn't one that was given out; begin without one", r.GetStartingToken())
	}
	return after, nil
}

// page sorts a list by its ids, and cuts it after most entries, if that isn't 0. next is the token for the rest; "" if that was all.
func page[T any](list []T, id func(T) string, most int32) (part []T, next string) {
	slices.SortFunc(list, func(a, b T) int { return cmp.Compare(id(a), id(b)) })
	if n := int(most); n > 0 && n < len(list) {
		return list[:n], tokenPrefix + id(list[n-1])
	}
	return list, ""
}
