package live

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jsm.go/api"
)

// TestMain removes the fixtures that were unpacked.
func TestMain(m *testing.M) {
	code := m.Run()
	if unpackRoot != "" {
		_ = os.RemoveAll(unpackRoot)
	}
	os.Exit(code)
}

// everyPair tells whether to run each combination, and not only a choice in which everything occurs.
func everyPair() bool { return os.Getenv("JETSAM_LIVE_ALL") != "" }

// complaints are the lines of a server's log that tell of something wrong.
func complaints(log string) (out []string) {
	for _, line := range strings.Split(log, "\n") {
		for _, level := range []string{"[WRN]", "[ERR]", "[FTL]", "panic:"} {
			if i := strings.Index(line, level); i >= 0 {
				out = append(out, strings.TrimSpace(line[i:]))
			}
		}
	}
	return out
}

// quiet fails the test if the server complained of anything but what is allowed.
func quiet(t *testing.T, s *Server, what string, allowed ...*regexp.Regexp) {
	t.Helper()
	for _, line := range complaints(s.Log()) {
		if !slices.ContainsFunc(allowed, func(re *regexp.Regexp) bool { return re.MatchString(line) }) {
			t.Errorf("%s: nats-server %s says: %s", what, s.Version, line)
		}
	}
}

// restoreAll gives every backup in dir (ACCOUNT/STREAM) to the server.
func restoreAll(t *testing.T, s *Server, dir string, replicas int) {
	t.Helper()
	backups, err := filepath.Glob(filepath.Join(dir, "*", "*", "backup.json"))
	must(t, err)
	if len(backups) == 0 {
		t.Fatalf("no backups in %s", dir)
	}
	n := len(backups)
	for i := 0; i < len(backups); i++ {
		b := filepath.Dir(backups[i])
		account, stream := filepath.Base(filepath.Dir(b)), filepath.Base(b)
		var meta struct {
			Config api.StreamConfig `json:"config"`
		}
		text, err := os.ReadFile(filepath.Join(b, "backup.json"))
		must(t, err)
		must(t, json.Unmarshal(text, &meta))
		if follows := meta.Config.Mirror != nil || meta.Config.Sources != nil; follows && i < n {
			backups = append(backups, filepath.Join(b, "backup.json")) // after those that it follows
			continue
		}
		var config *api.StreamConfig
		if replicas > 0 {
			meta.Config.Replicas = replicas
			config = &meta.Config
		}
		if err := Restore(t, s.Connect(account), stream, b, config); err != nil {
			t.Errorf("nats-server %s does not restore %s/%s: %v", s.Version, account, stream, err)
		}
	}
}

// pairing is a fixture, and a server that takes what jetsam makes of it.
type pairing struct {
	fixture string
	server  Version
	format  string
}

func (p pairing) String() string { return fmt.Sprintf("%s/%s-on-%s", p.fixture, p.format, p.server) }

// TestBackupRestores: what `jetsam backup` makes of the fixtures is restored by servers through their API, as
// `nats stream restore` does, and is then what the fixture's server said; also after a restart.
func TestBackupRestores(t *testing.T) {
	if !HaveJetsam(t) {
		t.Skip("no jetsam")
	}
	var pairs []pairing
	servers := testVersions()
	for i, fixture := range FixtureNames(t) {
		for _, v := range servers {
			if everyPair() || Version(v) == firstAtLeast(servers, OpenFixture(t, fixture).Features(), i) {
				pairs = append(pairs, pairing{fixture, Version(v), "v1"})
			}
			if !Version(v).Before(2, 15, 0) && (everyPair() || i%3 == 0) {
				pairs = append(pairs, pairing{fixture, Version(v), "v2"})
			}
		}
	}
	for _, p := range pairs {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			testBackupRestores(t, p)
		})
	}
}

