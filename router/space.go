package router

import (
	"bytes"
	"context"
	"errors"
	"iter"

	"golang.org/x/sync/errgroup"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// Space is a keyspace as a store of keys: every operation of a client, carried
// out on the shards that hold the keys. It is a small value.
type Space struct {
	r       *Router
	id      uint32
	session *Session // of writes; nil: none
}

// Space returns the keyspace with this id.
func (r *Router) Space(id uint32) Space { return Space{r: r, id: id} }

// Get returns the value of key, or shard.ErrNotFound.
func (s Space) Get(ctx context.Context, key []byte, c shard.Consistency) (shard.Value, error) {
	if err := shard.CheckKeySize(key); err != nil {
		return shard.Value{}, err
	}
	if c == shard.Linearizable {
		switch v, found, ok := s.readNear(ctx, key); {
		case found:
			return v, nil
		case ok:
			return shard.Value{}, shard.ErrNotFound
		}
	}
	q := &shard.Request{Keyspace: s.id, Kind: shard.KindGet, Consistency: c, Key: key}
	resp := s.r.run(ctx, q, place{key: key}, nil)
	switch {
	case resp.Err != nil:
		return shard.Value{}, resp.Err
	case !resp.Found || resp.Value == nil:
		return shard.Value{}, shard.ErrNotFound
	}
	return *resp.Value, nil
}

// Put stores value under key.
func (s Space) Put(ctx context.Context, key, value []byte) (shard.Receipt, error) {
	var (
		q    *shard.Request
		body []byte
		err  error
	)
	if shard.PutBytes(key, value) <= smallPut {
		p := new(putRequest)
		q, body = &p.q, p.body[:0]
	} else {
		q = new(shard.Request)
	}
	if q.Command, err = shard.PutCommandIn(body, key, value); err != nil {
		return shard.Receipt{}, err
	}
	return s.write(ctx, q, place{key: key}, nil)
}

// Propose carries cmd, which is about key, to the state machine that serves the
// keyspace, and returns its encoded answer.
func (s Space) Propose(ctx context.Context, key, cmd []byte) ([]byte, shard.Receipt, error) {
	c, err := shard.KeyedCommand(key, cmd)
	if err != nil {
		return nil, shard.Receipt{}, err
	}
	q := &shard.Request{Keyspace: s.id, Kind: shard.KindWrite, Command: c}
	resp := s.r.runIn(ctx, q, place{key: key}, nil, s.session)
	return resp.Result, resp.Receipt, resp.Err
}

// Shard returns the shard that holds key.
func (s Space) Shard(ctx context.Context, key []byte) (raft.ShardID, error) {
	if err := shard.CheckKeySize(key); err != nil {
		return 0, err
	}
	route, err := s.r.find(ctx, s.id, place{key: key})
	return route.Desc.Shard, err
}

// smallPut is the length up to which the body of a put lies beside its request, in
// one piece of memory.
const smallPut = 192

type putRequest struct {
	q    shard.Request
	body [smallPut]byte
}

// Delete removes key. An absent key is no error.
func (s Space) Delete(ctx context.Context, key []byte) (shard.Receipt, error) {
	cmd, err := shard.DeleteCommand(key)
	if err != nil {
		return shard.Receipt{}, err
	}
	return s.write(ctx, &shard.Request{Command: cmd}, place{key: key}, nil)
}

// CAS stores value under key if the key's version is want (zero: absent), else
// it returns *shard.ConflictError.
func (s Space) CAS(ctx context.Context, key []byte, want shard.Version, value []byte) (shard.Receipt, error) {
	cmd, err := shard.CASCommand(key, want, value)
	if err != nil {
		return shard.Receipt{}, err
	}
	return s.write(ctx, &shard.Request{Command: cmd}, place{key: key}, nil)
}

// Txn applies t on the one shard that holds all its keys; keys of several
// shards are refused with *shard.CrossShardError.
func (s Space) Txn(ctx context.Context, t shard.Txn) (shard.TxnResult, error) {
	cmd, err := t.Command()
	if err != nil {
		return shard.TxnResult{}, err
	}
	q := &shard.Request{Keyspace: s.id, Kind: shard.KindWrite, Command: cmd}
	at, fit, err := aim(q)
	if err != nil {
		return shard.TxnResult{}, err
	}
	resp := s.r.runIn(ctx, q, at, fit, s.session)
	return txnResult(resp)
}

// txnResult returns what a response says of a transaction.
func txnResult(resp *shard.Response) (shard.TxnResult, error) {
	var gone *shard.ResultGoneError
	switch {
	case errors.As(resp.Err, &gone) && !gone.Version.IsZero():
		return shard.TxnResult{Succeeded: gone.Succeeded, Receipt: shard.Receipt{Version: gone.Version}}, resp.Err
	case resp.Err != nil:
		return shard.TxnResult{}, resp.Err
	case resp.Txn == nil:
		return shard.TxnResult{}, &shard.AmbiguousError{Why: "the answer lacks the transaction's result"}
	}
	return *resp.Txn, nil
}

// write carries out a write whose keys are known to lie at one place, or are
// checked by fit.
func (s Space) write(ctx context.Context, q *shard.Request, at place, fit fit) (shard.Receipt, error) {
	q.Keyspace, q.Kind = s.id, shard.KindWrite
	resp := s.r.runIn(ctx, q, at, fit, s.session)
	return resp.Receipt, resp.Err
}

// Scan is a range to be read in order.
type Scan struct {
	// Start and End bound the keys, [Start, End). Empty: from the first, to the last.
	Start, End []byte
	// Limit bounds the pairs yielded. Zero: no bound.
	Limit int
	// PageBytes bounds keys and values of one page. Zero: shard.DefaultScanBytes.
	PageBytes   int
	Reverse     bool
	Consistency shard.Consistency
}

// Scan yields the pairs of a range in key order, or in reverse. It reads page by
// page and shard by shard: each page is one consistent view, the whole is not.
// Options.Timeout bounds each page if ctx has no deadline. An error is yielded
// once and last, with a zero pair.
func (s Space) Scan(ctx context.Context, sc Scan) iter.Seq2[shard.Pair, error] {
	return func(yield func(shard.Pair, error) bool) {
		if err := sc.check(); err != nil {
			yield(shard.Pair{}, err)
			return
		}
		left := sc.Limit // stays zero if there is no bound
		q := shard.Request{
			Keyspace: s.id, Kind: shard.KindScan, Consistency: sc.Consistency, MaxBytes: sc.PageBytes,
			Start: sc.Start, End: sc.End, Reverse: sc.Reverse,
		}
		for len(q.End) == 0 || bytes.Compare(q.Start, q.End) < 0 {
			q.Limit = min(left, shard.MaxScanPairs)
			resp := s.r.Do(ctx, &q)
			if resp.Err != nil {
				yield(shard.Pair{}, resp.Err)
				return
			}
			for _, p := range resp.Pairs {
				if !yield(p, nil) {
					return
				}
				if left > 0 {
					if left--; left == 0 {
						return
					}
				}
			}
			if !resp.More || len(resp.Resume) == 0 {
				return
			}
			if sc.Reverse {
				q.End = resp.Resume
			} else {
				q.Start = resp.Resume
			}
		}
	}
}

func (sc *Scan) check() error {
	if sc.Limit < 0 {
		return &shard.ArgumentError{Field: "limit", Reason: "it is negative; use 0 for no limit"}
	}
	return shard.CheckBounds(sc.Start, sc.End)
}

// MultiGet reads many keys, which may lie in many shards; results[i] answers
// keys[i]. At most Options.Parallel reads are under way at a time. Each read is
// linearizable by itself; together they are no consistent view. If err is not
// nil, some reads failed and the results are not complete.
func (s Space) MultiGet(ctx context.Context, keys [][]byte, c shard.Consistency) (results []shard.TxnGet, err error) {
	results = make([]shard.TxnGet, len(keys))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.r.o.Parallel)
	for i, key := range keys {
		g.Go(func() error {
			v, err := s.Get(ctx, key, c)
			switch {
			case errors.Is(err, shard.ErrNotFound):
				return nil
			case err != nil:
				return err
			}
			results[i] = shard.TxnGet{Found: true, Value: v}
			return nil
		})
	}
	return results, g.Wait()
}

// Plain is a keyspace with linearizable operations only and plain signatures,
// as package catalog wants its store.
type Plain struct{ Space }

// Plain returns the keyspace in this form.
func (s Space) Plain() Plain { return Plain{s} }

// Get returns the value of key, or shard.ErrNotFound.
func (p Plain) Get(ctx context.Context, key []byte) (shard.Value, error) {
	return p.Space.Get(ctx, key, shard.Linearizable)
}

// Scan returns the first limit pairs (zero: all) of [start, end).
func (p Plain) Scan(ctx context.Context, start, end []byte, limit int) ([]shard.Pair, error) {
	var out []shard.Pair
	for pair, err := range p.Space.Scan(ctx, Scan{Start: start, End: end, Limit: limit}) {
		if err != nil {
			return nil, err
		}
		out = append(out, pair)
	}
	return out, nil
}
