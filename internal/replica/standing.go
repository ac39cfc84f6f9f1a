package replica

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"keelson.io/keelson/internal/aio"
)

// Standing is what a replica's meta says: what it is, and how far it has come.
type Standing struct {
	Desc
	Fence      uint64
	Checkpoint uint64
}

// ReadDesc reads the description of the replica in dir, without opening it. done is called later, on
// the loop.
func ReadDesc(loop aio.Loop, dir string, done func(Desc, error)) {
	readMetaIn(loop, dir, func(m openedMeta, err error) {
		if errors.Is(err, ErrUnreadable) && m.raw != nil {
			err = nil // it names the same replica as the copy that can't be read
		}
		done(m.desc, err)
	})
}

// ReadStanding reads how far the replica in dir has come, which may be open or not. done is called later, on the loop.
func ReadStanding(loop aio.Loop, dir string, done func(Standing, error)) {
	readMetaIn(loop, dir, func(m openedMeta, err error) {
		done(Standing{m.desc, m.state.fence, m.state.checkpoint}, err)
	})
}

// readMetaIn reads the meta of the replica in dir.
func readMetaIn(loop aio.Loop, dir string, done func(openedMeta, error)) {
	var f aio.File
	var err error
	t := &task{loop: loop}
	finish := func(m openedMeta, err error) {
		loop.Work(func() { closeFiles([]aio.File{f}) }, func() {
			if err != nil {
				err = fmt.Errorf("replica %s: %w", dir, err)
			}
			done(m, err)
		})
	}
	loop.Work(func() {
		f, err = loop.FS().OpenFile(filepath.Join(dir, metaName), 0)
		if errors.Is(err, os.ErrNotExist) {
			err = ErrNotFound
		}
	}, func() {
		if err != nil {
			finish(openedMeta{}, err)
			return
		}
		readMetaFile(t, f, finish)
	})
}
