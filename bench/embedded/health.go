package embedded

import (
	"context"
	"fmt"
	"time"
)

// Health counts what load must not do to a cluster, and a few things that show
// how hard it was. All fields but Refused only grow because something went wrong,
// or slowly.
type Health struct {
	// Withdrawn counts promises of support that ended although nobody failed, as
	// seen by those who gave them or those who had them.
	Withdrawn uint64 `json:"withdrawn"`
	// Terms is the sum of the highest terms seen of all shards: it grows by at least
	// one for each leader that was lost.
	Terms uint64 `json:"terms"`
	// LateBeats counts heartbeats that were put off by a slow disk or loop.
	LateBeats uint64 `json:"late_beats"`
	// Resets counts streams between nodes that were reset because a queue was full.
	Resets uint64 `json:"resets"`
	// Stalls counts how often the stores made writes wait for flushes or compactions.
	Stalls uint64 `json:"stalls"`
	// Refused counts writes that nodes refused because of overload.
	Refused uint64 `json:"refused"`
}

// Since returns what was added after the earlier reading.
func (h Health) Since(earlier Health) Health {
	return Health{
		Withdrawn: h.Withdrawn - earlier.Withdrawn, Terms: h.Terms - earlier.Terms, LateBeats: h.LateBeats - earlier.LateBeats,
		Resets: h.Resets - earlier.Resets, Stalls: h.Stalls - earlier.Stalls, Refused: h.Refused - earlier.Refused,
	}
}

// Health reads the counters of all nodes.
func (t *Leaders) Health(ctx context.Context) (Health, error) {
	var h Health
	for _, n := range t.nodes {
		m := n.Metrics()
		h.Withdrawn += m.Live.Withdrawn + m.Live.Lost
		h.LateBeats += m.Live.LateBeats
		h.Stalls += uint64(m.Engine.Stalls)
		h.Refused += m.Host.Refused
		for _, p := range m.Peers {
			h.Resets += p.Overflows
		}
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	all, err := t.nodes[0].Shards(ctx)
	if err != nil {
		return h, fmt.Errorf("asking for the terms of the shards: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range all {
		t.terms[all[i].ID] = max(t.terms[all[i].ID], all[i].Term) // zero where a leader is not known
	}
	for _, term := range t.terms {
		h.Terms += term
	}
	return h, nil
}

// healthTimeout bounds how long the nodes may take to tell their shards.
const healthTimeout = 20 * time.Second
