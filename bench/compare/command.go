package main

import (
	"encoding/binary"
	"errors"
)

var errCommand = errors.New("compare: malformed command")

// A command is a list of records: two bytes of key length, four of value
// length, key, value. It is what Dragonboat's machines are sent.

func appendRecord(dst, key, value []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(key)))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(value)))
	return append(append(dst, key...), value...)
}

func eachRecord(cmd []byte, f func(key, value []byte) error) error {
	for len(cmd) > 0 {
		if len(cmd) < 6 {
			return errCommand
		}
		k, v := int(binary.BigEndian.Uint16(cmd)), int(binary.BigEndian.Uint32(cmd[2:]))
		cmd = cmd[6:]
		if len(cmd) < k+v {
			return errCommand
		}
		if err := f(cmd[:k], cmd[k:k+v]); err != nil {
			return err
		}
		cmd = cmd[k+v:]
	}
	return nil
}
