package imagecopy

import (
	"context"
	"sync"
)

// group runs at most workers functions at once, and ends the others' context when one fails.
type group struct {
	wg     sync.WaitGroup
	slots  chan struct{}
	cancel context.CancelCauseFunc
	once   sync.Once
	err    error // the first one; written before the functions have ended
}

func newGroup(ctx context.Context) (*group, context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	return &group{slots: make(chan struct{}, workers), cancel: cancel}, ctx
}

// Go runs fn when there is a slot for it; it waits for that.
func (g *group) Go(fn func() error) {
	g.slots <- struct{}{}
	g.wg.Go(func() {
		defer func() { <-g.slots }()
		if err := fn(); err != nil {
			g.once.Do(func() {
				g.err = err
				g.cancel(err)
			})
		}
	})
}

// Wait returns the first error, when all have ended.
func (g *group) Wait() error {
	g.wg.Wait()
	g.cancel(nil)
	return g.err
}
