package live

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// storeForm is a way to come to a store directory by `jetsam restore`.
type storeForm struct {
	name    string
	source  string // store, v1, v2 (backups that jetsam makes first) or server (archives that the server made)
	cipher  string // of the new store; "" as the source, "none" plaintext
	rename  bool   // one stream, under another name
	account string // another account
}

var storeForms = []storeForm{
	{name: "store", source: "store"},
	{name: "v1", source: "v1"},
	{name: "v2", source: "v2"},
	{name: "server", source: "server"},
	{name: "chacha", source: "store", cipher: "chacha"},
	{name: "aes", source: "store", cipher: "aes"},
	{name: "v1-aes", source: "v1", cipher: "aes"},
	{name: "rename", source: "store", rename: true},
	{name: "v2-rename-chacha", source: "v2", rename: true, cipher: "chacha"},
	{name: "account", source: "store", account: "OTHER"},
	{name: "decrypt", source: "store", cipher: "none"},
}

// TestRestoredStoresStart: the stores that `jetsam restore` makes are started by servers as if they had stopped
// there: nothing is lost, nothing comes back, nothing is scanned, nothing is complained of.
func TestRestoredStoresStart(t *testing.T) {
	if !HaveJetsam(t) {
		t.Skip("no jetsam")
	}
	servers := testVersions()
	for i, fixture := range FixtureNames(t) {
		for j, v := range servers {
			for k, form := range storeForms {
				// Each fixture comes to two servers, and each form to each server.
				if !everyPair() && !((i+2*j+3*(i/len(servers)))%len(servers) < 2 && k == (i+j*3)%len(storeForms)) {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s-on-%s", fixture, form.name, v), func(t *testing.T) {
					t.Parallel()
					testRestoredStoreStarts(t, fixture, form, Version(v))
				})
			}
		}
	}
}

func testRestoredStoreStarts(t *testing.T, fixture string, form storeForm, v Version) {
	f := OpenFixture(t, fixture)
	if !v.atLeast(f.Features()) {
		t.Skipf("nats-server %s does not know the features of this store", v)
	}
	if form.cipher == "none" && f.Key == "" || form.account != "" && f.Accounts() != nil {
		t.Skip("no such form of this fixture")
	}
	store, want, o := restoreFixture(t, f, form)
	CheckHealthy(t, store, o.Key, "note")
	// Only now: from here on servers change it.
	scanned := filepath.Join(t.TempDir(), "scanned")
	CopyTree(t, store, scanned)

	r := Restoring{From: f.Version, To: v, How: "store"}
	if form.source == "v2" || form.source == "server" && !f.Version.Before(2, 15, 0) {
		r.How = "v2"
	}
	if f.Cluster {
		r.Replicas = 1
	}
	allowed := []*regexp.Regexp{plaintextPasswords, originLater}
	if v.Before(2, 14, 0) {
		allowed = append(allowed, sourcingConsumer)
	}
	s := StartServer(t, v, store, o)
	got := readRestored(t, s)
	report(t, "started", CompareRestored(want, got, r))
	publishOne(t, s, got)
	time.Sleep(300 * time.Millisecond) // mirrors and sources follow
	got = readRestored(t, s)
	s.Stop()
	quiet(t, s, "start", allowed...)

	s = StartServer(t, v, store, o)
	again := readRestored(t, s)
	// Until 2.9 the source consumer of an early stream may come before the consumers of a work queue, which are then
	// refused; that has nothing to do with how the store was made.
	if refused := workQueueRace.FindStringSubmatch(s.Log()); v.Before(2, 10, 0) && refused != nil {
		for _, streams := range got {
			for _, st := range streams {
				if st.Config["retention"] == "workqueue" {
					delete(st.Consumers, refused[1])
				}
			}
		}
		allowed = append(allowed, workQueueRace)
	}
	report(t, "restarted", Compare(got, again, Rules{Version: v, Ended: time.Now(), Restarted: true}))
	s.Stop()
	quiet(t, s, "restart", allowed...)

	if v.Before(2, 10, 0) {
		return // knows no index.db
	}
	damaged := damageFirst(t, scanned, want)
	s = StartServer(t, v, scanned, o)
	for at, messages := range damaged {
		if n := countMessages(t, s, at); n != messages {
			t.Errorf("index.db of %v was not taken: %d messages, not %d", at, n, messages)
		}
	}
	s.Kill()
	quiet(t, s, "start without a scan", allowed...)
}

