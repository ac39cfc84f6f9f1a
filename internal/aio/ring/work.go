package ring

import "sync"

// Work implements aio.Loop.
func (l *Loop) Work(fn func(), done func()) {
	l.workers.add(job{fn, func() { l.post(done) }})
}

type job struct{ fn, then func() }

// workers is a pool of goroutines that start when there is work for one more, and stay.
type workers struct {
	max int
	wg  sync.WaitGroup

	// mu guards what follows.
	mu      sync.Mutex
	cond    *sync.Cond
	queue   []job
	started int
	idle    int
	closed  bool
}

func (w *workers) init(n int) {
	w.max = n
	w.cond = sync.NewCond(&w.mu)
}

// add queues a job; it is dropped if the pool is closed.
func (w *workers) add(j job) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.queue = append(w.queue, j)
	if w.idle >= len(w.queue) {
		w.cond.Signal()
	} else if w.started < w.max {
		w.started++
		w.wg.Add(1)
		go w.run()
	}
}

func (w *workers) run() {
	defer w.wg.Done()
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for len(w.queue) == 0 {
			if w.closed {
				return
			}
			w.idle++
			w.cond.Wait()
			w.idle--
		}
		j := w.queue[0]
		w.queue[0] = job{}
		w.queue = w.queue[1:]
		w.mu.Unlock()
		j.fn()
		j.then()
		w.mu.Lock()
	}
}

// close lets the queue run empty, takes no more, and waits for the goroutines.
func (w *workers) close() {
	w.mu.Lock()
	w.closed = true
	w.cond.Broadcast()
	w.mu.Unlock()
	w.wg.Wait()
}
