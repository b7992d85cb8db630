module github.com/flotillakv/flotilla/internal/sim/interop

go 1.26.0

require (
	github.com/flotillakv/flotilla v0.0.0
	go.etcd.io/raft/v3 v3.7.0
	google.golang.org/protobuf v1.36.12
)

replace github.com/flotillakv/flotilla => ../../..