var workQueueRace = regexp.MustCompile(`Error adding consumer "(\w+)": multiple non-filtered consumers not allowed on workqueue stream`)

// TestScanLosesDamaged: the measure of the test above. A server that has to scan a damaged block drops it or cuts it.
func TestScanLosesDamaged(t *testing.T) {
	if !HaveJetsam(t) {
		t.Skip("no jetsam")
	}
	for _, version := range testVersions() {
		v := Version(version)
		if v.Before(2, 10, 0) {
			continue
		}
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			f := OpenFixture(t, "2.10.29-basic")
			store, want, o := restoreFixture(t, f, storeForm{source: "store"})
			damaged := damageFirst(t, store, want)
			indexes, err := filepath.Glob(filepath.Join(store, "jetstream", "*", "streams", "*", "msgs", "index.db"))
			must(t, err)
			for _, index := range indexes {
				must(t, os.Remove(index))
			}
			s := StartServer(t, v, store, o)
			for at, messages := range damaged {
				if n := countMessages(t, s, at); n >= messages {
					t.Errorf("%v: %d messages after a scan of a damaged block", at, n)
				}
			}
			s.Kill()
		})
	}
}

// restoreFixture makes a store directory of a fixture. It gives what a server has to say of it, and its options.
func restoreFixture(t *testing.T, f *Fixture, form storeForm) (string, Truth, Options) {
	t.Helper()
	source, key := f.Store(), f.Key
	switch form.source {
	case "v1", "v2":
		source = filepath.Join(t.TempDir(), "backup")
		Jetsam(t, f.Key, "-q", "backup", f.Store(), source, "--format", form.source).Want(t, 0)
		key = ""
	case "server":
		source = f.serverBackups(t)
		key = ""
	}
	store := filepath.Join(t.TempDir(), "store")
	args := []string{"-q", "restore", source, store}
	o := Options{Accounts: f.Accounts()}
	if key != "" {
		o.Key, o.Cipher = f.Key, f.Cipher
	}
	switch form.cipher {
	case "none":
		args = append(args, "--decrypt")
		o.Key, o.Cipher = "", ""
	case "":
	default:
		o.Key, o.Cipher = "the key of the new store", form.cipher
		keyFile := filepath.Join(t.TempDir(), "key")
		must(t, os.WriteFile(keyFile, []byte(o.Key+"\n"), 0o600))
		args = append(args, "--out-key-file", keyFile, "--out-cipher", form.cipher)
	}
	want := Truth{}
	for account, streams := range f.Truth {
		want[account] = map[string]*Stream{}
		for name, st := range streams {
			want[account][name] = st.clone()
		}
	}
	if form.rename {
		account, name := slices.Sorted(maps.Keys(want))[0], ""
		for _, n := range slices.Sorted(maps.Keys(want[account])) {
			// A mirror or what has sources would miss these.
			c := want[account][n].Config
			if c["mirror"] == nil && c["sources"] == nil && (name == "" || len(want[account][n].Messages) > len(want[account][name].Messages)) {
				name = n
			}
		}
		st := want[account][name]
		st.Config["name"] = "ANOTHER-name_1"
		want = Truth{account: {"ANOTHER-name_1": st}}
		args = append(args, "-a", account, "-s", name, "--rename", "ANOTHER-name_1")
		if o.Accounts != nil {
			o.Accounts = []string{account}
		}
	}
	if form.account != "" {
		want = Truth{form.account: want["$G"]}
		args = append(args, "--to-account", form.account)
		o.Accounts = []string{form.account}
	}
	if f.Cluster {
		args = append(args, "--replicas", "1")
	}
	Jetsam(t, key, args...).Want(t, 0)
	return store, want, o
}

