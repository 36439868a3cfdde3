package live

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/minio/highwayhash"
	"github.com/nats-io/nats.go"
)

// member of a tar archive.
type member struct {
	name string
	body []byte
}

// archive is a backup directory, taken apart.
type archive struct {
	config, state map[string]any
	members       []member // of the tar
	entries       []byte   // NATSARC1
	after         []byte   // what follows the S2 stream
	inside        []byte   // what follows the tar in its last S2 frame
}

func readBackup(t testing.TB, dir string) *archive {
	t.Helper()
	var meta struct{ Config, State map[string]any }
	text, err := os.ReadFile(filepath.Join(dir, "backup.json"))
	must(t, err)
	must(t, json.Unmarshal(text, &meta))
	a := &archive{config: meta.Config, state: meta.State}
	packed, err := os.ReadFile(filepath.Join(dir, "stream.tar.s2"))
	must(t, err)
	raw, err := io.ReadAll(s2.NewReader(bytes.NewReader(packed)))
	must(t, err)
	if bytes.HasPrefix(raw, []byte("NATSARC1")) {
		a.entries = raw
		return a
	}
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return a
		}
		must(t, err)
		body, err := io.ReadAll(r)
		must(t, err)
		a.members = append(a.members, member{h.Name, body})
	}
}

func (a *archive) clone() *archive {
	c := *a
	c.config, c.state = maps.Clone(a.config), maps.Clone(a.state)
	c.members = slices.Clone(a.members)
	return &c
}

// write puts a backup directory together.
func (a *archive) write(t testing.TB, dir string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o700))
	text, err := json.MarshalIndent(map[string]any{"config": a.config, "state": a.state}, "", "  ")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "backup.json"), text, 0o600))
	raw := bytes.NewBuffer(slices.Clone(a.entries))
	if a.entries == nil {
		w := tar.NewWriter(raw)
		for _, m := range a.members {
			must(t, w.WriteHeader(&tar.Header{Name: m.name, Mode: 0o600, Size: int64(len(m.body)), Typeflag: tar.TypeReg, Format: tar.FormatPAX}))
			_, err := w.Write(m.body)
			must(t, err)
		}
		must(t, w.Close())
		raw.Write(a.inside)
	}
	var packed bytes.Buffer
	w := s2.NewWriter(&packed)
	_, err = w.Write(raw.Bytes())
	must(t, err)
	must(t, w.Close())
	packed.Write(a.after)
	must(t, os.WriteFile(filepath.Join(dir, "stream.tar.s2"), packed.Bytes(), 0o600))
}

// meta changes a meta.inf, and its meta.sum with it.
func (a *archive) meta(t testing.TB, dir string, change func(map[string]any)) {
	t.Helper()
	var stream, sum string
	for i := range a.members {
		m := &a.members[i]
		if m.name != dir+"meta.inf" {
			continue
		}
		var config map[string]any
		must(t, json.Unmarshal(m.body, &config))
		change(config)
		body, err := json.Marshal(config)
		must(t, err)
		m.body = body
		stream = a.config["name"].(string)
		key := sha256.Sum256([]byte(strings.TrimSuffix(stream+"/"+strings.TrimPrefix(dir, "obs/"), "/")))
		h, err := highwayhash.New64(key[:])
		must(t, err)
		_, _ = h.Write(body)
		sum = hex.EncodeToString(h.Sum(nil))
	}
	for i := range a.members {
		if a.members[i].name == dir+"meta.sum" {
			a.members[i].body = []byte(sum)
		}
	}
	if sum == "" {
		t.Fatalf("no %smeta.inf", dir)
	}
}

// both changes the configuration in backup.json and in the archive.
func (a *archive) both(t testing.TB, change func(map[string]any)) *archive {
	t.Helper()
	change(a.config)
	a.meta(t, "", change)
	return a
}

func metadata(level string) func(map[string]any) {
	return func(c map[string]any) { c["metadata"] = map[string]any{"_nats.req.level": level} }
}

