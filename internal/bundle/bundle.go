// Package bundle collects what somebody needs who is asked for help from afar, into one compressed archive: from sources, each of
// which may fail or hang without holding up the others.
//
// Invariants: nothing goes into the archive but through the Redactor; an entry, and the whole, have at most the bytes that were
// allowed (of what is too long the end is kept: the newest); what couldn't be had is named in the archive, in errors.txt and in
// manifest.json. Goroutines: one for each source that is being asked. One that doesn't return when its time is over is left behind.
package bundle

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
)

// Source is where an entry comes from.
type Source struct {
	Name string // of the entry, such as "kernel/meminfo"
	// Collect returns the content. What it returns beside an error is kept too.
	Collect func(ctx context.Context) ([]byte, error)
}

// Options bound an archive. Zero values are the defaults.
type Options struct {
	MaxEntry int64         // bytes of an entry; 8 MiB
	MaxTotal int64         // bytes of all entries, before they are compressed; 128 MiB
	Timeout  time.Duration // of a source; 20 s
	Redactor *Redactor
	Now      func() time.Time
	// About is what the manifest says besides: version, node.
	About map[string]string
	// Progress is told of each entry; nil isn't.
	Progress func(e Entry)
}

// Entry is a line of the manifest.
type Entry struct {
	Name     string `json:"name"`
	Bytes    int    `json:"bytes"`
	Cut      bool   `json:"cut,omitempty"`      // its beginning is missing
	Redacted int    `json:"redacted,omitempty"` // secrets that were taken out
	Error    string `json:"error,omitempty"`
}

// Manifest is manifest.json, the last entry of an archive.
type Manifest struct {
	Time    time.Time         `json:"time"`
	About   map[string]string `json:"about"`
	Entries []Entry           `json:"entries"`
}

func (o *Options) setDefaults() {
	if o.MaxEntry == 0 {
		o.MaxEntry = 8 << 20
	}
	if o.MaxTotal == 0 {
		o.MaxTotal = 128 << 20
	}
	if o.Timeout == 0 {
		o.Timeout = 20 * time.Second
	}
	if o.Redactor == nil {
		o.Redactor = NewRedactor()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// errNoRoom: the archive has all the bytes that it may have.
var errNoRoom = errors.New("left out: the bundle is as large as it may be")

// Write writes an archive (tar, gzip) of the sources, in their order, below a directory. Its error is one of writing, or of
// ctx: sources that fail are in the archive.
func Write(ctx context.Context, w io.Writer, dir string, sources []Source, o Options) (Manifest, error) {
	o.setDefaults()
	z := gzip.NewWriter(w)
	a := &archive{tar: tar.NewWriter(z), dir: dir, opts: o, left: o.MaxTotal}
	m := Manifest{Time: o.Now().UTC().Truncate(time.Second), About: o.About}
	var failed strings.Builder
	for _, s := range sources {
		if err := ctx.Err(); err != nil {
			return m, err
		}
		e, err := a.add(ctx, s)
		if err != nil {
			return m, err
		}
		if e.Error != "" {
			fmt.Fprintf(&failed, "%s: %s\n", e.Name, e.Error)
		}
		m.Entries = append(m.Entries, e)
		if o.Progress != nil {
			o.Progress(e)
		}
	}
	if err := a.put("errors.txt", []byte(failed.String())); err != nil {
		return m, err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return m, err
	}
	if err := a.put("manifest.json", append(text, '\n')); err != nil {
		return m, err
	}
	return m, errors.Join(a.tar.Close(), z.Close())
}

type archive struct {
	tar  *tar.Writer
	dir  string
	opts Options
	left int64
}

// add asks a source and writes what it says. The error is one of writing.
func (a *archive) add(ctx context.Context, s Source) (Entry, error) {
	e := Entry{Name: s.Name}
	if a.left <= 0 {
		e.Error = errNoRoom.Error()
		return e, nil
	}
	content, err := ask(ctx, s, a.opts.Timeout)
	if err != nil {
		clean, n := a.opts.Redactor.Redact([]byte(err.Error()))
		e.Error, e.Redacted = string(clean), n
	}
	// First the secrets, then the cut: half a secret would not be known as one.
	content, n := a.opts.Redactor.Redact(content)
	e.Redacted += n
	if most := min(a.opts.MaxEntry, a.left); int64(len(content)) > most {
		content, e.Cut = content[int64(len(content))-most:], true
	}
	e.Bytes = len(content)
	if len(content) == 0 {
		return e, nil
	}
	a.left -= int64(len(content))
	return e, a.put(s.Name, content)
}

// ask calls a source, and doesn't wait for one that hangs.
func ask(ctx context.Context, s Source, limit time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	type answer struct {
		content []byte
		err     error
	}
	got := make(chan answer, 1)
	go func() {
		var r answer
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("it crashed: %v", p)
			}
			got <- r
		}()
		r.content, r.err = s.Collect(ctx)
	}()
	select {
	case r := <-got:
		return r.content, r.err
	case <-ctx.Done():
	}
	// It may have ended in the same moment.
	select {
	case r := <-got:
		return r.content, r.err
	default:
		return nil, fmt.Errorf("no answer within %s", limit)
	}
}

func (a *archive) put(name string, content []byte) error {
	h := &tar.Header{Name: path.Join(a.dir, name), Mode: 0o600, Size: int64(len(content)), ModTime: a.opts.Now(), Typeflag: tar.TypeReg}
	if err := a.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if _, err := a.tar.Write(content); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	return nil
}
