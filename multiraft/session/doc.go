// Package session is the bookkeeping behind exactly-once commands: what a group
// remembers of the commands of each client session, and what a client counts.
//
// A command carries raft.SessionHeader {ID, Lineage, Seq, AckedTo, Deadline}.
// Lineage is the shard at which the client counted Seq; a retry carries the
// header of the first try, Deadline included. Every replica judges the command
// when it applies it (Table.Judge): a sequence number that took effect before is
// answered from the record, one whose deadline has passed by group time is
// rejected, everything else is executed and noted (Table.Record). Time is the
// group's own: it comes with the log, moves forward only, and is the same on
// every replica. A record may go once group time has passed the latest deadline
// in it, since from then on every command it could recognise is rejected as
// expired. Nothing else ever removes one: a full table refuses new sessions.
//
// What flows in: headers, the position and result of executed commands, and a
// Store, which is the group's part of the batch under way. What flows out:
// judgements, and writes to the Store. The package is pure: no clock, goroutine,
// lock or I/O of its own. Tables and Client have one owner each.
//
// The idea is that of Ongaro's thesis, section 6.3, with three changes: a window
// of sequence numbers instead of one, so that a client may have many commands
// under way; deadlines instead of a session timeout, so that nothing has to be
// kept alive; and refusal instead of eviction.
package session