func testBackupRestores(t *testing.T, p pairing) {
	f := OpenFixture(t, p.fixture)
	if !p.server.atLeast(f.Features()) {
		t.Skipf("nats-server %s does not know the features of this store", p.server)
	}
	backup := filepath.Join(t.TempDir(), "backup")
	args := []string{"-q", "backup", f.Store(), backup, "--format", p.format}
	// A server makes a consumer with the policy flow_control for whoever sources its work queue. Servers before 2.14
	// refuse the stream because of it, and jetsam says so.
	if p.server.Before(2, 14, 0) {
		args = append(args, f.without(isInternal)...)
	}
	Jetsam(t, f.Key, args...).Want(t, 0)
	CheckHealthy(t, backup, "", "note")

	s := StartServer(t, p.server, filepath.Join(t.TempDir(), "store"), Options{Accounts: f.Accounts()})
	r := Restoring{From: f.Version, To: p.server, How: p.format}
	if f.Cluster {
		r.Replicas = 1
	}
	restoreAll(t, s, backup, r.Replicas)
	report(t, "restored", CompareRestored(f.Truth, readRestored(t, s), r))
	s.Stop()
	quiet(t, s, "restore", plaintextPasswords, sideFilesMissing)

	s = StartServer(t, p.server, s.StoreDir, s.Opts)
	r.Restarted = true
	want, got := f.Truth, readRestored(t, s)
	allowed := []*regexp.Regexp{plaintextPasswords, originLater}
	if r.raced(t, s) {
		want = want.clone()
		withoutQueues(want, got)
		allowed = append(allowed, workQueueRace)
	}
	report(t, "restarted", CompareRestored(want, got, r))
	s.Stop()
	quiet(t, s, "restart", allowed...)
}

var (
	// The tests' configuration has them, and no system account.
	plaintextPasswords = regexp.MustCompile(`Plaintext passwords detected|Advisory could not be sent for account "\w+": system account not setup`)
	// v1 archives hold neither thw.db, sched.db nor sources.db, a server's no more than jetsam's: the server scans
	// once, when it restores one.
	sideFilesMissing = regexp.MustCompile(`(TTL|Message scheduling|Sourcing) state is outdated; attempting to recover using`)
	// Servers before 2.14 leave out the consumer that a newer one made for whoever sources a work queue: they do not
	// know its policy. Sources are served without it.
	sourcingConsumer = regexp.MustCompile(`Error unmarshalling consumer metafile ".*/obs/JS_SRC_\w+/meta.inf"`)
)

// At a start, a stream may come before the one that it mirrors or sources. The server tries again.
var originLater = regexp.MustCompile(`JetStream error response for .*create (mirror|source) consumer.*: stream not found`)

func isInternal(c *Consumer) bool { return internal(c) }