func set(key string, value any) func(map[string]any) {
	return func(c map[string]any) { c[key] = value }
}

// entriesV2 makes a NATSARC1 archive with one message of so many bytes.
func entriesV2(t testing.TB, first uint64, size int) []byte {
	out := []byte("NATSARC1")
	now := time.Now()
	put := func(name string, seq uint64, body []byte) {
		out = binary.AppendUvarint(out, uint64(len(name)))
		out = binary.AppendVarint(out, now.UnixNano())
		out = binary.AppendUvarint(out, seq)
		out = binary.AppendUvarint(out, 0)
		out = binary.AppendUvarint(out, uint64(len(body)))
		out = append(append(out, name...), body...)
	}
	state, err := json.Marshal(map[string]any{"messages": 1, "bytes": 0, "first_seq": first, "first_ts": now, "last_seq": first, "last_ts": now, "consumer_count": 0})
	must(t, err)
	put("state.json", 0, state)
	put("s.1", first, make([]byte, size))
	return append(out, 0, 0, 0, 0, 0)
}

func (a *archive) v2(t testing.TB, first uint64, size int) *archive {
	a.entries, a.members = entriesV2(t, first, size), nil
	a.state = map[string]any{"messages": 1, "first_seq": first, "last_seq": first}
	return a
}

// found gives what `check` says of a source, codes with their worst severity.
func found(t testing.TB, source string) map[string]string {
	t.Helper()
	ran := Jetsam(t, "", "check", "--json", source).Want(t, 0, 1)
	var got struct {
		Findings []Finding `json:"findings"`
	}
	must(t, json.Unmarshal(ran.Stdout, &got))
	rank := map[string]int{"": -1, "note": 0, "warning": 1, "error": 2}
	all := map[string]string{}
	for _, f := range got.Findings {
		if rank[f.Severity] > rank[all[f.Code]] {
			all[f.Code] = f.Severity
		}
	}
	return all
}

