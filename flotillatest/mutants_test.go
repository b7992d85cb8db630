//go:build mutants

package flotillatest_test

import (
	"flag"
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

var linearMutant = flag.String("flotilla.linear.mutant", "", "plant this bug (see internal/mutants); the histories must then contain a violation")

// TestMain plants a bug, if one is asked for:
//
//	go test -tags mutants ./flotillatest -run TestLinear -flotilla.linear.mutant D6 -flotilla.linear.duration 5m
func TestMain(m *testing.M) {
	flag.Parse()
	mutants.Set(*linearMutant)
	m.Run()
}