// without gives the options that choose all consumers but these.
func (f *Fixture) without(left func(*Consumer) bool) (args []string) {
	names, some := map[string]bool{}, false
	for _, streams := range f.Truth {
		for _, st := range streams {
			for name, c := range st.Consumers {
				if left(c) {
					some = true
				} else {
					names[name] = true
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if some {
			args = append(args, "-c", name)
		}
	}
	return args
}

// readRestored asks a server for everything. Before 2.10 a block's deletes are known only once it has been read.
func readRestored(t *testing.T, s *Server) Truth {
	t.Helper()
	truth := ReadTruth(t, s)
	if s.Version.Before(2, 10, 0) {
		truth = ReadTruth(t, s)
	}
	return truth
}

// Restoring is how streams came to a server.
type Restoring struct {
	From, To Version
	// How: v1, v2 (through the API) or store (a directory that jetsam made).
	How       string
	Replicas  int
	Restarted bool
}

// since is when servers learned a key of a configuration.
var since = map[string]Version{
	"metadata": "2.10.0", "compression": "2.10.0", "first_seq": "2.10.0", "subject_transform": "2.10.0", "filter_subjects": "2.10.0",
	"allow_msg_ttl": "2.11.0", "subject_delete_marker_ttl": "2.11.0", "pause_until": "2.11.0", "priority_groups": "2.11.0", "priority_policy": "2.11.0",
	"allow_atomic": "2.12.0", "allow_msg_counter": "2.12.0", "allow_msg_schedules": "2.12.0",
}

// CompareRestored lists how restored streams differ from the truth of those that were backed up. Each exception has
// its reason.
func CompareRestored(want, got Truth, r Restoring) []string {
	now := time.Now()
	w, g := want.clone(), got.clone()
	var out []string
	for account, streams := range got {
		for name := range streams {
			if orig := w[account][name]; orig != nil {
				r.adapt(orig, g[account][name])
				if diffs, some := compareExpired(orig, g[account][name], now); some {
					for _, d := range diffs {
						out = append(out, account+"/"+name+" "+d)
					}
					delete(w[account], name)
					delete(g[account], name)
				}
			}
		}
	}
	return append(out, Compare(w, g, Rules{Version: r.To, Ended: now, Restarted: true})...)
}

func (t Truth) clone() Truth {
	all := Truth{}
	for account, streams := range t {
		all[account] = map[string]*Stream{}
		for name, st := range streams {
			all[account][name] = st.clone()
		}
	}
	return all
}

func (s *Stream) clone() *Stream {
	c := *s
	c.Config = maps.Clone(s.Config)
	c.Consumers = map[string]*Consumer{}
	for name, consumer := range s.Consumers {
		copied := *consumer
		copied.Config = maps.Clone(consumer.Config)
		c.Consumers[name] = &copied
	}
	return &c
}

func (r Restoring) adapt(w, g *Stream) {
	r.adaptConfig(w.Config, g.Config)
	if r.Replicas > 0 { // asked for
		w.Config["num_replicas"] = float64(r.Replicas)
	}
	// Servers take away a mirror's window for duplicates at a start; earlier ones had given it one.
	if w.Config["mirror"] != nil {
		delete(w.Config, "duplicate_window")
		delete(g.Config, "duplicate_window")
	}
	r.adaptCreated(&w.Created, g.Created, false)

	// Early servers do not count subjects.
	subjects := map[string]uint64{}
	for _, m := range w.Messages {
		subjects[m.Subject]++
	}
	if w.State.NumSubjects == 0 {
		w.State.NumSubjects, w.State.Subjects = len(subjects), subjects
	}
	// 2.9 reports subjects only up to its first restart in some states; before 2.9 their list is not in the truth.
	if w.State.Subjects == nil {
		w.State.Subjects = subjects
	}
	// NATSARC1 holds no time for a deleted message, and before 2.9 the disk holds none for a stream without messages.
	deleted := len(w.Messages) == 0 || w.Messages[len(w.Messages)-1].Seq < w.State.LastSeq
	if deleted && (r.How == "v2" || r.From.Before(2, 9, 0) && w.State.Messages == 0) {
		w.State.LastTime = g.State.LastTime
	}
	// NATSARC1 does not hold when a stream was created, by which 2.15 knows one that it sources again; and what a server
	// before 2.10 noted of a source in a message, it does not understand in a restore. Either way it copies all once more.
	if r.How == "v2" {
		follow(w, g)
	}
	for name, wc := range w.Consumers {
		if gc := g.Consumers[name]; gc != nil {
			r.adaptConsumer(wc, gc, w.Messages, w.State.FirstSeq)
		}
	}
}

// follow takes out what a mirror or what has sources got from its origin in the meantime.
func follow(w, g *Stream) {
	if w == nil || w.Config["mirror"] == nil && w.Config["sources"] == nil || g.State.LastSeq <= w.State.LastSeq {
		return
	}
	g.Messages = slices.DeleteFunc(slices.Clone(g.Messages), func(m Message) bool { return m.Seq > w.State.LastSeq })
	if uint64(len(g.Messages)) == w.State.Messages {
		g.State = w.State
	}
}

func (r Restoring) adaptConfig(w, g map[string]any) {
	for k := range g {
		// A newer server answers with its defaults for what an older one did not know.
		if _, ok := w[k]; !ok && (g[k] == float64(0) || g[k] == float64(-1)) {
			delete(g, k)
		}
	}
	for k := range w {
		if v, ok := since[k]; ok && !r.To.atLeast(v) {
			delete(w, k)
		}
	}
}

func (r Restoring) adaptCreated(w *time.Time, g time.Time, consumer bool) {
	switch {
	// NATSARC1 does not hold the time of creation: it is that of the restore.
	case r.How == "v2":
		if g.After(*w) {
			*w = g
		}
	// Until 2.14.5 a restore with a configuration that is not to the letter that of meta.inf (replicas, defaults, every
	// stream with sources) loses the time at the next restart.
	case r.How == "v1" && !consumer && r.Restarted && r.To.Before(2, 14, 6):
		if g.After(*w) {
			*w = g
		}
	// Until 2.11 the API gives another reading of the clock than meta.inf, for consumers and in clusters.
	case r.From.Before(2, 12, 0):
		if later := g.Sub(*w); later > 0 && later < time.Second {
			*w = g
		}
	}
}

func (r Restoring) adaptConsumer(w, g *Consumer, messages []Message, first uint64) {
	r.adaptConfig(w.Config, g.Config)
	r.adaptCreated(&w.Created, g.Created, true)
	// A server that restores NATSARC1 takes no ack floor from before the first message.
	if start, _ := w.Config["opt_start_seq"].(float64); r.How == "v2" && g.AckFloor.Stream == uint64(max(start, float64(first), 1))-1 {
		w.AckFloor.Stream = max(w.AckFloor.Stream, g.AckFloor.Stream)
	}
	if w.Delivered.Consumer == 0 {
		// Until 2.12 a consumer that never delivered tells no ack floor until its first restart, which works it out.
		if w.AckFloor.Stream == 0 && g.AckFloor.Stream == w.Delivered.Stream || g.AckFloor.Stream == 0 && w.AckFloor.Stream == w.Delivered.Stream {
			w.AckFloor.Stream = g.AckFloor.Stream
		}
		// Before 2.9 its stored state is zeros, and every server then says that all is before it.
		if r.From.Before(2, 9, 0) && g.Delivered.Stream == 0 {
			w.Delivered.Stream, w.AckFloor.Stream = 0, 0
			w.NumPending, _ = countPending(w, messages)
		}
	}
	// 2.2 does not count a redelivery as delivered; before 2.9 the stored ack floor is the acked message, not the one
	// before the next that is pending.
	if r.From.Before(2, 3, 0) && w.NumRedelivered > 0 && g.Delivered.Consumer < w.Delivered.Consumer {
		w.Delivered.Consumer -= uint64(w.NumRedelivered)
	}
	if r.From.Before(2, 9, 0) && g.AckFloor.Consumer == w.AckFloor.Consumer && g.AckFloor.Stream < w.AckFloor.Stream {
		w.AckFloor.Stream = g.AckFloor.Stream
	}
}

// compareExpired compares streams of which messages have expired by now: the others have to be there, and what is
// new may only be the marks that tell of it.
func compareExpired(w, g *Stream, now time.Time) (out []string, some bool) {
	var live []Message
	old := map[uint64]bool{}
	for _, m := range w.Messages {
		if at, ok := expiry(w.Config, m); ok && at.Before(now) {
			old[m.Seq] = true
		} else {
			live = append(live, m)
		}
	}
	if len(old) == 0 {
		return nil, false
	}
	var rest []Message
	for _, m := range g.Messages {
		mark := m.Seq > w.State.LastSeq && strings.Contains(string(m.Header), "Nats-Marker-Reason: MaxAge")
		if !old[m.Seq] && !mark {
			rest = append(rest, m)
		}
	}
	if g.State.LastSeq < w.State.LastSeq {
		out = append(out, fmt.Sprintf("last_seq: %d, the truth is %d", g.State.LastSeq, w.State.LastSeq))
	}
	return append(out, compareMessages(live, rest)...), true
}

// expiry tells when a message goes by itself, if it does.
func expiry(config map[string]any, m Message) (time.Time, bool) {
	for _, line := range strings.Split(string(m.Header), "\r\n") {
		if ttl, ok := strings.CutPrefix(line, "Nats-TTL: "); ok {
			if n, err := strconv.Atoi(ttl); err == nil {
				return m.Time.Add(time.Duration(n) * time.Second), true
			}
		}
	}
	return expires(config, m)
}
