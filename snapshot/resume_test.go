package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// advance changes some keys of a replica made by fill, and moves its applied index on.
func advance(t testing.TB, e *engine.Engine, d raft.Descriptor, index raft.Index, keys ...int) {
	t.Helper()
	b := e.NewBatch()
	defer b.Close()
	for _, k := range keys {
		b.Set(d.Keyspace, fmt.Appendf(nil, "%sk%06d-%d", d.Start, k, 1), fmt.Appendf(make([]byte, 900), "%d at %d", k, index))
	}
	b.SetApplied(d.Shard, raft.AppliedState{Applied: index, AppliedTerm: 5, TruncIndex: index, TruncTerm: 5, ConfIndex: 3, GroupTs: 78})
	check(t, b.Commit(true))
	check(t, b.Wait())
}

// TestTenCuts cuts a transfer at ten random points. However it goes on, by the same
// sender, by another one in turn, from a replica that has moved on, or after restarts
// of the receiver: no chunk of a table is sent twice, and what arrives is the sender's
// replica.
func TestTenCuts(t *testing.T) {
	const keys = 5000
	for _, how := range []string{"same sender", "another sender", "newer replica", "receiver restarts"} {
		for seed := range uint64(2) {
			t.Run(fmt.Sprintf("%s/%d", how, seed), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 5))
				p := newPair(t, keys)
				fs := engine.NewMemFS()
				to := openEngine(t, fs, 2)
				p.to, p.recv = to, newStore(t, to, 2, nil)
				p.link.to = p.recv
				senders := []*engine.Engine{p.from, openEngine(t, engine.NewMemFS(), 3)}
				fill(t, senders[1], p.desc, keys, 1)
				stores := []*Store{p.send, newStore(t, senders[1], 3, nil)}
				whole := record(t, p.send, p.desc)
				total := whole.meta.Chunks()
				for len(p.link.cuts) < 10 {
					if c := 1 + rng.IntN(total-1); !slices.Contains(p.link.cuts, c) {
						p.link.cuts = append(p.link.cuts, c)
					}
				}
				slices.Sort(p.link.cuts)
				index := raft.Index(100 + keys)
				var err error
				for try := 0; ; try++ {
					if try > 11 {
						t.Fatalf("not there after %d tries: %v", try, err)
					}
					opened := false
					_, _, err = stores[try%2].Send(t.Context(), &p.desc, 2, func(ctx context.Context, h []byte) (Stream, error) {
						if opened && how != "same sender" {
							return nil, Verdict(errors.New("gone"))
						}
						opened = true
						return p.link.open(ctx, h)
					})
					if err == nil {
						break
					}
					if how == "same sender" {
						t.Fatal(err)
					}
					switch how {
					case "another sender":
						index++
						for _, e := range senders {
							advance(t, e, p.desc, index)
						}
					case "newer replica":
						index++
						for _, e := range senders {
							advance(t, e, p.desc, index, rng.IntN(keys))
						}
					case "receiver restarts":
						p.recv.Close()
						check(t, to.Close())
						to = openEngine(t, fs, 2)
						p.to, p.recv = to, newStore(t, to, 2, nil)
						p.link.to = p.recv
					}
				}
				p.same(t)
				if len(p.link.cuts) > 0 {
					t.Fatalf("%d cuts were not made", len(p.link.cuts))
				}
				twice, sent := 0, 0
				for _, n := range p.link.sent {
					sent += n
					if n > 1 {
						twice++
					}
				}
				if twice > 0 {
					t.Fatalf("%d of %d chunks were sent again", twice, sent)
				}
				// A key that changed changes its table, and its neighbour's end at most.
				if limit := total; how != "newer replica" && sent != limit {
					t.Fatalf("%d chunks were sent of %d", sent, limit)
				}
				if how == "newer replica" && sent > total+10*6 {
					t.Fatalf("%d chunks were sent of %d, for ten changed keys", sent, total)
				}
				if c := p.recv.Counters(); how == "another sender" && c.ReceivedSpared == 0 {
					t.Fatalf("nothing was spared: %+v", c)
				}
				t.Logf("%d chunks of %d in %d streams", sent, total, p.link.streams)
			})
		}
	}
}

