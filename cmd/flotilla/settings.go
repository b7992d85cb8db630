package main

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	toml "github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"

	"github.com/flotillakv/flotilla"
)

// duration is a length of time, written "10s" or "500ms". It is a struct, so
// that a file cannot give it as a bare number.
type duration struct{ d time.Duration }

// UnmarshalText reads "10s".
func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration; write it like 500ms, 10s or 2m", b)
	}
	d.d = v
	return nil
}

// String writes the duration without zero parts.
func (d duration) String() string {
	s := d.d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// size is a number of bytes, written "64MiB".
type size int64

var sizeUnits = []struct {
	name string
	n    int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1}}

// UnmarshalText reads "64MiB" or a plain number of bytes.
func (s *size) UnmarshalText(b []byte) error {
	bad := fmt.Errorf("%q is not a size; write it like 64MiB or 1GiB", b)
	text, unit := strings.TrimSpace(string(b)), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(text, u.name); ok {
			text, unit = strings.TrimSpace(rest), u.n
			break
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return bad
	}
	*s = size(n * unit)
	return nil
}

// String writes the size in the largest binary unit that divides it.
func (s size) String() string {
	for _, u := range sizeUnits[:4] {
		if s != 0 && int64(s)%u.n == 0 {
			return strconv.FormatInt(int64(s)/u.n, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// config is everything serve can be told, in the shape of its TOML file. The
// tags of a field give the flag, which also names the environment variable
// (FLOTILLA_ and the flag in capitals), and the words of help.
type config struct {
	Node struct {
		Dir string `toml:"dir" flag:"dir" help:"directory of the node's data; created if it does not exist"`
		ID  uint32 `toml:"id" flag:"node-id" help:"the node's id, from 1 up; 0: from the directory, else by the order of the addresses at bootstrap, else assigned at join"`
	} `toml:"node"`
	Network struct {
		Listen          string `toml:"listen" flag:"listen" help:"address for the other nodes; empty: a node without peers"`
		Advertise       string `toml:"advertise" flag:"advertise" help:"address at which the other nodes reach listen; empty: the same"`
		ClientListen    string `toml:"client_listen" flag:"client-listen" help:"address for clients"`
		ClientAdvertise string `toml:"client_advertise" flag:"client-advertise" help:"address at which clients reach client_listen; empty: the same"`
	} `toml:"network"`
	Cluster struct {
		ID        string   `toml:"id" flag:"cluster-id" help:"cluster the data must belong to, 32 hexadecimal digits; empty: any"`
		Bootstrap int      `toml:"bootstrap" flag:"bootstrap" help:"form a new cluster of this many nodes; 0: none. Not used once the data belongs to a cluster"`
		Join      []string `toml:"join" flag:"join" help:"peer addresses of nodes of the cluster; its own may be among them"`
		Rejoin    bool     `toml:"rejoin" flag:"rejoin" help:"join as a new node if the directory is empty, instead of forming a cluster: for a node that lost its disk. Not used once the data belongs to a cluster"`
		Shards    int      `toml:"shards" flag:"shards" help:"shards of a new cluster, of equal width; 0: 1, or as many as split_at says"`
		SplitAt   string   `toml:"split_at" flag:"split-at" help:"file with the boundaries of a new cluster's shards, one key per line, ascending"`
		Replicas  int      `toml:"replicas" flag:"replicas" help:"replicas per shard of a new cluster; 0: 3, or as many as there are nodes if fewer"`
	} `toml:"cluster"`
	TLS struct {
		CA   string `toml:"ca" flag:"tls-ca" help:"PEM file with the authorities whose certificates are accepted; empty: no TLS"`
		Cert string `toml:"cert" flag:"tls-cert" help:"PEM file with the node's certificate, which names it flotilla://CLUSTER/node/ID; read again when it changes"`
		Key  string `toml:"key" flag:"tls-key" help:"PEM file with the certificate's private key"`
	} `toml:"tls"`
	Raft struct {
		Heartbeat    duration `toml:"heartbeat" flag:"heartbeat" help:"interval at which nodes show each other that they live"`
		Support      duration `toml:"support" flag:"support" help:"after this long without a sign of life a node counts as down; at least four heartbeats"`
		ElectionRank duration `toml:"election_rank" flag:"election-rank" help:"delay between one candidate for leadership and the next; well above a network round trip"`
		NoClock      bool     `toml:"no_clock" flag:"no-clock" help:"claim no leases: have every linearizable read confirmed by a majority, as where clocks cannot be trusted"`
	} `toml:"raft"`
	Limits struct {
		Memory         size     `toml:"memory" flag:"memory" help:"memory of the whole process, shared out over caches, write buffers and queues; at least 128MiB"`
		Proposals      size     `toml:"proposals" flag:"proposals" help:"size of all writes that may wait on the node; 0: a sixteenth of the memory, 256MiB at most; else at least 4MiB"`
		Wait           duration `toml:"wait" flag:"write-wait" help:"refuse writes that would wait longer than this on the node"`
		Log            size     `toml:"log" flag:"log-limit" help:"most that the Raft logs of all shards may take on the disk; at least 16MiB"`
		Disk           size     `toml:"disk" flag:"disk-limit" help:"the most that the directory may take; short of it writes that add data are refused, deletes are not; 0: what the file system has; else at least 64MiB"`
		Ballast        size     `toml:"ballast" flag:"ballast" help:"space kept in the directory for when the disk is full; a hundredth of what the node may use at most; 0: none"`
		RequestTimeout duration `toml:"request_timeout" flag:"request-timeout" help:"limit of a request that has no other"`
		Drain          duration `toml:"drain" flag:"drain" help:"time to hand leaderships over when stopped"`
	} `toml:"limits"`
	Compaction struct {
		Policy  string   `toml:"policy" flag:"compaction" help:"who decides how far the Raft logs are cut: piggybacked, in-log, replica or leader-image; best the same on all nodes"`
		Entries int      `toml:"entries" flag:"compaction-entries" help:"cut a shard's log once so many entries can go; piggybacked does not ask"`
		Bytes   size     `toml:"bytes" flag:"compaction-bytes" help:"cut a shard's log once entries of so many bytes can go; piggybacked does not ask"`
		Age     duration `toml:"age" flag:"compaction-age" help:"cut a shard's log once its oldest entry is so old; piggybacked does not ask"`
		Images  size     `toml:"images" flag:"compaction-images" help:"what the images of shards may take together that leader-image keeps; 0: as much as limits.log"`
		Idle    duration `toml:"idle" flag:"compaction-idle" help:"cut a shard's log once nothing was written to the shard for so long; for every policy"`
	} `toml:"compaction"`
	Log struct {
		Level  string `toml:"level" flag:"log-level" help:"debug, info, warn or error"`
		Format string `toml:"format" flag:"log-format" help:"text or json; auto: text on a terminal, else json"`
	} `toml:"log"`
}

func defaultConfig() *config {
	c := new(config)
	c.Network.ClientListen = defaultAddr
	c.Raft.Heartbeat = duration{500 * time.Millisecond}
	c.Raft.Support = duration{2500 * time.Millisecond}
	c.Raft.ElectionRank = duration{40 * time.Millisecond}
	c.Limits.Memory = flotilla.DefaultMemory
	c.Limits.Wait = duration{500 * time.Millisecond}
	c.Limits.Log = 1 << 30
	c.Limits.Ballast = flotilla.DefaultBallast
	c.Limits.RequestTimeout = duration{10 * time.Second}
	c.Limits.Drain = duration{10 * time.Second}
	c.Compaction.Policy = string(flotilla.CompactPiggybacked)
	c.Compaction.Entries = flotilla.DefaultCompactEntries
	c.Compaction.Bytes = flotilla.DefaultCompactBytes
	c.Compaction.Age = duration{flotilla.DefaultCompactAge}
	c.Compaction.Idle = duration{flotilla.DefaultCompactIdle}
	c.Log.Level = "info"
	c.Log.Format = "auto"
	return c
}

// setting is one field of a config.
type setting struct {
	section, key string // as in the file
	flag, help   string
	index        [2]int // of the field
}

func (s setting) path() string { return s.section + "." + s.key }

// env returns the name of the environment variable.
func (s setting) env() string {
	return "FLOTILLA_" + strings.ToUpper(strings.ReplaceAll(s.flag, "-", "_"))
}

// settings lists all fields of config in the order of the file.
var settings = listSettings()

func listSettings() []setting {
	var all []setting
	t := reflect.TypeFor[config]()
	for i := range t.NumField() {
		section := t.Field(i)
		for j := range section.Type.NumField() {
			f := section.Type.Field(j)
			all = append(all, setting{section.Tag.Get("toml"), f.Tag.Get("toml"), f.Tag.Get("flag"), f.Tag.Get("help"), [2]int{i, j}})
		}
	}
	return all
}

func (c *config) field(s setting) reflect.Value {
	return reflect.ValueOf(c).Elem().Field(s.index[0]).Field(s.index[1])
}

// text returns a setting's value as it is given on the command line.
func (c *config) text(s setting) string {
	switch v := c.field(s).Interface().(type) {
	case []string:
		return strings.Join(v, ",")
	default:
		return fmt.Sprint(v)
	}
}

// set gives a setting the value written in text.
func (c *config) set(s setting, text string) error {
	switch p := c.field(s).Addr().Interface().(type) {
	case *string:
		*p = text
	case *[]string:
		*p = nil
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part != "" {
				*p = append(*p, part)
			}
		}
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		*p = n
	case *bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		*p = b
	case *uint32:
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return fmt.Errorf("%q is not a whole number from 0 up", text)
		}
		*p = uint32(n)
	case interface{ UnmarshalText([]byte) error }:
		return p.UnmarshalText([]byte(text))
	}
	return nil
}

// settingFlag lets pflag hold a setting as text until all sources are merged.
type settingFlag struct{ text, kind string }

func (f *settingFlag) String() string     { return f.text }
func (f *settingFlag) Set(s string) error { f.text = s; return nil }
func (f *settingFlag) Type() string       { return f.kind }

// addSettings gives a command the flags of all settings, and --config.
func addSettings(fs *pflag.FlagSet) {
	fs.String("config", "", "TOML file with settings (env FLOTILLA_CONFIG); flotilla config default prints one")
	def := defaultConfig()
	for _, s := range settings {
		kind := strings.TrimPrefix(def.field(s).Type().String(), "main.")
		if kind == "[]string" {
			kind = "list"
		}
		fs.Var(&settingFlag{def.text(s), kind}, s.flag, s.help)
		if kind == "bool" {
			fs.Lookup(s.flag).NoOptDefVal = "true"
		}
	}
}

// resolved is a config with the source of each value.
type resolved struct {
	*config
	origin map[string]string // by path
}

// resolve merges defaults, file, environment and flags; the later wins.
func resolve(fs *pflag.FlagSet, env func(string) (string, bool)) (*resolved, error) {
	r := &resolved{config: defaultConfig(), origin: make(map[string]string)}
	for _, s := range settings {
		r.origin[s.path()] = "default"
	}
	file, _ := fs.GetString("config")
	if v, ok := env("FLOTILLA_CONFIG"); ok && !fs.Changed("config") {
		file = v
	}
	if file != "" {
		if err := r.readFile(file); err != nil {
			return nil, err
		}
	}
	var errs []error
	for _, s := range settings {
		if v, ok := env(s.env()); ok {
			r.origin[s.path()] = "environment " + s.env()
			if err := r.set(s, v); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", s.env(), err))
			}
		}
		if fs.Changed(s.flag) {
			r.origin[s.path()] = "flag --" + s.flag
			if err := r.set(s, fs.Lookup(s.flag).Value.String()); err != nil {
				errs = append(errs, fmt.Errorf("--%s: %w", s.flag, err))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, usageError("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return r, r.check()
}

// check refuses zeros, and words that are not among those a setting can have; everything
// else is checked by flotilla.Options.Validate.
func (r *resolved) check() error {
	for _, s := range settings { // zero in Options would mean the default
		if v := r.field(s); !slices.Contains([]string{"limits.drain", "limits.proposals", "limits.disk", "limits.ballast", "compaction.images"}, s.path()) && (v.Type() == reflect.TypeFor[duration]() || v.Type() == reflect.TypeFor[size]()) && v.IsZero() {
			return usageError("%s = %s (%s): must be more than 0", s.path(), r.text(s), r.origin[s.path()])
		}
	}
	if r.Compaction.Entries == 0 {
		return usageError("compaction.entries = 0 (%s): must be more than 0", r.origin["compaction.entries"])
	}
	for _, c := range []struct {
		path, value string
		words       []string
	}{
		{"compaction.policy", r.Compaction.Policy, policyNames()},
		{"log.level", r.Log.Level, []string{"debug", "info", "warn", "error"}},
		{"log.format", r.Log.Format, []string{"auto", "text", "json"}},
	} {
		if !slices.Contains(c.words, c.value) {
			return usageError("%s = %q (%s): must be one of %s%s", c.path, c.value, r.origin[c.path], strings.Join(c.words, ", "), didYouMean(c.value, c.words))
		}
	}
	return nil
}

// policyNames lists the policies by which logs are cut.
func policyNames() (names []string) {
	for _, p := range flotilla.CompactionPolicies() {
		names = append(names, string(p))
	}
	return names
}

// readFile merges a TOML file. A key that does not exist is refused, with its
// line, and the key that was probably meant.
func (r *resolved) readFile(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return failure(exitUsage, err, "flotilla config default > flotilla.toml", "cannot read the configuration: %v", err)
	}
	text := string(b)
	var present map[string]any
	if err := toml.Unmarshal(b, &present); err != nil {
		return fileError(name, text, err)
	}
	for _, s := range settings {
		section, _ := present[s.section].(map[string]any)
		v, ok := section[s.key]
		if !ok {
			continue
		}
		r.origin[s.path()] = "file " + name
		// The decoder loses the place of what these types refuse.
		switch p := r.field(s).Addr().Interface().(type) {
		case *duration:
			d, isText := v.(string)
			if !isText {
				return pointAt(name, text, placeOf(text, s), hintType(s))
			}
			if err := p.UnmarshalText([]byte(d)); err != nil {
				return pointAt(name, text, placeOf(text, s), fmt.Sprintf("%s: %v", s.path(), err))
			}
		case *size:
			if err := p.UnmarshalText([]byte(fmt.Sprint(v))); err != nil {
				return pointAt(name, text, placeOf(text, s), hintType(s))
			}
		}
	}
	dec := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields()
	if err := dec.Decode(r.config); err != nil {
		return fileError(name, text, err)
	}
	return nil
}

// place is where something stands in a file: line and column from 1, and how
// many bytes of the line it takes.
type place struct{ row, col, width int }

func placeOfError(text string, e *toml.DecodeError) place {
	row, col := e.Position()
	p := place{row, col, 1}
	if key := e.Key(); len(key) > 0 {
		last := key[len(key)-1]
		if all := strings.Split(text, "\n"); row >= 1 && row <= len(all) && col >= 1 && col <= len(all[row-1]) && strings.HasPrefix(all[row-1][col-1:], last) {
			p.width = len(last)
		}
	}
	return p
}

// placeOf finds the line that gives a setting its value.
func placeOf(text string, s setting) place {
	section := ""
	for i, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "[") {
			section = strings.Trim(strings.TrimRight(trimmed, " \t\r"), "[] ")
			continue
		}
		key, _, ok := strings.Cut(trimmed, "=")
		if key = strings.Trim(strings.TrimSpace(key), `"`); ok && (section == s.section && key == s.key || section == "" && key == s.path()) {
			return place{i + 1, strings.Index(line, trimmed) + 1, len(key)}
		}
	}
	return place{1, 1, 1}
}

// fileError points at the place in a file that is wrong.
func fileError(name, text string, err error) error {
	var strict *toml.StrictMissingError
	var dec *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		dec = &strict.Errors[0]
		return pointAt(name, text, placeOfError(text, dec), unknownKey(dec.Key()))
	case errors.As(err, &dec):
		reason := strings.TrimPrefix(dec.Error(), "toml: ")
		for _, s := range settings {
			if s.path() == strings.Join(dec.Key(), ".") && strings.Contains(reason, "cannot decode") {
				reason = hintType(s)
			}
		}
		return pointAt(name, text, placeOfError(text, dec), reason)
	}
	return usageError("%s: %v", name, err)
}

// hintType says how the value of a setting is written.
func hintType(s setting) string {
	form := "a whole number, written without quotes"
	switch new(config).field(s).Interface().(type) {
	case duration:
		form = `a duration, written in quotes like "500ms" or "10s"`
	case size:
		form = `a size, written in quotes like "64MiB"`
	case []string:
		form = `a list, written like ["host1:7001", "host2:7001"]`
	case string:
		form = "a text, written in quotes"
	case bool:
		form = "true or false, written without quotes"
	}
	return s.path() + " is " + form
}

func unknownKey(key []string) string {
	var sections, keys []string
	for _, s := range settings {
		if !slices.Contains(sections, s.section) {
			sections = append(sections, s.section)
		}
		if len(key) > 1 && s.section == key[0] {
			keys = append(keys, s.key)
		}
	}
	last := key[len(key)-1]
	if len(keys) == 0 {
		for _, s := range settings { // a known key outside of its section
			if len(key) == 1 && s.key == last {
				return fmt.Sprintf("unknown key %q outside of a section; it belongs in [%s]", last, s.section)
			}
		}
		return fmt.Sprintf("unknown section or key %q%s", key[0], didYouMean(key[0], sections))
	}
	return fmt.Sprintf("unknown key %q in [%s]%s", last, key[0], didYouMean(last, keys))
}

// pointAt makes an error that shows the line and underlines the place.
func pointAt(name, text string, at place, reason string) error {
	shown := ""
	if all := strings.Split(text, "\n"); at.row >= 1 && at.row <= len(all) {
		number := fmt.Sprintf("%3d", at.row)
		shown = fmt.Sprintf("\n%s| %s\n%s| %s%s", number, strings.TrimRight(all[at.row-1], "\r"),
			strings.Repeat(" ", len(number)), strings.Repeat(" ", max(0, at.col-1)), strings.Repeat("~", at.width))
	}
	return usageError("%s:%d: %s%s", name, at.row, reason, shown)
}

// optionPaths maps the fields of flotilla.Options to the settings they come from.
var optionPaths = map[string]string{
	"Dir": "node.dir", "NodeID": "node.id", "Listen": "network.listen", "Advertise": "network.advertise", "ClientListen": "network.client_listen", "ClientAdvertise": "network.client_advertise",
	"Bootstrap": "cluster.bootstrap", "Join": "cluster.join", "Rejoin": "cluster.rejoin",
	"Shards": "cluster.shards", "SplitAt": "cluster.split_at", "Replicas": "cluster.replicas", "ClusterID": "cluster.id",
	"TLS": "tls.cert", "TLS.CA": "tls.ca", "TLS.Cert": "tls.cert", "TLS.Key": "tls.key",
	"Timing.Heartbeat": "raft.heartbeat", "Timing.Support": "raft.support", "Timing.ElectionRank": "raft.election_rank",
	"Limits.Memory": "limits.memory", "Limits.Proposals": "limits.proposals", "Limits.Wait": "limits.wait", "Limits.Log": "limits.log", "Limits.Disk": "limits.disk", "Limits.Ballast": "limits.ballast",
	"Compaction.Policy": "compaction.policy", "Compaction.Entries": "compaction.entries", "Compaction.Bytes": "compaction.bytes", "Compaction.Age": "compaction.age", "Compaction.Idle": "compaction.idle", "Compaction.ImageBytes": "compaction.images", "Timeout": "limits.request_timeout",
}

// options returns what the node is opened with. Faults are told in the words of
// the settings, with the source of each bad value.
func (r *resolved) options() (flotilla.Options, error) {
	if r.Node.Dir == "" {
		return flotilla.Options{}, failure(exitUsage, nil, "flotilla serve --dir DIR; flotilla dev runs a cluster without one", `node.dir = "" (%s): a directory for the data is needed`, r.origin["node.dir"])
	}
	splitAt, err := readSplits(r.Cluster.SplitAt)
	if err != nil {
		return flotilla.Options{}, err
	}
	o := flotilla.Options{
		Dir: r.Node.Dir, NodeID: r.Node.ID, ClusterID: r.Cluster.ID,
		Listen: r.Network.Listen, Advertise: r.Network.Advertise,
		ClientListen: r.Network.ClientListen, ClientAdvertise: r.Network.ClientAdvertise,
		Bootstrap: r.Cluster.Bootstrap, Rejoin: r.Cluster.Rejoin, Join: r.Cluster.Join,
		Shards: r.Cluster.Shards, SplitAt: splitAt, Replicas: r.Cluster.Replicas,
		Timeout: r.Limits.RequestTimeout.d,
		Limits:  flotilla.Limits{Memory: int64(r.Limits.Memory), Proposals: int64(r.Limits.Proposals), Wait: r.Limits.Wait.d, Log: int64(r.Limits.Log), Disk: int64(r.Limits.Disk), Ballast: int64(r.Limits.Ballast)},
		Timing: flotilla.Timing{Heartbeat: r.Raft.Heartbeat.d, Support: r.Raft.Support.d,
			ElectionRank: r.Raft.ElectionRank.d},
		NoClock: r.Raft.NoClock,
		Compaction: flotilla.Compaction{Policy: flotilla.CompactionPolicy(r.Compaction.Policy), Entries: r.Compaction.Entries,
			Bytes: int64(r.Compaction.Bytes), Age: r.Compaction.Age.d, Idle: r.Compaction.Idle.d, ImageBytes: int64(r.Compaction.Images)},
		// The process is the node's: it is held to limits.memory as a whole.
		WholeProcess: true,
	}
	if r.TLS.CA+r.TLS.Cert+r.TLS.Key != "" {
		o.TLS = &flotilla.TLSFiles{CA: r.TLS.CA, Cert: r.TLS.Cert, Key: r.TLS.Key}
	}
	if err := o.Validate(); err != nil {
		return o, r.explain(err)
	}
	return o, nil
}

// explain says the faults of Options in the words of the settings.
func (r *resolved) explain(err error) error {
	list := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		list = joined.Unwrap()
	}
	var texts []string
	for _, e := range list {
		opt := new(flotilla.OptionError)
		path, known := "", false
		if errors.As(e, &opt) {
			path, known = optionPaths[opt.Field]
		}
		if !known {
			texts = append(texts, strings.TrimPrefix(e.Error(), "flotilla: "))
			continue
		}
		texts = append(texts, fmt.Sprintf("%s = %s (%s): %s", path, opt.Value, r.origin[path], opt.Reason))
	}
	return failure(exitUsage, err, "flotilla config show --origin", "%s", strings.Join(texts, "; "))
}

// readSplits reads the boundaries of shards, one key per line, from a file.
func readSplits(name string) ([][]byte, error) {
	if name == "" {
		return nil, nil
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, failure(exitUsage, err, "", "cannot read the shard boundaries: %v", err)
	}
	var keys [][]byte
	text := strings.TrimSuffix(string(b), "\n")
	for i, line := range strings.Split(text, "\n") {
		switch {
		case line == "":
			return nil, usageError("%s:%d: an empty line cannot be a shard boundary", name, i+1)
		case len(keys) > 0 && string(keys[len(keys)-1]) >= line:
			return nil, usageError("%s:%d: boundary %q does not come after the one before it; sort the file with LC_ALL=C sort -u", name, i+1, line)
		}
		keys = append(keys, []byte(line))
	}
	return keys, nil
}
