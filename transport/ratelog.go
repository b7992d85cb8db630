package transport

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// rateLog lets one line per key and interval through and says how many it kept back.
type rateLog struct {
	log   *slog.Logger
	every time.Duration

	mu   sync.Mutex
	last map[string]*logLine
}

type logLine struct {
	at     time.Time
	hidden int
}

const rateLogKeys = 1024 // more keys than this start over

func newRateLog(l *slog.Logger) *rateLog {
	return &rateLog{log: l, every: 5 * time.Second, last: map[string]*logLine{}}
}

func (r *rateLog) warn(key, msg string, args ...any) { r.put(slog.LevelWarn, key, msg, args) }
func (r *rateLog) info(key, msg string, args ...any) { r.put(slog.LevelInfo, key, msg, args) }

func (r *rateLog) put(level slog.Level, key, msg string, args []any) {
	now := time.Now()
	r.mu.Lock()
	if len(r.last) > rateLogKeys {
		clear(r.last)
	}
	l := r.last[key]
	if l == nil {
		l = &logLine{}
		r.last[key] = l
	}
	if !l.at.IsZero() && now.Sub(l.at) < r.every {
		l.hidden++
		r.mu.Unlock()
		return
	}
	if l.hidden > 0 {
		args = append(args, "suppressed", l.hidden)
	}
	l.at, l.hidden = now, 0
	r.mu.Unlock()
	r.log.Log(context.Background(), level, msg, args...)
}
