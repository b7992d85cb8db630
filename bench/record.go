package bench

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/flotillakv/flotilla/bench/workload"
)

const (
	// histMax bounds what a histogram tells apart, in microseconds; anything
	// slower is counted as this.
	histMax    = int64(time.Minute / time.Microsecond)
	histDigits = 3
	// recorderShards bounds the number of locks and sets of histograms that the
	// clients share.
	recorderShards = 16
)

// The series of a run: one per kind of operation, then what all operations
// took from planned and from real send time.
const (
	seriesResponse = int(workload.OpCount) + iota
	seriesService
	seriesCount
)

// hists holds a histogram, in microseconds, per series; nil where unused.
type hists [seriesCount]*hdrhistogram.Histogram

func (h *hists) record(series int, d time.Duration) {
	if h[series] == nil {
		h[series] = hdrhistogram.New(1, histMax, histDigits)
	}
	v := min(max(d.Microseconds(), 1), histMax)
	_ = h[series].RecordValue(v) // v lies within the bounds
}

// moveTo adds everything in h to each of the others and empties h.
func (h *hists) moveTo(others ...*hists) {
	for i, from := range h {
		if from == nil || from.TotalCount() == 0 {
			continue
		}
		for _, to := range others {
			if to[i] == nil {
				to[i] = hdrhistogram.New(1, histMax, histDigits)
			}
			to[i].Merge(from)
		}
		from.Reset()
	}
}

func (h *hists) count(series int) int64 {
	if h[series] == nil {
		return 0
	}
	return h[series].TotalCount()
}

// millis returns the value at a percentile of a series, in milliseconds.
func (h *hists) millis(series int, percentile float64) float64 {
	if h[series] == nil {
		return 0
	}
	return float64(h[series].ValueAtPercentile(percentile)) / 1000
}

// recorder collects what the clients measure. Clients write to one of its
// shards; the owner empties all of them once per tick.
type recorder struct {
	shards []recorderShard
}

type recorderShard struct {
	mu     sync.Mutex
	hists  hists
	errors map[string]int64
	spare  hists    // empty but between cut and merge
	_      [64]byte // keep neighbours off one cache line
}

func newRecorder(clients int) *recorder {
	r := &recorder{shards: make([]recorderShard, min(clients, recorderShards))}
	for i := range r.shards {
		r.shards[i].errors = make(map[string]int64)
	}
	return r
}

func (r *recorder) shard(client int) *recorderShard { return &r.shards[client%len(r.shards)] }

// sample is what one acknowledged operation took. The parts are those of a
// read-modify-write.
type sample struct {
	op                workload.Op
	response, service time.Duration
	read, write       time.Duration
}

func (s *recorderShard) done(m sample) {
	s.mu.Lock()
	s.hists.record(int(m.op), m.response)
	s.hists.record(seriesResponse, m.response)
	s.hists.record(seriesService, m.service)
	if m.op == workload.ReadModifyWrite {
		s.hists.record(int(workload.Read), m.read)
		s.hists.record(int(workload.Update), m.write)
	}
	s.mu.Unlock()
}

func (s *recorderShard) failed(kind string) {
	s.mu.Lock()
	s.errors[kind]++
	s.mu.Unlock()
}

// cut ends a span: what was recorded in it waits for merge. The errors are added to errs.
func (r *recorder) cut(errs map[string]int64) {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		s.hists, s.spare = s.spare, s.hists
		for kind, n := range s.errors {
			errs[kind] += n
			delete(s.errors, kind)
		}
		s.mu.Unlock()
	}
}

// merge moves what was cut off to the given sets of histograms. It takes its time: some
// milliseconds of a processor would be seen in what is measured.
func (r *recorder) merge(to ...*hists) {
	for i := range r.shards {
		r.shards[i].spare.moveTo(to...)
		time.Sleep(time.Millisecond)
	}
}
