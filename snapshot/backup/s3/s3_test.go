package s3

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/snapshot/backup"
)

// service answers as an S3 service does: PUT, GET, HEAD and lists of two keys a page.
type service struct {
	mu      sync.Mutex
	objects map[string][]byte
	refuse  int // answers 500 to that many PUTs
	auth    []string
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.auth = append(s.auth, r.Header.Get("Authorization"))
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	fail := func(status int, code string) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		io.WriteString(w, "<Error><Code>"+code+"</Code><Message>"+code+"</Message></Error>")
	}
	q := r.URL.Query()
	switch {
	case bucket != "bucket":
		fail(http.StatusNotFound, "NoSuchBucket")
	case q.Has("location"):
		io.WriteString(w, `<LocationConstraint xmlns="http://s3.amazonaws.com/doc/2006-03-01/">eu-x</LocationConstraint>`)
	case r.Method == http.MethodPut:
		b, err := io.ReadAll(r.Body)
		if s.refuse > 0 || err != nil {
			s.refuse--
			fail(http.StatusInternalServerError, "InternalError")
			return
		}
		if strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING") {
			b = unframe(b)
		}
		s.objects[key] = b
		w.Header().Set("ETag", `"1"`)
	case r.Method == http.MethodDelete:
		delete(s.objects, key)
		w.WriteHeader(http.StatusNoContent)
	case key == "":
		s.list(w, q.Get("prefix"), q.Get("continuation-token"))
	default:
		b, ok := s.objects[key]
		if !ok {
			fail(http.StatusNotFound, "NoSuchKey")
			return
		}
		w.Header().Set("ETag", `"1"`)
		w.Header().Set("Last-Modified", "Fri, 02 Jan 2026 15:04:05 GMT")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}

// unframe takes the signed chunks of a body apart: hex length;signature, data.
func unframe(b []byte) (out []byte) {
	for {
		head, rest, ok := bytes.Cut(b, []byte("\r\n"))
		n := 0
		for _, c := range bytes.ToLower(head) {
			d := bytes.IndexByte([]byte("0123456789abcdef"), c)
			if d < 0 {
				break
			}
			n = n*16 + d
		}
		if !ok || n == 0 || n > len(rest) {
			return out
		}
		out = append(out, rest[:n]...)
		b = bytes.TrimPrefix(rest[n:], []byte("\r\n"))
	}
}

func (s *service) list(w http.ResponseWriter, prefix, from string) {
	type object struct {
		Key  string
		Size int
	}
	var res struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		IsTruncated           bool
		NextContinuationToken string
		Contents              []object
	}
	keys := []string{}
	for k := range s.objects {
		if strings.HasPrefix(k, prefix) && k > from {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	if len(keys) > 2 {
		keys = keys[:2]
		res.IsTruncated, res.NextContinuationToken = true, keys[1]
	}
	for _, k := range keys {
		res.Contents = append(res.Contents, object{k, len(s.objects[k])})
	}
	xml.NewEncoder(w).Encode(res)
}

func open(t *testing.T, prefix string) (*Store, *service) {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "the-key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
	svc := &service{objects: map[string][]byte{}}
	srv := httptest.NewServer(svc)
	t.Cleanup(srv.Close)
	s, err := Open(Options{Endpoint: srv.URL, Bucket: "bucket", Prefix: prefix, Region: "eu-x"})
	if err != nil {
		t.Fatal(err)
	}
	return s, svc
}

// Objects go and come back under the prefix, a missing one is ErrNoObject, a
// service that fails once is asked again, one with an empty answer is an object.
func TestStore(t *testing.T) {
	for _, prefix := range []string{"", "a/b"} {
		s, svc := open(t, prefix)
		ctx := t.Context()
		svc.objects["elsewhere"] = nil
		svc.refuse = 1
		big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		for name, data := range map[string][]byte{"chunks/aa/1": []byte("one"), "chunks/aa/2": {}, "chunks/bb/3": big, "backups/x": []byte("m")} {
			if err := s.Put(ctx, name, data); err != nil {
				t.Fatal(err)
			}
			got, err := s.Get(ctx, name, 2<<20)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
			if n, err := s.Size(ctx, name); err != nil || n != int64(len(data)) {
				t.Errorf("%s: size %d, %v", name, n, err)
			}
		}
		if _, err := s.Get(ctx, "chunks/bb/3", 100); !errors.As(err, new(*backup.DamageError)) {
			t.Errorf("beyond the limit: %v", err)
		}
		for _, name := range []string{"chunks/aa/none", "chunks"} {
			if _, err := s.Get(ctx, name, 100); !errors.Is(err, backup.ErrNoObject) {
				t.Errorf("Get of nothing: %v", err)
			}
			if _, err := s.Size(ctx, name); !errors.Is(err, backup.ErrNoObject) {
				t.Errorf("Size of nothing: %v", err)
			}
		}
		list, err := s.List(ctx, "chunks/")
		if err != nil || len(list) != 3 || list[0] != (backup.Object{Name: "chunks/aa/1", Size: 3}) || list[2].Name != "chunks/bb/3" {
			t.Errorf("%v, %v", list, err)
		}
		for range 2 { // gone, and still gone
			if err := s.Delete(ctx, "chunks/aa/1"); err != nil {
				t.Error(err)
			}
		}
		if list, err := s.List(ctx, "chunks/"); err != nil || len(list) != 2 || list[0].Name != "chunks/aa/2" {
			t.Errorf("after a removal: %v, %v", list, err)
		}
		if !strings.Contains(svc.auth[0], "the-key") {
			t.Errorf("requests are not signed: %q", svc.auth[0])
		}
	}
}

// A bucket that does not exist is an error, not an empty place; no text of ours
// holds the secret.
func TestNoBucket(t *testing.T) {
	s, _ := open(t, "")
	s.o.Bucket = "another"
	_, err := s.List(t.Context(), "")
	if err == nil || errors.Is(err, backup.ErrNoObject) || strings.Contains(err.Error(), "the-secret") {
		t.Errorf("List: %v", err)
	}
	if _, err := s.Get(t.Context(), "x", 10); err == nil || errors.Is(err, backup.ErrNoObject) {
		t.Errorf("Get: %v", err)
	}
}

func TestParse(t *testing.T) {
	for place, want := range map[string]Options{
		"s3://b":                                 {Bucket: "b"},
		"s3://b/p/q/":                            {Bucket: "b", Prefix: "p/q"},
		"s3://b/p?endpoint=http://h:1&region=eu": {Bucket: "b", Prefix: "p", Endpoint: "http://h:1", Region: "eu"},
	} {
		if got, ok, err := Parse(place); !ok || err != nil || got != want {
			t.Errorf("%s: %+v, %v, %v", place, got, ok, err)
		}
	}
	for _, place := range []string{"s3://", "s3:///p", "s3://key:secret@b/p", "s3://b?x=1", "s3://b/%zz"} {
		if _, ok, err := Parse(place); !ok || err == nil || strings.Contains(err.Error(), "secret") && !strings.Contains(err.Error(), "AWS_SECRET") {
			t.Errorf("%s: %v, %v", place, ok, err)
		}
	}
	if _, ok, _ := Parse("/mnt/s3"); ok {
		t.Error("a directory is taken for a bucket")
	}
}
