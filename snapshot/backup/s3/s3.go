package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/flotillakv/flotilla/snapshot/backup"
)

// Options say how to reach a bucket.
type Options struct {
	// Endpoint is HOST[:PORT], or an URL of it: http:// goes without TLS. Empty: AWS.
	Endpoint string
	// Region may be left empty where the service can be asked.
	Region string
	// Bucket must exist.
	Bucket string
	// Prefix comes before all names, with a '/' between. May be empty.
	Prefix string
	// Transport carries the requests. Nil: minio-go's.
	Transport http.RoundTripper
}

// Store is a backup.Store. Credentials come from the environment (AWS_ACCESS_KEY_ID,
// AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN; MINIO_ROOT_USER, MINIO_ROOT_PASSWORD),
// from the AWS credentials file, or from the machine's role.
type Store struct {
	c *minio.Client
	o Options
}

// Parse reads s3://bucket[/prefix], with the endpoint and the region as parameters
// (?endpoint=...&region=...). ok is false for anything that does not begin with s3://.
func Parse(place string) (o Options, ok bool, err error) {
	if !strings.HasPrefix(place, "s3://") {
		return o, false, nil
	}
	u, err := url.Parse(place)
	if err != nil {
		return o, true, errors.New("s3: the URL is malformed") // the cause repeats it, with what it may hold
	}
	if u.User != nil {
		return o, true, errors.New("s3: credentials do not belong into the URL; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	}
	q := u.Query()
	o = Options{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/"), Endpoint: q.Get("endpoint"), Region: q.Get("region")}
	q.Del("endpoint")
	q.Del("region")
	switch {
	case len(q) > 0:
		return o, true, errors.New("s3: the parameters of the URL are endpoint and region")
	case o.Bucket == "":
		return o, true, errors.New("s3: the URL names no bucket: s3://BUCKET/PREFIX")
	}
	return o, true, nil
}

// Open returns the store of a bucket. It fails if the options cannot be; the
// service is asked when the store is used.
func Open(o Options) (*Store, error) {
	host, secure := o.Endpoint, true
	if host == "" {
		host = "s3.amazonaws.com"
	}
	if rest, ok := strings.CutPrefix(host, "http://"); ok {
		host, secure = rest, false
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "https://"), "/")
	c, err := minio.New(host, &minio.Options{
		Creds: credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.EnvMinio{}, &credentials.FileAWSCredentials{}, &credentials.IAM{},
		}),
		Secure: secure, Region: o.Region, Transport: o.Transport,
	})
	if err != nil {
		return nil, fmt.Errorf("s3: endpoint %s: %w", o.Endpoint, err)
	}
	return &Store{c, o}, nil
}

// String returns the URL of the bucket and prefix.
func (s *Store) String() string {
	return strings.TrimSuffix("s3://"+s.o.Bucket+"/"+s.o.Prefix, "/")
}

func (s *Store) key(name string) string {
	if s.o.Prefix == "" {
		return name
	}
	return s.o.Prefix + "/" + name
}

// failed names the object. The text of minio-go's errors holds no credentials.
func (s *Store) failed(name string, err error) error {
	switch minio.ToErrorResponse(err).Code {
	case minio.NoSuchKey:
		return fmt.Errorf("%s: %w", name, backup.ErrNoObject)
	}
	return fmt.Errorf("s3: %s/%s: %w", s, name, err)
}

// Put implements backup.Store: one PUT, never in parts.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	_, err := s.c.PutObject(ctx, s.o.Bucket, s.key(name), bytes.NewReader(data), int64(len(data)),
		minio.PutObjectOptions{ContentType: "application/octet-stream", DisableMultipart: true})
	if err != nil {
		return s.failed(name, err)
	}
	return nil
}

// Get implements backup.Store.
func (s *Store) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	o, err := s.c.GetObject(ctx, s.o.Bucket, s.key(name), minio.GetObjectOptions{})
	if err != nil {
		return nil, s.failed(name, err)
	}
	defer o.Close()
	b, err := io.ReadAll(io.LimitReader(o, limit+1))
	if err != nil {
		return nil, s.failed(name, err)
	}
	if int64(len(b)) > limit {
		return nil, &backup.DamageError{Object: name, Reason: fmt.Sprintf("it has more than %d bytes", limit)}
	}
	return b, nil
}

// Size implements backup.Store.
func (s *Store) Size(ctx context.Context, name string) (int64, error) {
	st, err := s.c.StatObject(ctx, s.o.Bucket, s.key(name), minio.StatObjectOptions{})
	if err != nil {
		return 0, s.failed(name, err)
	}
	return st.Size, nil
}

// Delete implements backup.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	err := s.c.RemoveObject(ctx, s.o.Bucket, s.key(name), minio.RemoveObjectOptions{})
	if err == nil || minio.ToErrorResponse(err).Code == minio.NoSuchKey {
		return nil
	}
	return s.failed(name, err)
}

// List implements backup.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]backup.Object, error) {
	var out []backup.Object
	cut := len(s.key(""))
	for o := range s.c.ListObjectsIter(ctx, s.o.Bucket, minio.ListObjectsOptions{Prefix: s.key(prefix), Recursive: true}) {
		if o.Err != nil {
			return nil, s.failed(prefix, o.Err)
		}
		out = append(out, backup.Object{Name: o.Key[cut:], Size: o.Size})
	}
	slices.SortFunc(out, func(a, b backup.Object) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
