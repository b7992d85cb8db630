package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
)

// raw is a codec that passes bytes on as they are.
type raw struct{}

func (raw) Name() string { return "raw" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	p := v.(*[]byte)
	if n := data.Len(); cap(*p) < n {
		*p = make([]byte, n)
	} else {
		*p = (*p)[:n]
	}
	data.CopyTo(*p)
	return nil
}

const (
	window    = 8 << 20
	netBuffer = 128 << 10
)

// stream sends frames over one stream on the loopback interface; with echo each
// is answered before the next is sent.
func stream(size int, echo bool) func(string, time.Duration) (int, []time.Duration, error) {
	return func(_ string, d time.Duration) (units int, steps []time.Duration, err error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, nil, err
		}
		got := make(chan int, 1)
		s := grpc.NewServer(grpc.ForceServerCodecV2(raw{}), grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(2*window),
			grpc.ReadBufferSize(netBuffer), grpc.WriteBufferSize(netBuffer))
		desc := grpc.StreamDesc{StreamName: "Frames", ClientStreams: true, ServerStreams: true, Handler: func(_ any, st grpc.ServerStream) error {
			n := 0
			var b []byte
			for {
				if err := st.RecvMsg(&b); errors.Is(err, io.EOF) {
					got <- n
					return nil
				} else if err != nil {
					return err
				}
				n++
				if echo {
					if err := st.SendMsg(b); err != nil {
						return err
					}
				}
			}
		}}
		s.RegisterService(&grpc.ServiceDesc{ServiceName: "floors", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{desc}}, struct{}{})
		go func() { _ = s.Serve(l) }() // ends with Stop
		defer s.Stop()
		cc, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithInitialWindowSize(window),
			grpc.WithInitialConnWindowSize(2*window), grpc.WithReadBufferSize(netBuffer), grpc.WithWriteBufferSize(netBuffer),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{})))
		if err != nil {
			return 0, nil, err
		}
		defer cc.Close()
		st, err := cc.NewStream(context.Background(), &desc, "/floors/Frames")
		if err != nil {
			return 0, nil, err
		}
		frame, answer := make([]byte, size), []byte(nil)
		sent := 0
		for end := time.Now().Add(d); time.Now().Before(end); sent++ {
			began := time.Now()
			if err := st.SendMsg(frame); err != nil {
				return 0, nil, err
			}
			if echo {
				if err := st.RecvMsg(&answer); err != nil {
					return 0, nil, err
				}
				steps = append(steps, time.Since(began))
			}
		}
		if err := st.CloseSend(); err != nil {
			return 0, nil, err
		}
		if units = <-got; units != sent {
			return units, steps, fmt.Errorf("%d frames arrived of %d", units, sent)
		}
		return units, steps, nil
	}
}
