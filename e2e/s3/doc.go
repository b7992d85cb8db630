// Package s3 tests backups in a bucket against a real S3 server, versitygw, in a
// process of its own on a temporary directory. It is a module of its own, and so is
// the server (folder server), whose dependencies stay out of the product:
//
//	cd e2e/s3 && go test .
//
// The first run builds the server, which takes a minute or two.
package s3
