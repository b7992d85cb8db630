package flotilla

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// A cluster of more shards than are told in one answer is formed, lists them page by
// page, counts them, finds single ones, and has them all after a restart.
func TestManyShards(t *testing.T) {
	const shards = 5000
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	o := Options{Dir: t.TempDir(), Shards: shards, ClientListen: "127.0.0.1:0"}
	for round := range 2 {
		n, err := Open(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Dial(ctx, []string{n.Addr()}, ClientOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, how := range []struct {
			name string
			list func(ctx context.Context) ([]ShardInfo, error)
		}{{"node", n.Shards}, {"client", c.Shards}} {
			all, err := how.list(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if len(all) != shards+1 || all[0].Keyspace != 0 {
				t.Fatalf("%s: %d shards, the first is %+v", how.name, len(all), all[0])
			}
			for i := 1; i < len(all); i++ {
				if all[i].ID != uint64(i+1) || i > 1 && string(all[i].Start) != string(all[i-1].End) || len(all[i].Replicas) != 1 || all[i].Replicas[0].State != "up" {
					t.Fatalf("%s: shard %d: %+v", how.name, i, all[i])
				}
			}
		}
		page, err := c.ShardsFrom(ctx, []byte("m"), 3)
		if err != nil || len(page) != 3 || string(page[0].Start) > "m" || string(page[0].End) <= "m" {
			t.Fatalf("%+v, %v", page, err)
		}
		one, err := c.Shard(ctx, page[1].ID)
		if err != nil || string(one.Start) != string(page[0].End) {
			t.Fatalf("%+v, %v", one, err)
		}
		if _, err := c.Shard(ctx, 1<<40); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		s, err := c.Status(ctx)
		if err != nil || s.State != "HEALTHY" || s.Shards != shards+1 {
			t.Fatalf("%+v, %v", s, err)
		}
		for i := range 300 {
			key := fmt.Appendf(nil, "%c%d", 'a'+i%26, i)
			if round == 0 {
				_, err = c.Put(ctx, key, key)
			} else if v, gerr := n.Get(ctx, key); gerr != nil || string(v.Bytes) != string(key) {
				t.Fatalf("%s reads %q, %v", key, v.Bytes, gerr)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if form := n.form.Load(); !form.Created || len(form.Shards) > 0 {
			t.Fatalf("%+v", form)
		}
		c.Close()
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
