#!/usr/bin/env bash
# The benchmarks named BenchmarkDoor: one per station of a request's way.
#   bench/doors.sh             runs them and compares with bench/baseline/doors.txt
#   bench/doors.sh baseline    runs them and replaces that file
#   bench/doors.sh smoke       runs each of them once, to see that they work
# COUNT and TIME in the environment: runs of each, and how long one takes.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=$(git ls-files -co --exclude-standard '*_test.go' | xargs grep -l '^func BenchmarkDoor' | xargs -n1 dirname | sort -u | sed 's|^|./|')
run() { go test -run '^$' -bench '^BenchmarkDoor' "$@" $packages; }
# What benchstat reads; the rest differs from machine to machine.
results() { grep -E '^(goos|goarch|pkg|cpu|Benchmark)'; }

case "${1:-compare}" in
smoke) run -benchtime 1x ;;
baseline) run -count "${COUNT:-6}" -benchtime "${TIME:-0.3s}" | results >bench/baseline/doors.txt ;;
compare)
  new=$(mktemp "${TMPDIR:-/tmp}/flotilla-doors-XXXXXX")
  trap 'rm -f "$new"' EXIT
  run -count "${COUNT:-6}" -benchtime "${TIME:-0.3s}" | results >"$new"
  go tool -modfile=cmd/tools/go.mod benchstat baseline=bench/baseline/doors.txt now="$new"
  ;;
*)
  echo "bench/doors.sh [baseline|smoke]" >&2
  exit 2
  ;;
esac
