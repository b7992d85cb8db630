package backup

import (
	"errors"
	"fmt"
)

var (
	// ErrCutLost says that a node no longer holds a cut: it was restarted, cannot
	// be reached, or the cut was not read for too long. Nothing is wrong with the
	// shard; it can be cut again.
	ErrCutLost = errors.New("backup: the cut of the shard is gone")
	// ErrNoBackup says that the store holds no backup, or not the one asked for.
	ErrNoBackup = errors.New("backup: there is no such backup")
	// ErrNotEmpty says that the cluster to restore into has keys. Nothing was written.
	ErrNotEmpty = errors.New("backup: the cluster to restore into is not empty")
)

// DamageError says that an object of a backup is missing or not as it was written.
type DamageError struct {
	Object string // its name in the store
	Reason string
}

func (e *DamageError) Error() string { return fmt.Sprintf("backup: %s: %s", e.Object, e.Reason) }
