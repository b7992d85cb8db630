// Command flotilla runs and uses a Flotilla cluster: a guided demo, a local
// development cluster, one node of a real one, reads and writes, bulk import
// and export, status, and benchmarks.
//
// One file per command (demo.go, dev.go, serve.go, kv.go, import.go, export.go,
// status.go, bench.go, config.go), and what they share: root.go (the command
// tree and the global flags), app.go (streams, connection), errors.go (one
// sentence and one exit code per error), output.go (tables and JSON),
// suggest.go ("did you mean"), settings.go (flag over environment over file over
// default), records.go (TSV and JSONL).
//
// Rules for what a person sees: data goes to standard output and notes to
// standard error; the first line answers the question; an error is one sentence
// that says what, where, why and what to try; JSON field names are only added to.
package main
