package snapshot

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/golang/snappy"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// The messages of a stream, behind its header (a Meta without files). Each begins
// with
//
//	version u8 | kind u8
//
// From the sender: the record of a file; for those of its chunks that the receiver
// may have, which of them are the same; its other chunks, in order; at the end how
// much it all was. From the receiver: at the beginning how much of this very
// snapshot it has; after the record of a file, if it said so, which chunks it may
// have from elsewhere.
const (
	messageVersion = 2
	messageHead    = 2

	msgFile  = 1 // file u32 | crc32c u32 of what follows | record
	msgKeep  = 2 // file u32 | chunks u32, then each u32 | crc32c u32 of all before
	msgChunk = 3 // flags u8 (1: snappy) | file u32 | chunk u32 | payload
	msgEnd   = 4 // files u32 | bytes u64 | crc32c u32 of all records | crc32c u32 of all before
	msgReady = 5 // flags u8 (1: asks) | files u32 | crc32c u32 of all before
	msgOffer = 6 // file u32 | have u32 | offers u32; each: chunk u32, SHA-256 | crc32c u32 of all before

	chunkHead   = messageHead + 9
	chunkSnappy = 1 << 0
	readyAsks   = 1 << 0
)

// hash names what a chunk holds.
type hash [sha256.Size]byte

// ready is the receiver's first message.
type ready struct {
	// asks: it answers each record of a file with an offer.
	asks bool
	// files is how many files of this snapshot it has whole.
	files int
}

// offer says which chunks of a file need not be sent.
type offer struct {
	file int
	have int // chunks of this very file that are there, from the first on
	// may are chunks, behind these, that look like some that the receiver has from
	// elsewhere, with what those hold.
	may []offered
}

type offered struct {
	chunk int
	sum   hash
}

func message(dst []byte, kind byte) []byte { return append(dst, messageVersion, kind) }

// sealed appends the checksum of all that was appended since at.
func sealed(dst []byte, at int) []byte {
	return binary.BigEndian.AppendUint32(dst, sum(dst[at:]))
}

// open looks at the head of a message and returns its kind and a reader of its body.
func open(b []byte) (kind byte, body reader, err error) {
	if len(b) < messageHead || b[0] != messageVersion {
		return 0, body, corrupt("message of %d bytes", len(b))
	}
	return b[1], reader{b: b[messageHead:]}, nil
}

// unseal takes the checksum off the end of a message of this version.
func unseal(b []byte) (body reader, ok bool) {
	n := len(b) - 4
	if n < messageHead || b[0] != messageVersion || binary.BigEndian.Uint32(b[n:]) != sum(b[:n]) {
		return body, false
	}
	return reader{b: b[messageHead:n]}, true
}

func (r *reader) u32() int {
	if v := r.take(4); v != nil {
		return int(binary.BigEndian.Uint32(v))
	}
	return 0
}

func encodeFile(dst []byte, file int, f *File) []byte {
	dst = message(dst, msgFile)
	dst = binary.BigEndian.AppendUint32(dst, uint32(file))
	at := len(dst)
	dst = f.append(append(dst, 0, 0, 0, 0))
	binary.BigEndian.PutUint32(dst[at:], sum(dst[at+4:]))
	return dst
}

func decodeFile(r reader) (file int, f *File, err error) {
	file = r.u32()
	want := r.u32()
	if r.bad || uint32(want) != sum(r.b) {
		return 0, nil, corrupt("record of a file: checksum")
	}
	if f = r.file(); f == nil || len(r.b) > 0 {
		return 0, nil, corrupt("record of file %d", file)
	}
	return file, f, nil
}

func encodeKeep(dst []byte, file int, chunks []int) []byte {
	at := len(dst)
	dst = message(dst, msgKeep)
	dst = binary.BigEndian.AppendUint32(dst, uint32(file))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(chunks)))
	for _, c := range chunks {
		dst = binary.BigEndian.AppendUint32(dst, uint32(c))
	}
	return sealed(dst, at)
}

func decodeKeep(b []byte) (file int, chunks []int, err error) {
	r, ok := unseal(b)
	file = r.u32()
	n := r.u32()
	if !ok || r.bad || len(r.b) != 4*n {
		return 0, nil, corrupt("list of chunks to keep")
	}
	for range n {
		chunks = append(chunks, r.u32())
	}
	return file, chunks, nil
}

