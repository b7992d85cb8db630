package workload

import (
	"fmt"
	"strings"
)

// Op is one kind of operation.
type Op uint8

// The operations of the core workloads.
const (
	Read Op = iota
	Update
	Insert
	Scan
	ReadModifyWrite
	// OpCount is the number of kinds of operations.
	OpCount
)

var opNames = [OpCount]string{"read", "update", "insert", "scan", "read_modify_write"}

// String returns the operation's name as it appears in reports.
func (o Op) String() string {
	if o < OpCount {
		return opNames[o]
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Dist is a law of popularity of records.
type Dist string

// The laws of popularity.
const (
	// Zipfian is YCSB's scrambled zipfian law with exponent 0.99.
	Zipfian Dist = "zipfian"
	// Uniform gives every record the same chance.
	Uniform Dist = "uniform"
	// Latest prefers the records inserted last, by a zipfian law.
	Latest Dist = "latest"
)

// MaxScanLen is the largest number of records one Scan asks for; the length is
// drawn uniformly from [1, MaxScanLen].
const MaxScanLen = 100

// Spec describes a workload: the share of each operation, in percent, and the
// law of popularity. The shares add up to 100.
type Spec struct {
	// Name is the name of the workload: "A" to "F" are those of YCSB, "W1" to "W3" are
	// uniform writes, reads, and a mix of both.
	Name  string
	Share [OpCount]int
	Dist  Dist
	// Note is the sentence a report prints about the workload.
	Note string
}

var specs = []Spec{
	{Name: "A", Share: [OpCount]int{Read: 50, Update: 50}, Dist: Zipfian, Note: "50% read 50% update"},
	{Name: "B", Share: [OpCount]int{Read: 95, Update: 5}, Dist: Zipfian, Note: "95% read 5% update"},
	{Name: "C", Share: [OpCount]int{Read: 100}, Dist: Zipfian, Note: "100% read"},
	{Name: "D", Share: [OpCount]int{Read: 95, Insert: 5}, Dist: Latest, Note: "95% read of the latest 5% insert"},
	{Name: "E", Share: [OpCount]int{Scan: 95, Insert: 5}, Dist: Zipfian, Note: "95% scan of 1-100 5% insert"},
	{Name: "F", Share: [OpCount]int{Read: 50, ReadModifyWrite: 50}, Dist: Zipfian, Note: "50% read 50% read-modify-write"},
	{Name: "W1", Share: [OpCount]int{Update: 100}, Dist: Uniform, Note: "100% update"},
	{Name: "W2", Share: [OpCount]int{Read: 100}, Dist: Uniform, Note: "100% read"},
	{Name: "W3", Share: [OpCount]int{Read: 90, Update: 10}, Dist: Uniform, Note: "90% read 10% update"},
}

// Names returns the names of the workloads in order.
func Names() []string {
	names := make([]string, len(specs))
	for i, s := range specs {
		names[i] = s.Name
	}
	return names
}

// Parse returns the workload with the given name, in either case.
func Parse(name string) (Spec, error) {
	for _, s := range specs {
		if strings.EqualFold(s.Name, name) {
			return s, nil
		}
	}
	return Spec{}, fmt.Errorf("workload %q does not exist: choose one of %s", name, strings.Join(Names(), ", "))
}

// ParseDist returns the law of popularity with the given name.
func ParseDist(name string) (Dist, error) {
	switch d := Dist(strings.ToLower(name)); d {
	case Zipfian, Uniform, Latest:
		return d, nil
	}
	return "", fmt.Errorf("distribution %q does not exist: choose one of zipfian, uniform, latest", name)
}

// ReadOnly reports whether the workload never writes.
func (s Spec) ReadOnly() bool {
	return s.Share[Update]+s.Share[Insert]+s.Share[ReadModifyWrite] == 0
}
