package session

import (
	"errors"
	"testing"
)

// TestCheckRecord: what this package writes passes, cut short or changed it does not,
// and records of others are let pass.
func TestCheckRecord(t *testing.T) {
	r := sample()
	key := append([]byte{tagRecord}, make([]byte, 24)...)
	for name, c := range map[string]struct{ suffix, val []byte }{
		"record": {key, r.appendTo(nil)},
		"head":   {[]byte{tagRecord}, appendHead(nil, 300, 17)},
		"slot":   {slotKey(3), append([]byte{slotVersion}, key[1:]...)},
	} {
		if err := CheckRecord(c.suffix, c.val); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, bad := range [][]byte{nil, c.val[:len(c.val)-1], append([]byte{99}, c.val[1:]...), append(c.val, 0)} {
			if err := CheckRecord(c.suffix, bad); !errors.Is(err, ErrBadRecord) {
				t.Errorf("%s: %x passes: %v", name, bad, err)
			}
		}
	}
	if err := CheckRecord([]byte("other"), nil); err != nil {
		t.Error(err)
	}
}