// encodeChunk appends a chunk. Lists are compressed where that helps; tables already are.
func encodeChunk(dst []byte, kind FileKind, file, chunk int, payload []byte) []byte {
	at := len(dst)
	dst = append(message(dst, msgChunk), 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(file))
	dst = binary.BigEndian.AppendUint32(dst, uint32(chunk))
	if kind != FileTable && len(payload) >= 512 {
		if c := snappy.Encode(nil, payload); len(c) < len(payload)-len(payload)/8 {
			dst[at+messageHead] |= chunkSnappy
			return append(dst, c...)
		}
	}
	return append(dst, payload...)
}

// decodeChunk returns the bytes of chunk of file f, which has the number file,
// checked against its record. The payload may alias what is read.
func (f *File) decodeChunk(r reader, file, chunk int) (payload []byte, err error) {
	flags, gotFile, gotChunk := r.byte(), r.u32(), r.u32()
	if r.bad || flags&^chunkSnappy != 0 {
		return nil, corrupt("head of a chunk")
	}
	if gotFile != file || gotChunk != chunk {
		return nil, corrupt("chunk %d of file %d came in place of chunk %d of file %d", gotChunk, gotFile, chunk, file)
	}
	payload = r.b
	want := f.chunkLen(chunk)
	if flags&chunkSnappy != 0 {
		if n, err := snappy.DecodedLen(payload); err != nil || n != want {
			return nil, corrupt("chunk %d of file %d: compressed form", chunk, file)
		}
		if payload, err = snappy.Decode(nil, payload); err != nil {
			return nil, corrupt("chunk %d of file %d: compressed form", chunk, file)
		}
	}
	if len(payload) != want || sum(payload) != f.Sums[chunk] && !mutants.On("E18") {
		return nil, corrupt("chunk %d of file %d: checksum", chunk, file)
	}
	return payload, nil
}

// end is the last message of a sender.
type end struct {
	files   int
	bytes   int64
	records uint32
}

// total is what the end of m says.
func (m *Meta) total() end {
	e := end{files: len(m.Files), bytes: m.Bytes()}
	var b []byte
	for i := range m.Files {
		b = m.Files[i].append(b)
	}
	e.records = sum(b)
	return e
}

func (e end) encode(dst []byte) []byte {
	at := len(dst)
	dst = message(dst, msgEnd)
	dst = binary.BigEndian.AppendUint32(dst, uint32(e.files))
	dst = binary.BigEndian.AppendUint64(dst, uint64(e.bytes))
	dst = binary.BigEndian.AppendUint32(dst, e.records)
	return sealed(dst, at)
}

func decodeEnd(b []byte) (e end, err error) {
	r, ok := unseal(b)
	e.files = r.u32()
	if v := r.take(8); v != nil {
		e.bytes = int64(binary.BigEndian.Uint64(v))
	}
	e.records = uint32(r.u32())
	if !ok || r.bad || len(r.b) > 0 {
		return end{}, corrupt("end of the stream")
	}
	return e, nil
}

func (y ready) encode(dst []byte) []byte {
	at := len(dst)
	flags := byte(0)
	if y.asks {
		flags = readyAsks
	}
	dst = append(message(dst, msgReady), flags)
	return sealed(binary.BigEndian.AppendUint32(dst, uint32(y.files)), at)
}

func decodeReady(b []byte) (y ready, err error) {
	kind, _, err := open(b)
	r, ok := unseal(b)
	flags := r.byte()
	y = ready{asks: flags&readyAsks != 0, files: r.u32()}
	if err != nil || !ok || kind != msgReady || r.bad || len(r.b) > 0 || flags&^readyAsks != 0 || y.files > MaxFiles {
		return ready{}, corrupt("the receiver's first message")
	}
	return y, nil
}

func (o *offer) encode(dst []byte) []byte {
	at := len(dst)
	dst = message(dst, msgOffer)
	dst = binary.BigEndian.AppendUint32(dst, uint32(o.file))
	dst = binary.BigEndian.AppendUint32(dst, uint32(o.have))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(o.may)))
	for i := range o.may {
		dst = binary.BigEndian.AppendUint32(dst, uint32(o.may[i].chunk))
		dst = append(dst, o.may[i].sum[:]...)
	}
	return sealed(dst, at)
}

func decodeOffer(b []byte) (o offer, err error) {
	kind, _, err := open(b)
	r, ok := unseal(b)
	o.file, o.have = r.u32(), r.u32()
	n := r.u32()
	if err != nil || !ok || kind != msgOffer || r.bad || len(r.b) != n*(4+len(hash{})) {
		return offer{}, corrupt("an offer of the receiver")
	}
	for range n {
		m := offered{chunk: r.u32()}
		copy(m.sum[:], r.take(len(m.sum)))
		o.may = append(o.may, m)
	}
	return o, nil
}
