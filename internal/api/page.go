package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// pages is what pages that are no methods are fetched with.
type pages struct {
	http *http.Client
	base string
}

// maxPage bounds a page that is fetched, in bytes.
const maxPage = 64 << 20

// Page fetches a page of the API that is no method, such as /metrics.
func (c *Client) Page(ctx context.Context, path string) (_ []byte, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.pages.base+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.pages.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxPage))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.200s", path, resp.Status, bytes.TrimSpace(b))
	}
	return b, err
}