// TestCheckTellsWhatRestoresRunInto: what `check` says that servers do with an archive, they do.
func TestCheckTellsWhatRestoresRunInto(t *testing.T) {
	if !HaveJetsam(t) {
		t.Skip("no jetsam")
	}
	versions := []Version{"2.10.29", "2.12.15", "2.14.9", "2.15.2"}
	work := t.TempDir()

	// The archives come from a server, as its clients get them.
	origin := StartServer(t, "2.14.9", filepath.Join(work, "origin"), Options{})
	nc := origin.Connect("$G")
	js, err := nc.JetStream()
	must(t, err)
	create := func(config Cfg) *archive {
		name := config["name"].(string)
		must(t, API(nc, "STREAM.CREATE."+name, config, nil))
		for i := range 30 {
			m := nats.NewMsg(fmt.Sprintf("%s.%d", strings.ToLower(name), i%4))
			m.Data = []byte(strings.Repeat("payload", i))
			if config["allow_msg_ttl"] == true {
				m.Header.Set("Nats-TTL", "1h")
			}
			_, err := js.PublishMsg(m)
			must(t, err)
		}
		must(t, API(nc, "CONSUMER.DURABLE.CREATE."+name+".C", Cfg{"stream_name": name, "config": Cfg{"durable_name": "C", "ack_policy": "explicit"}}, nil))
		dir := filepath.Join(work, name)
		Snapshot(t, nc, name, dir)
		if got := found(t, dir); len(got) != 0 && !(len(got) == 1 && got["restore_api_level"] == "note") {
			t.Errorf("%s as the server made it: %v", name, got)
		}
		return readBackup(t, dir)
	}
	s := create(Cfg{"name": "S", "subjects": []string{"s.>"}, "storage": "file", "num_replicas": 1})
	ttl := create(Cfg{"name": "TTL", "subjects": []string{"ttl.>"}, "storage": "file", "num_replicas": 1, "allow_msg_ttl": true})
	wq := create(Cfg{"name": "WQ", "subjects": []string{"wq.>"}, "storage": "file", "num_replicas": 1, "retention": "workqueue"})
	for i := range 1000 {
		name := fmt.Sprintf("C%d", i)
		must(t, API(nc, "CONSUMER.DURABLE.CREATE.S."+name, Cfg{"stream_name": "S", "config": Cfg{"durable_name": name, "ack_policy": "explicit"}}, nil))
	}
	Snapshot(t, nc, "S", filepath.Join(work, "many"))
	many := readBackup(t, filepath.Join(work, "many"))
	origin.Stop()
	Jetsam(t, "", "-q", "backup", "-s", "S", "-c", "C", "--format", "v2", origin.StoreDir, filepath.Join(work, "v2")).Want(t, 0)
	v2 := readBackup(t, filepath.Join(work, "v2"))

	replicas3 := func(c map[string]any) { c["num_replicas"] = 3 }
	consumer := func(a *archive, change func(map[string]any)) *archive {
		a.meta(t, "obs/C/", change)
		return a
	}
	second := func(a *archive) *archive {
		two := a.clone()
		for _, m := range a.members {
			if rest, ok := strings.CutPrefix(m.name, "obs/C/"); ok {
				two.members = append(two.members, member{"obs/D/" + rest, m.body})
			}
		}
		two.meta(t, "obs/D/", func(c map[string]any) { c["Name"], c["name"], c["durable_name"] = "D", "D", "D" })
		two.state["consumer_count"] = 2
		return two
	}
	trailing := s.clone()
	trailing.after = []byte{0xfe, 4, 0, 0, 0, 0, 0, 0} // S2 padding
	within := s.clone()
	within.inside = make([]byte, 8<<10) // most programs pad a tar to 10 KiB
	junk := s.clone()
	junk.inside = []byte("bytes after the end")
	broken := ttl.clone()
	for i, m := range broken.members {
		if m.name == "msgs/1.blk" {
			b := slices.Clone(m.body)
			b[bytes.LastIndex(b, []byte("payload"))] ^= 1
			broken.members[i].body = b
		}
	}

	const all = "2.10.29 2.12.15 2.14.9 2.15.2"
	cases := []restoreCase{
		{name: "as it is", archive: s.clone()},
		{name: "three replicas", archive: s.clone().both(t, replicas3), finding: "restore_replicas note", refused: all},
		{name: "too many replicas", archive: s.clone().both(t, set("num_replicas", 6)), finding: "restore_replicas warning", refused: all},
		{name: "a consumer with more replicas than the stream", archive: consumer(s.clone(), replicas3), finding: "restore_consumer warning", refused: all},
		{name: "a consumer with other replicas than its work queue", archive: consumer(wq.clone(), replicas3), finding: "restore_consumer warning", refused: all},
		{name: "two consumers of all of a work queue", archive: second(wq), finding: "restore_consumer warning", refused: all},
		{name: "a work queue's consumer that does not acknowledge", archive: consumer(wq.clone(), set("ack_policy", "none")), finding: "restore_consumer warning", refused: all},
		{name: "an API level of the future", archive: s.clone().both(t, metadata("99")), finding: "restore_api_level warning", offline: "2.12.15 2.14.9 2.15.2"},
		{name: "the API level of 2.14", archive: s.clone().both(t, metadata("4")), finding: "restore_api_level note", offline: "2.12.15"},
		{name: "bytes after the end of the tar", archive: trailing, finding: "archive_trailing warning", refused: "2.12.15 2.14.9"},
		{name: "a padded tar", archive: within},
		{name: "bytes after the tar in its last frame", archive: junk, finding: "archive_trailing note"},
		{name: "NATSARC1", archive: v2, finding: "restore_format note", refused: "2.10.29 2.12.15 2.14.9"},
		{name: "1001 consumers", archive: many, finding: "restore_consumer_count warning", refused: "2.15.2", only: "2.14.9 2.15.2"},
		{name: "1001 consumers allowed", archive: many.clone().both(t, set("max_consumers", 1001)), only: "2.15.2"},
		{name: "a consumer too many", archive: second(s).both(t, set("max_consumers", 1)), finding: "restore_consumer_count warning", refused: all},
		{name: "as many consumers as allowed", archive: second(s).both(t, set("max_consumers", 2))},
		{name: "a message of 1 MiB", archive: s.clone().v2(t, 1, 1<<20), finding: "restore_format note", refused: "2.10.29 2.12.15 2.14.9"},
		{name: "a message over 1 MiB", archive: s.clone().v2(t, 1, 1<<20+1), finding: "restore_size warning", refused: all},
		{name: "a message over max_msg_size", archive: func() *archive {
			a := s.clone().v2(t, 1, 101)
			a.config["max_msg_size"] = 100
			return a
		}(), finding: "restore_size warning", refused: all},
		{name: "first_seq after the first message", archive: func() *archive {
			a := s.clone().v2(t, 1, 10)
			a.config["first_seq"] = 100
			return a
		}(), finding: "restore_limits warning", refused: all},
		{name: "in memory", archive: s.clone().both(t, set("storage", "memory")), finding: "restore_storage warning", refused: all},
		{name: "of another stream", archive: func() *archive {
			a := s.clone()
			a.config["name"] = "OTHER"
			return a
		}(), finding: "backup_json error", refused: all},
	}
	for i, c := range cases {
		cases[i].dir = filepath.Join(work, fmt.Sprintf("case-%d", i))
		c.archive.write(t, cases[i].dir)
		got := found(t, cases[i].dir)
		code, severity, some := strings.Cut(c.finding, " ")
		if some && got[code] != severity {
			t.Errorf("%s: check says %v, want %s", c.name, got, c.finding)
		}
		if !some && len(got) != 0 {
			t.Errorf("%s: check says %v, want nothing", c.name, got)
		}
	}
	crash := filepath.Join(work, "crash")
	broken.write(t, crash)
	if got := found(t, crash); got["restore_crash"] != "warning" || got["record_hash"] != "error" {
		t.Errorf("a damaged message with a TTL: check says %v", got)
	}
	t.Run("servers", func(t *testing.T) {
		for _, v := range versions {
			t.Run(string(v), func(t *testing.T) {
				t.Parallel()
				restoreCases(t, v, cases)
			})
		}
		t.Run("crash", func(t *testing.T) {
			t.Parallel()
			s := StartServer(t, "2.15.2", filepath.Join(t.TempDir(), "store"), Options{})
			if err := Restore(t, s.Connect("$G"), "TTL", crash, nil); err == nil {
				t.Error("nats-server 2.15.2 restores what check says to end it")
			}
			select {
			case <-s.done:
			case <-time.After(5 * time.Second):
				t.Error("nats-server 2.15.2 survives what check says to end it")
			}
		})
	})
}

