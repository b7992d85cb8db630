#!/bin/sh
# Regenerates the Go code of every .proto file here. Needs protoc (Debian:
# protobuf-compiler); the plugins are built from cmd/tools, at the versions
# pinned there. CI runs it and fails when the result differs from what is
# committed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
command -v protoc >/dev/null || { echo "generate.sh: protoc is not installed (Debian: apt-get install protobuf-compiler)" >&2; exit 1; }
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
cd "$root/cmd/tools"
GOWORK=off go build -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
cd "$root"
PATH="$bin:$PATH" protoc -I . \
	--go_out=. --go_opt=paths=source_relative \
	--go-grpc_out=. --go-grpc_opt=paths=source_relative \
	transport/transportpb/*.proto