// serverBackups are backup directories (ACCOUNT/STREAM) of the archives that the fixture's server made.
func (f *Fixture) serverBackups(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "server-backup")
	for account, streams := range f.Truth {
		for name := range streams {
			at := filepath.Join(dir, account, name)
			must(t, os.MkdirAll(at, 0o700))
			from := filepath.Join(f.Dir, "snapshots", account, name)
			archive, err := os.ReadFile(from + ".tar.s2")
			must(t, err)
			must(t, os.WriteFile(filepath.Join(at, "stream.tar.s2"), archive, 0o600))
			text, err := os.ReadFile(from + ".json")
			must(t, err)
			var reply struct {
				Config json.RawMessage `json:"config"`
				State  json.RawMessage `json:"state"`
			}
			must(t, json.Unmarshal(text, &reply))
			text, err = json.Marshal(reply)
			must(t, err)
			text = bytes.Replace(bytes.Replace(text, []byte(`"Config"`), []byte(`"config"`), 1), []byte(`"State"`), []byte(`"state"`), 1)
			must(t, os.WriteFile(filepath.Join(at, "backup.json"), text, 0o600))
		}
	}
	return dir
}

// publishOne stores a message in some stream, which has to get the next sequence.
func publishOne(t *testing.T, s *Server, truth Truth) {
	t.Helper()
	for _, account := range slices.Sorted(maps.Keys(truth)) {
		for _, name := range slices.Sorted(maps.Keys(truth[account])) {
			st := truth[account][name]
			subjects, _ := st.Config["subjects"].([]any)
			if len(subjects) == 0 || st.Config["retention"] == "interest" || st.Config["allow_msg_counter"] == true {
				continue
			}
			subject := strings.NewReplacer(">", "one.more", "*", "more").Replace(subjects[0].(string))
			m, err := s.Connect(account).RequestMsg(&nats.Msg{Subject: subject, Data: []byte("one more")}, 5*time.Second)
			must(t, err)
			var ack struct {
				Error *APIError `json:"error"`
				Seq   uint64    `json:"seq"`
			}
			must(t, json.Unmarshal(m.Data, &ack))
			// What expired may have left a mark in the meantime.
			marks := st.Config["subject_delete_marker_ttl"] != nil
			if ack.Error != nil || ack.Seq != st.State.LastSeq+1 && !(marks && ack.Seq > st.State.LastSeq) {
				t.Errorf("publish to %s of %s/%s: %s after %d", subject, account, name, m.Data, st.State.LastSeq)
			}
		}
	}
}

// damageFirst spoils the hash of the first record of every stream that has more than one, and gives their messages.
func damageFirst(t *testing.T, store string, want Truth) map[[2]string]uint64 {
	t.Helper()
	damaged := map[[2]string]uint64{}
	for account, streams := range want {
		for name, st := range streams {
			if st.Config["name"] != name {
				t.Fatalf("stream %s is called %v", name, st.Config["name"])
			}
			if len(st.Messages) < 2 || slices.ContainsFunc(st.Messages, func(m Message) bool { _, ok := expiry(st.Config, m); return ok }) {
				continue
			}
			blocks, err := filepath.Glob(filepath.Join(store, "jetstream", account, "streams", name, "msgs", "*.blk"))
			must(t, err)
			slices.SortFunc(blocks, func(a, b string) int {
				if len(a) != len(b) {
					return len(a) - len(b)
				}
				return strings.Compare(a, b)
			})
			block, err := os.ReadFile(blocks[0])
			must(t, err)
			m := st.Messages[0]
			at := 22 + len(m.Subject) + len(m.Data) + 7
			if len(m.Header) > 0 {
				at += 4 + len(m.Header)
			}
			if st.Config["compression"] == "s2" && len(blocks) > 1 {
				at = 40 // anywhere: nothing of it can be read then
			}
			block[at] ^= 0x10
			must(t, os.WriteFile(blocks[0], block, 0o640))
			damaged[[2]string{account, name}] = st.State.Messages
		}
	}
	if len(damaged) == 0 {
		t.Log("nothing to damage")
	}
	return damaged
}

func countMessages(t *testing.T, s *Server, at [2]string) uint64 {
	t.Helper()
	var info struct {
		State State `json:"state"`
	}
	if err := API(s.Connect(at[0]), "STREAM.INFO."+at[1], nil, &info); err != nil {
		t.Logf("%v: %v", at, err)
	}
	return info.State.Messages
}