// restoreCase is an archive, what check says of it, and what servers do with it.
type restoreCase struct {
	name    string
	archive *archive
	finding string // code and severity; none: nothing is found
	refused string // by these servers
	offline string // these restore it, and take it offline at their next start
	only    string // tried with these; none: all
	dir     string
}

func restoreCases(t *testing.T, v Version, cases []restoreCase) {
	// An account for each: nothing that one leaves is in the way of another.
	var accounts []string
	for i := range cases {
		accounts = append(accounts, fmt.Sprintf("A%d", i))
	}
	s := StartServer(t, v, filepath.Join(t.TempDir(), "store"), Options{Accounts: accounts})
	in := func(list string) bool { return slices.Contains(strings.Fields(list), string(v)) }
	for i, c := range cases {
		if c.only != "" && !in(c.only) {
			continue
		}
		name := c.archive.config["name"].(string)
		err := Restore(t, s.Connect(accounts[i]), name, c.dir, nil)
		if (err != nil) != in(c.refused) {
			t.Errorf("%s: nats-server %s: %v, want it refused: %v", c.name, v, err, in(c.refused))
		}
	}
	s.Stop()
	s = StartServer(t, v, s.StoreDir, s.Opts)
	for i, c := range cases {
		if in(c.refused) || c.only != "" && !in(c.only) {
			continue
		}
		err := API(s.Connect(accounts[i]), "STREAM.INFO."+c.archive.config["name"].(string), nil, nil)
		if err != nil != in(c.offline) || err != nil && !strings.Contains(err.Error(), "offline") {
			t.Errorf("%s: nats-server %s after a restart: %v, want it offline: %v", c.name, v, err, in(c.offline))
		}
	}
}

