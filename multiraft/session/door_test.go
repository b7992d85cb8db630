package session

import "testing"

// BenchmarkDoorSession judges a new command of a session and notes its result,
// as the state machine does for each command of a session.
func BenchmarkDoorSession(b *testing.B) {
	r := newRig()
	r.Now = second
	b.ReportAllocs()
	for seq := uint64(1); b.Loop(); seq++ {
		h := header(1, seq, seq-1, 1000)
		j, err := r.Judge(h)
		if err != nil || j.Verdict != Execute {
			b.Fatal(j, err)
		}
		if err := r.Record(h, Result{Lineage: 7, Index: 9}, nil); err != nil {
			b.Fatal(err)
		}
	}
}
