package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/flotillakv/flotilla"
)

// Formats of import and export.
const (
	formatTSV   = "tsv"   // key, one tab, the rest of the line; raw bytes, no escapes
	formatJSONL = "jsonl" // {"key": "<base64>", "value": "<base64>"} per line
)

func checkFormat(format string) error {
	if format != formatTSV && format != formatJSONL {
		return usageError("format %q does not exist: choose tsv or jsonl", format)
	}
	return nil
}

// record is one line of an import.
type record struct {
	line       int64 // from 1
	key, value []byte
}

// badLine says why one line was refused; the lines around it are fine.
type badLine struct {
	line   int64
	reason string
}

func (e *badLine) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.reason) }

// maxLineBytes bounds a line: a record of the largest key and value in base64,
// and the punctuation around it.
const maxLineBytes = (flotilla.MaxKeyBytes+flotilla.MaxValueBytes)/3*4 + 4096

// recordReader reads records line by line. The last line need not end in a
// line feed. A line longer than maxLineBytes is refused without being kept.
type recordReader struct {
	r     *bufio.Reader
	parse func(line []byte) (key, value []byte, err error)
	line  int64
	bytes int64 // read so far
}

func newRecordReader(r io.Reader, format string) *recordReader {
	rr := &recordReader{r: bufio.NewReaderSize(r, 256<<10), parse: parseTSV}
	if format == formatJSONL {
		rr.parse = parseJSONL
	}
	return rr
}

// next returns the next record, a *badLine (after which reading may go on),
// io.EOF, or the error of the underlying reader. Key and value belong to the
// caller.
func (r *recordReader) next() (record, error) {
	line, tooLong, err := r.readLine()
	if err != nil {
		return record{}, err
	}
	r.line++
	if tooLong {
		return record{}, &badLine{r.line, fmt.Sprintf("longer than %d bytes, which no record can be", maxLineBytes)}
	}
	key, value, err := r.parse(line)
	if err == nil {
		err = checkRecord(key, value)
	}
	if err != nil {
		return record{}, &badLine{r.line, err.Error()}
	}
	return record{r.line, key, value}, nil
}

// skip passes over lines until the next one is line n.
func (r *recordReader) skip(n int64) error {
	for r.line < n-1 {
		if _, _, err := r.readLine(); err != nil {
			return err
		}
		r.line++
	}
	return nil
}

// readLine returns the next line without its line feed, in memory of its own.
func (r *recordReader) readLine() (line []byte, tooLong bool, err error) {
	for {
		part, err := r.r.ReadSlice('\n')
		r.bytes += int64(len(part))
		if !tooLong {
			line = append(line, part...)
		}
		if len(line) > maxLineBytes+1 {
			line, tooLong = nil, true
		}
		switch {
		case err == nil:
			return bytes.TrimSuffix(line, []byte("\n")), tooLong, nil
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err == io.EOF && (len(line) > 0 || tooLong):
			return line, tooLong, nil
		default:
			return nil, false, err
		}
	}
}

func parseTSV(line []byte) (key, value []byte, err error) {
	key, value, ok := bytes.Cut(line, []byte("\t"))
	if !ok {
		return nil, nil, errors.New("no tab between key and value")
	}
	return key, value, nil
}

// jsonRecord is a record in JSON. Version is written by scan and get, and
// ignored when read.
type jsonRecord struct {
	Key     []byte `json:"key"`
	Value   []byte `json:"value"`
	Version string `json:"version,omitempty"`
}

func parseJSONL(line []byte) (key, value []byte, err error) {
	var rec struct {
		Key     *[]byte `json:"key"`
		Value   *[]byte `json:"value"`
		Version string  `json:"version"`
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&rec); err != nil {
		return nil, nil, fmt.Errorf(`not of the form {"key": "<base64>", "value": "<base64>"}: %v`, err)
	}
	if dec.More() {
		return nil, nil, errors.New("more than one JSON object")
	}
	if rec.Key == nil || rec.Value == nil {
		return nil, nil, errors.New(`"key" or "value" is absent`)
	}
	return *rec.Key, *rec.Value, nil
}

func checkRecord(key, value []byte) error {
	switch {
	case len(key) == 0:
		return errors.New("the key is empty")
	case len(key) > flotilla.MaxKeyBytes:
		return fmt.Errorf("the key has %d bytes, the limit is %d", len(key), flotilla.MaxKeyBytes)
	case len(value) > flotilla.MaxValueBytes:
		return fmt.Errorf("the value has %d bytes, the limit is %d", len(value), flotilla.MaxValueBytes)
	}
	return nil
}

// appendRecord appends a record as one line. It refuses what TSV cannot hold.
func appendRecord(dst []byte, format string, key, value []byte) ([]byte, error) {
	if format == formatJSONL {
		b, err := json.Marshal(jsonRecord{Key: key, Value: nonNil(value)})
		return append(append(dst, b...), '\n'), err
	}
	what := ""
	switch {
	case bytes.ContainsAny(key, "\t\n"):
		what = "its key contains a tab or a line feed"
	case bytes.IndexByte(value, '\n') >= 0:
		what = "its value contains a line feed"
	}
	if what != "" {
		return dst, failure(exitUsage, nil, "flotilla kv export --format jsonl", "the record with key %s cannot be written as TSV: %s; JSONL holds any bytes", shortKey(key), what)
	}
	dst = append(append(dst, key...), '\t')
	return append(append(dst, value...), '\n'), nil
}

func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func shortKey(key []byte) string {
	if len(key) > 64 {
		return fmt.Sprintf("%q...", key[:64])
	}
	return fmt.Sprintf("%q", key)
}
