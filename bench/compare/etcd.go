package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/flotillakv/flotilla/bench"
)

// etcdEngine is three embedded members of one group; calls are made in process
// at the leader. etcd has no shards: all figures of it are of one group.
type etcdEngine struct {
	members []*embed.Etcd
	lead    int
}

func openEtcd(ctx context.Context, s setup) (_ engine, err error) {
	e := &etcdEngine{}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	var configs []*embed.Config
	var initial []string
	for i := range 3 {
		c := embed.NewConfig()
		c.Name, c.Dir = fmt.Sprintf("e%d", i+1), filepath.Join(s.dir, fmt.Sprintf("e%d", i+1))
		c.LogLevel, c.LogOutputs = "fatal", []string{"stderr"}
		c.MaxTxnOps, c.QuotaBackendBytes = 10_000, 8<<30
		peer, err := freeURL()
		if err != nil {
			return nil, err
		}
		at, err := freeURL()
		if err != nil {
			return nil, err
		}
		c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
		c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{at}, []url.URL{at}
		initial = append(initial, c.Name+"="+peer.String())
		configs = append(configs, c)
	}
	for _, c := range configs {
		c.InitialCluster, c.ClusterState = strings.Join(initial, ","), embed.ClusterStateFlagNew
	}
	type started struct {
		m   *embed.Etcd
		err error
	}
	all := make(chan started, len(configs))
	for _, c := range configs {
		go func() {
			m, err := embed.StartEtcd(c)
			all <- started{m, err}
		}()
	}
	for range configs {
		st := <-all
		if st.err != nil {
			err = st.err
			continue
		}
		e.members = append(e.members, st.m)
	}
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	for i, m := range e.members {
		select {
		case <-m.Server.ReadyNotify():
		case <-time.After(time.Minute):
			return nil, errors.New("etcd: a member was not ready within a minute")
		}
		if m.Server.Leader() == m.Server.MemberID() {
			e.lead = i
		}
	}
	return e, nil
}

func freeURL() (url.URL, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return url.URL{}, err
	}
	defer l.Close()
	return url.URL{Scheme: "http", Host: l.Addr().String()}, nil
}

func (e *etcdEngine) Target() bench.Target { return e }
func (e *etcdEngine) Local(ctx context.Context, node int, key []byte) ([]byte, error) {
	r, err := e.members[node].Server.Range(ctx, &pb.RangeRequest{Key: key, Serializable: true})
	if err != nil || len(r.Kvs) == 0 {
		return nil, err
	}
	return r.Kvs[0].Value, nil
}

func (e *etcdEngine) Note() string {
	return "one group, whatever the number of shards; calls in process at the leader"
}
func (e *etcdEngine) Scan(context.Context, []byte, int) (int, error) {
	return 0, errors.New("compare: scans are not compared")
}

func (e *etcdEngine) Close() {
	for _, m := range e.members {
		m.Close()
	}
}

func (e *etcdEngine) Read(ctx context.Context, key []byte) ([]byte, bool, error) {
	r, err := e.members[e.lead].Server.Range(ctx, &pb.RangeRequest{Key: key})
	if err != nil || len(r.Kvs) == 0 {
		return nil, false, err
	}
	return r.Kvs[0].Value, true, nil
}

func (e *etcdEngine) Write(ctx context.Context, key, value []byte) error {
	_, err := e.members[e.lead].Server.Put(ctx, &pb.PutRequest{Key: append([]byte{}, key...), Value: value})
	return err
}

func (e *etcdEngine) Load(ctx context.Context, keys, values [][]byte) error {
	t := &pb.TxnRequest{}
	for i := range keys {
		t.Success = append(t.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: keys[i], Value: values[i]}}})
	}
	for tries := 0; ; tries++ {
		_, err := e.members[e.lead].Server.Txn(ctx, t)
		if err == nil || ctx.Err() != nil || tries > 100 {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}
