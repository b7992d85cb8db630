//go:build mutants

package transport

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestRequestBytesMutants: a node that holds whatever its clients send, or ask for, is found.
func TestRequestBytesMutants(t *testing.T) {
	for id, check := range map[string]func(*testing.T) error{"GV3": checkRequestBytes, "GV7": checkAnswerBytes} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := check(t)
			if err == nil {
				t.Fatal("survived")
			}
			t.Logf("found: %v", err)
		})
	}
}
