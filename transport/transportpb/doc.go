// Package transportpb is the generated protobuf code of the client service
// (kv.proto). Only package transport imports it. Regenerate with generate.sh.
package transportpb