// TestCheckOfBackupsInUse: backups of streams that clients use meanwhile are sound. Messages come and go then, and none
// of it is loss.
func TestCheckOfBackupsInUse(t *testing.T) {
	if !HaveJetsam(t) {
		t.Skip("no jetsam")
	}
	for _, v := range []Version{"2.10.29", "2.14.9", "2.15.2"} {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			backupsInUse(t, v)
		})
	}
}

func backupsInUse(t *testing.T, v Version) {
	work := t.TempDir()
	s := StartServer(t, v, filepath.Join(work, "store"), Options{})
	nc := s.Connect("$G")
	configs := []Cfg{
		{"name": "PLAIN"},
		{"name": "LIMITED", "max_msgs": 3000},
		{"name": "LATEST", "max_msgs_per_subject": 1},
		{"name": "WORK", "retention": "workqueue"},
	}
	stop := make(chan struct{})
	var users sync.WaitGroup
	for _, c := range configs {
		name := c["name"].(string)
		c["subjects"], c["storage"], c["num_replicas"] = []string{name + ".>"}, "file", 1
		must(t, API(nc, "STREAM.CREATE."+name, c, nil))
		must(t, API(nc, "CONSUMER.DURABLE.CREATE."+name+".C", Cfg{"stream_name": name, "config": Cfg{"durable_name": "C", "ack_policy": "explicit"}}, nil))
		own, err := nats.Connect(s.URL)
		must(t, err)
		t.Cleanup(own.Close)
		publish := func(from, to int) {
			for i := from; i < to; i++ {
				_ = own.Publish(fmt.Sprintf("%s.%d", name, i%3000), bytes.Repeat([]byte{byte(i)}, 900))
			}
			_ = own.FlushTimeout(10 * time.Second)
		}
		publish(0, 4000)
		users.Add(1)
		go func() {
			defer users.Done()
			var sub *nats.Subscription
			if js, err := own.JetStream(); err == nil && name == "WORK" {
				sub, _ = js.PullSubscribe("", "C", nats.Bind(name, "C"))
			}
			for i := 4000; ; i += 100 {
				select {
				case <-stop:
					return
				default:
				}
				publish(i, i+100)
				if sub != nil {
					msgs, _ := sub.Fetch(150, nats.MaxWait(time.Second))
					for _, m := range msgs {
						_ = m.Ack()
					}
				}
			}
		}()
	}
	seen := map[string]bool{}
	for round := range 3 {
		for _, c := range configs {
			name := c["name"].(string)
			dir := filepath.Join(work, fmt.Sprintf("%s-%d", name, round))
			Snapshot(t, nc, name, dir)
			for code, severity := range found(t, dir) {
				seen[code] = true
				// NATSARC1 alone does not tell what was removed from what could not be read. And until 2.14 servers write
				// consumers last: these may know of messages that are not in the archive.
				unsure := code == "archive_incomplete" && name != "PLAIN" || code == "consumer_ahead" && name == "WORK"
				if severity != "note" && !(unsure && severity == "warning") {
					t.Errorf("%s in use, backed up by %s: check says %s %s", name, v, severity, code)
				}
			}
		}
	}
	close(stop)
	users.Wait()
	if v.Before(2, 15, 0) && !seen["backup_meanwhile"] {
		t.Errorf("nothing was stored while %s made its backups: this tests nothing", v)
	}
	t.Log(v, seen)
}
