// Package s3 is a backup.Store in a bucket of a service that speaks the S3
// protocol.
//
// What flows in are objects of package backup, each of them one PUT (8 MiB at
// most; a manifest up to 256 MiB), which such services carry out whole or not at
// all, and show to everybody once it was answered. Package minio-go signs and
// repeats requests. It is not imported by the packages of the store itself, so
// that an embedder does not link it; command flotilla does.
//
// The package owns no goroutine and no lock.
package s3
