package transport

import (
	"strings"
	"testing"
)

// However a server that wants TLS ends a connection without it, the reader is told.
func TestPlainStatus(t *testing.T) {
	for _, text := range []string{
		`connection error: desc = "error reading server preface: EOF"`,
		`connection error: desc = "error reading server preface: read tcp 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer"`,
		`connection error: desc = "error reading server preface: connection reset by peer"`,
	} {
		if got := plainStatus(text); !strings.Contains(got, "if the other side uses TLS, it needs a certificate") {
			t.Errorf("%s: %s", text, got)
		}
	}
	if got := plainStatus(`connection error: desc = "error reading server preface: http2: frame too large"`); strings.Contains(got, "TLS") {
		t.Errorf("a bad frame: %s", got)
	}
}