// TestTablesAreCutByContent: a change in one place changes the tables there, and no
// others; two replicas with the same content make the same tables.
func TestTablesAreCutByContent(t *testing.T) {
	tables := func(e *engine.Engine, d raft.Descriptor) (out []string) {
		for _, f := range record(t, newStore(t, e, 1, func(o *Options) { o.TableBytes = 200 << 10 }), d).meta.Files {
			if f.Kind == FileTable {
				out = append(out, fmt.Sprint(f.Size, f.Sums))
			}
		}
		return out
	}
	d := descOf(shard1, "a", "q")
	a, b := openEngine(t, engine.NewMemFS(), 1), openEngine(t, engine.NewMemFS(), 2)
	fill(t, a, d, 5000, 1)
	fill(t, b, d, 5000, 1)
	before := tables(a, d)
	if len(before) < 12 || !slices.Equal(before, tables(b, d)) {
		t.Fatalf("two equal replicas make %d and %d tables, or others", len(before), len(tables(b, d)))
	}
	for i, keys := range [][]int{{0}, {2500}, {4999}, {1000, 1001, 1002}} {
		advance(t, b, d, raft.Index(10000+i), keys...)
		after := tables(b, d)
		same := 0
		for _, x := range after {
			if slices.Contains(before, x) {
				same++
			}
		}
		if len(after)-same > 3 {
			t.Errorf("keys %v: %d of %d tables changed", keys, len(after)-same, len(after))
		}
		before = after
	}
	// An insertion in front shifts everything behind it.
	x := b.NewBatch()
	x.Set(d.Keyspace, []byte("a-first"), make([]byte, 77<<10))
	x.SetApplied(d.Shard, raft.AppliedState{Applied: 20000, AppliedTerm: 5, TruncIndex: 20000, TruncTerm: 5})
	check(t, x.Commit(true))
	x.Close()
	after := tables(b, d)
	same := 0
	for _, x := range after {
		if slices.Contains(before, x) {
			same++
		}
	}
	if same < len(after)/2 {
		t.Errorf("after an insertion %d of %d tables are the same", same, len(after))
	}
}

// forge changes b without changing its CRC-32C: a multiple of the polynomial is added.
func forge(b []byte, at int) {
	const poly = uint32(0x1EDC6F41) // and the term of degree 32 before it
	b[at] ^= 1
	for i := range 32 {
		k := i + 1
		b[at+k/8] ^= byte(poly>>(31-i)&1) << (k % 8)
	}
}

// sameSum is a transfer to a receiver that holds another chunk of the same size and
// CRC-32C as one that it needs: it must be sent.
func sameSum(t *testing.T) error {
	fs := engine.NewMemFS()
	p := newPair(t, 2000)
	to := openEngine(t, fs, 2)
	recv := newStore(t, to, 2, nil)
	r := record(t, p.send, p.desc)
	if _, err := recv.Handle(1, r.header, giving(r.msgs[:len(r.msgs)-3]), deaf); !errors.Is(err, ErrTruncated) {
		return err
	}
	recv.Close()
	check(t, to.Close())
	path := "/n/staging/in-" + r.meta.ID.String() + "/0001.sst"
	f, err := fs.OpenReadWrite(path, "unspecified")
	check(t, err)
	b := make([]byte, 16)
	_, err = f.ReadAt(b, 2000)
	check(t, err)
	forge(b, 3)
	_, err = f.WriteAt(b, 2000)
	check(t, errors.Join(err, f.Close()))
	p.to, p.recv = openEngine(t, fs, 2), nil
	p.recv = newStore(t, p.to, 2, nil)
	p.link.to = p.recv
	if _, _, err := p.send.Send(t.Context(), &p.desc, 2, p.link.open); err != nil {
		return err
	}
	if p.recv.Counters().ReceivedSpared == 0 {
		return errors.New("nothing that was there was used")
	}
	for _, chunk := range r.msgs { // the first of the second table, as it should be
		if chunk[1] == msgChunk && chunk[6] == 1 && p.link.sent[sha256.Sum256(chunk[chunkHead:])] == 1 {
			return nil
		}
	}
	return errors.New("a chunk of the same checksum was taken for the same")
}

func TestSameSumIsNotTheSame(t *testing.T) {
	a, b := make([]byte, 100), make([]byte, 100)
	if forge(b, 50); sum(a) != sum(b) || slices.Equal(a, b) {
		t.Fatal("no collision was made")
	}
	check(t, sameSum(t))
}
