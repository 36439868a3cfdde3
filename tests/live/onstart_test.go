package live

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/minio/highwayhash"
)

// harmed is a stream of a copy of a fixture's store.
type harmed struct {
	t                  testing.TB
	f                  *Fixture
	store, stream, dir string
	msgs               string
	messages           uint64 // before
	last               uint64
}

// block is the path of n.blk.
func (h *harmed) block(n int) string { return filepath.Join(h.msgs, strconv.Itoa(n)+".blk") }

func (h *harmed) remove(names ...string) {
	for _, name := range names {
		must(h.t, os.Remove(filepath.Join(h.dir, name)))
	}
}

func (h *harmed) write(name, text string) {
	path := filepath.Join(h.dir, name)
	must(h.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(h.t, os.WriteFile(path, []byte(text), 0o600))
}

func (h *harmed) edit(path string, change func([]byte) []byte) {
	b, err := os.ReadFile(path)
	must(h.t, err)
	must(h.t, os.WriteFile(path, change(b), 0o600))
}

func (h *harmed) flip(path string, at int) {
	h.edit(path, func(b []byte) []byte {
		if at < 0 {
			at += len(b)
		}
		b[at] ^= 0x10
		return b
	})
}

// record of a block, as jetsam sees it before the harm.
type record struct {
	Offset, Length, Seq int
	Kind                string
}

func (h *harmed) records(n int) []record {
	ran := Jetsam(h.t, h.f.Key, "inspect", "--json", h.block(n)).Want(h.t, 0)
	var out []record
	dec := json.NewDecoder(bytes.NewReader(ran.Stdout))
	for dec.More() {
		var r record
		must(h.t, dec.Decode(&r))
		out = append(out, r)
	}
	return out
}

// message gives the record of the i-th message of a block; from the end where i is negative.
func (h *harmed) message(n, i int) record {
	all := slices.DeleteFunc(h.records(n), func(r record) bool { return r.Kind != "message" })
	if i < 0 {
		i += len(all)
	}
	return all[i]
}

func (h *harmed) meta(path, hashed string, change func(map[string]any)) {
	h.edit(path, func(b []byte) []byte {
		var m map[string]any
		must(h.t, json.Unmarshal(b, &m))
		change(m)
		b, err := json.Marshal(m)
		must(h.t, err)
		key := sha256.Sum256([]byte(hashed))
		hh, err := highwayhash.New64(key[:])
		must(h.t, err)
		hh.Write(b)
		must(h.t, os.WriteFile(filepath.Join(filepath.Dir(path), "meta.sum"), []byte(hex.EncodeToString(hh.Sum(nil))), 0o600))
		return b
	})
}

type harm struct {
	name, fixture, stream string
	index                 string // kept, rejected, or removed
	do                    func(*harmed)
	want                  string // in what jetsam says
}

func payload(r record) int { return r.Offset + r.Length - 9 }

func noIndex(h *harmed) { h.remove("msgs/index.db") }

var (
	bases  = map[string]State{}
	basing sync.Mutex
)

// scannedState is what a server makes of the stream without index.db and without harm: more than at the stop, where
// only index.db knew what was removed.
func scannedState(t testing.TB, f *Fixture, stream string) State {
	basing.Lock()
	defer basing.Unlock()
	at := f.Name + "/" + stream
	if st, ok := bases[at]; ok {
		return st
	}
	store := filepath.Join(t.TempDir(), "base")
	CopyTree(t, f.Store(), store)
	must(t, os.Remove(filepath.Join(store, "jetstream/$G/streams", stream, "msgs/index.db")))
	s := StartServer(t, "2.15.2", store, Options{Key: f.Key, Cipher: f.Cipher})
	var info struct{ State State }
	must(t, API(s.Connect("$G"), "STREAM.INFO."+stream, nil, &info))
	s.Kill()
	bases[at] = info.State
	return info.State
}

// reads is the number of messages that the API gives.
func reads(t testing.TB, s *Server, stream string, first, last uint64) (n uint64) {
	for seq := first; seq <= last; seq++ {
		if API(s.Connect("$G"), "STREAM.MSG.GET."+stream, map[string]any{"seq": seq}, nil) == nil {
			n++
		}
	}
	return n
}

func files(t testing.TB, dir string) map[string]string {
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		sum := sha256.Sum256(b)
		out[rel] = fmt.Sprintf("%d %x", len(b), sum[:6])
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		must(t, err)
	}
	return out
}

var (
	lostText  = regexp.MustCompile(`(?:: |^)(at least |up to )?(?:([\d,]+) to )?([\d,]+) messages? (?:is|are) lost`)
	backText  = regexp.MustCompile(`up to ([\d,]+) deleted messages? may come back`)
	cutText   = regexp.MustCompile(`truncates (\d+)\.blk at ([\d,]+)`)
	delText   = regexp.MustCompile(`deletes (\d+)\.blk`)
	emptyText = regexp.MustCompile(`empties (\d+)\.blk when it is first read`)
	fallText  = regexp.MustCompile(`falls back from ([\d,]+) to ([\d,]+)`)
	readText  = regexp.MustCompile(`^nothing while index.db is valid: ([\d,]+) messages? cannot be read; without it (.*)$`)
)

func numberIn(text string) uint64 {
	n, _ := strconv.ParseUint(strings.ReplaceAll(text, ",", ""), 10, 64)
	return n
}

type startFinding struct {
	Finding
	OnStart string `json:"on_start"`
}

func onStart(t testing.TB, h *harmed) []startFinding {
	ran := Jetsam(t, h.f.Key, "check", "--json", h.store)
	var got struct{ Findings []startFinding }
	if err := json.Unmarshal(ran.Stdout, &got); err != nil {
		t.Fatalf("check: exit %d: %v\n%.2000s\n%s", ran.Code, err, ran.Stdout, ran.Stderr)
	}
	return slices.DeleteFunc(got.Findings, func(f startFinding) bool { return f.Stream != h.stream })
}

// tryStart starts a server on a copy and compares what happens with what was said.
func tryStart(t *testing.T, h *harmed, v Version, said []string) {
	store := filepath.Join(t.TempDir(), "store")
	CopyTree(t, h.store, store)
	dir := filepath.Join(store, "jetstream", "$G", "streams", h.stream)
	before := files(t, dir)
	o := Options{Key: h.f.Key, Cipher: h.f.Cipher}
	s := StartServer(t, v, store, o)
	var info struct{ State State }
	err := API(s.Connect("$G"), "STREAM.INFO."+h.stream, nil, &info)
	all := strings.Join(said, "\n")
	first := info.State
	var readable uint64
	if err == nil {
		readable = reads(t, s, h.stream, first.FirstSeq, first.LastSeq)
		time.Sleep(300 * time.Millisecond) // the state follows in the background
		must(t, API(s.Connect("$G"), "STREAM.INFO."+h.stream, nil, &info))
	}
	s.Kill()
	after := files(t, dir)
	_, gone := os.Stat(dir)
	var changed []string
	for name := range union(before, after) {
		if before[name] != after[name] {
			changed = append(changed, fmt.Sprintf("%s: %s -> %s", name, before[name], after[name]))
		}
	}
	slices.Sort(changed)
	t.Logf("SAW %s %s: err=%v messages %d -> %d -> %d (readable %d), last %d -> %d; dir gone=%v; changed %q", h.stream, v, err, h.messages, first.Messages, info.State.Messages, readable, h.last, info.State.LastSeq, gone != nil, changed)
	for _, line := range strings.Split(s.Log(), "\n") {
		if strings.Contains(line, "[WRN]") || strings.Contains(line, "[ERR]") {
			t.Log("    ", line)
		}
	}

	conditional := strings.Contains(all, "nothing while")
	switch {
	case strings.Contains(all, "removes the stream's directory: ") && !conditional, strings.Contains(all, "where that cannot be read"):
		if gone == nil {
			t.Errorf("the directory is there")
		}
		return
	case strings.Contains(all, "the stream: all its files stay"), strings.Contains(all, "takes the stream offline"), strings.Contains(all, "makes an empty stream"):
		if err == nil && !strings.Contains(all, "offline") {
			t.Errorf("the stream is there")
		}
		if gone != nil || len(changed) > 0 {
			t.Errorf("changed: %q", changed)
		}
		return
	case strings.Contains(all, "stops the whole stream"):
		if err == nil || len(changed) > 0 {
			t.Errorf("%v; changed %q", err, changed)
		}
		return
	}
	if gone != nil || err != nil {
		t.Errorf("the stream is gone: %v", err)
		return
	}
	consumersChanged := slices.ContainsFunc(changed, func(s string) bool { return strings.HasPrefix(s, "obs/") })
	removes := strings.Contains(all, "2.14.5 and earlier remove its directory") && v == "2.14.5"
	if consumersChanged != removes {
		t.Errorf("changed: %q", changed)
	}
	// At least and at most so many messages remain.
	low, high := int(h.messages), int(h.messages)
	last := h.last
	for _, line := range said {
		if m := readText.FindStringSubmatch(line); m != nil {
			if info.State.Messages != h.messages || readable != h.messages-numberIn(m[1]) {
				t.Errorf("%d messages, %d can be read", info.State.Messages, readable)
			}
			return
		}
		for _, m := range lostText.FindAllStringSubmatch(line, -1) {
			n := int(numberIn(m[3]))
			switch {
			case m[1] == "at least ":
				high, low = high-n, -1<<30
			case m[1] == "up to ":
				low -= n
			case m[2] != "":
				low, high = low-n, high-int(numberIn(m[2]))
			default:
				low, high = low-n, high-n
			}
		}
		for _, m := range backText.FindAllStringSubmatch(line, -1) {
			high += int(numberIn(m[1]))
		}
		if strings.Contains(line, "deleted ones may come back") || strings.Contains(line, "cut off is lost") {
			high = int(h.last)
		}
		if strings.Contains(line, "are gone already") || strings.Contains(line, "nothing more is lost") || strings.Contains(line, "are removed") || strings.Contains(line, "its messages are lost") {
			low = -1 << 30
		}
		for _, m := range cutText.FindAllStringSubmatch(line, -1) {
			if got := after["msgs/"+m[1]+".blk"]; !strings.HasPrefix(got, strings.ReplaceAll(m[2], ",", "")+" ") {
				t.Errorf("%s.blk has %s", m[1], got)
			}
		}
		for _, m := range delText.FindAllStringSubmatch(line, -1) {
			// The last one is made again, with the last sequence in it.
			if got := after["msgs/"+m[1]+".blk"]; got != "" && !strings.HasPrefix(got, "30 ") {
				t.Errorf("%s.blk has %s", m[1], got)
			}
		}
		for _, m := range emptyText.FindAllStringSubmatch(line, -1) {
			if got := after["msgs/"+m[1]+".blk"]; got != "" && !strings.HasPrefix(got, "0 ") {
				t.Errorf("%s.blk has %s", m[1], got)
			}
		}
		if m := fallText.FindStringSubmatch(line); m != nil {
			last = numberIn(m[2])
		}
		if strings.Contains(line, "replaces msgs/") {
			last = 0
		}
	}
	now := int(info.State.Messages)
	if strings.Contains(all, "makes a new") || strings.Contains(all, "in the wrong place when") {
		now = int(readable)
	}
	if strings.Contains(all, "twice") {
		if readable >= h.messages {
			t.Errorf("%d messages can be read", readable)
		}
	} else if now < low || now > high {
		t.Errorf("%d of %d messages, %d can be read; there should be %d to %d", now, h.messages, readable, low, high)
	}
	if info.State.LastSeq != last {
		t.Errorf("last sequence %d, not %d", info.State.LastSeq, last)
	}
	nothing := !slices.ContainsFunc(said, func(s string) bool { return !strings.HasPrefix(s, "nothing: ") })
	if nothing && len(changed) > 0 {
		t.Errorf("changed: %q", changed)
	}
}

// TestOnStart: what `check` says a start would do is what the start of a server does.
func TestOnStart(t *testing.T) {
	if !HaveJetsam(t) {
		t.Skip("no jetsam")
	}
	for _, c := range harms {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := OpenFixture(t, c.fixture)
			h := &harmed{t: t, f: f, store: filepath.Join(t.TempDir(), "store"), stream: c.stream}
			CopyTree(t, f.Store(), h.store)
			h.dir = filepath.Join(h.store, "jetstream", "$G", "streams", c.stream)
			h.msgs = filepath.Join(h.dir, "msgs")
			st := f.Truth["$G"][c.stream].State
			scanned := scannedState(t, f, c.stream)
			if c.index != "kept" {
				st = scanned
			}
			h.messages, h.last = st.Messages, st.LastSeq
			c.do(h)
			if c.index == "removed" {
				noIndex(h)
			}
			findings := onStart(t, h)
			var said []string
			for _, f := range findings {
				t.Logf("SAID %s %s: %s | %s", f.Code, f.File, f.Detail, f.OnStart)
				if f.OnStart != "" {
					said = append(said, f.OnStart)
				}
			}
			if c.want != "" && !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, c.want) }) {
				t.Errorf("nobody says %q", c.want)
			}
			for _, v := range []Version{"2.14.5", "2.15.2"} {
				t.Run(string(v), func(t *testing.T) { tryStart(t, h, v, said) })
			}
			// What is threatened is tried as well.
			var then []string
			for _, s := range said {
				if m := readText.FindStringSubmatch(s); m != nil {
					then = append(then, m[2])
				}
			}
			if len(then) == 0 {
				return
			}
			noIndex(h)
			h.messages, h.last = scanned.Messages, scanned.LastSeq
			for _, v := range []Version{"2.14.5", "2.15.2"} {
				t.Run("without-index/"+string(v), func(t *testing.T) { tryStart(t, h, v, then) })
			}
		})
	}
}

// TestOnStartEnds: the releases that are said to end at the start do.
func TestOnStartEnds(t *testing.T) {
	if !HaveJetsam(t) {
		t.Skip("no jetsam")
	}
	for stream, side := range map[string]string{"TTL": "thw.db", "SCHED": "sched.db"} {
		f := OpenFixture(t, "2.15.2-new")
		h := &harmed{t: t, f: f, store: filepath.Join(t.TempDir(), "store"), stream: stream}
		CopyTree(t, f.Store(), h.store)
		h.dir = filepath.Join(h.store, "jetstream/$G/streams", stream)
		h.msgs = filepath.Join(h.dir, "msgs")
		h.flip(h.block(1), payload(h.message(1, 0)))
		for _, ends := range []bool{false, true} {
			said := onStart(t, h)[0].OnStart
			if strings.HasPrefix(said, "2.15.0 to 2.15.2 end at each start") != ends {
				t.Errorf("%s: %q", stream, said)
			}
			conf := filepath.Join(t.TempDir(), "conf")
			store := filepath.Join(t.TempDir(), "store")
			CopyTree(t, h.store, store)
			must(t, os.WriteFile(conf, []byte(fmt.Sprintf("listen: \"127.0.0.1:-1\"\njetstream { store_dir: %q }\n", store)), 0o600))
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			out, err := exec.CommandContext(ctx, ServerBinary(t, "2.15.2"), "-c", conf).CombinedOutput()
			cancel()
			var exit *exec.ExitError
			if ended := errors.As(err, &exit) && exit.ExitCode() == 2; ended != ends {
				t.Errorf("%s: %v\n%s", stream, err, out)
			}
			if !ends {
				h.remove("msgs/" + side)
			}
		}
	}
}

// TestOnStartAround: what lies around the streams.
func TestOnStartAround(t *testing.T) {
	if !HaveJetsam(t) {
		t.Skip("no jetsam")
	}
	for _, v := range []Version{"2.14.5", "2.15.2"} {
		f := OpenFixture(t, "2.14.5-basic")
		store := filepath.Join(t.TempDir(), "store")
		CopyTree(t, f.Store(), store)
		js := filepath.Join(store, "jetstream")
		for _, name := range []string{".snap-staging/x", "$G/__snapshots__/x", "$G/streams/.GONE/msgs/1.blk", "$G/strange", "$G/streams/strange"} {
			must(t, os.MkdirAll(filepath.Dir(filepath.Join(js, name)), 0o755))
			must(t, os.WriteFile(filepath.Join(js, name), []byte("x"), 0o600))
		}
		ran := Jetsam(t, "", "check", "--json", store)
		var got struct{ Findings []startFinding }
		must(t, json.Unmarshal(ran.Stdout, &got))
		s := StartServer(t, v, store, Options{})
		time.Sleep(300 * time.Millisecond) // it removes in the background
		s.Kill()
		n := 0
		for _, f := range got.Findings {
			_, err := os.Stat(filepath.Join(store, f.File))
			removes := strings.HasPrefix(f.OnStart, "removes")
			if f.OnStart == "" || removes != os.IsNotExist(err) {
				t.Errorf("%s: %s: %q, but %v", v, f.File, f.OnStart, err)
			}
			if removes {
				n++
			}
		}
		if n < 3 {
			t.Errorf("%d removed: %+v", n, got.Findings)
		}
	}
}

var harms = []harm{
	{"hash-middle", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) { h.flip(h.block(2), payload(h.message(2, 40))) }, "truncates 2.blk"},
	{"hash-first", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) { h.flip(h.block(2), payload(h.message(2, 0))) }, "deletes 2.blk"},
	{"hash-last", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) { h.flip(h.block(4), payload(h.message(4, -1))) }, "truncates 4.blk"},
	{"hash-two-blocks", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) {
		a, b := h.message(1, 3), h.message(1, 7)
		h.flip(h.block(1), payload(a))
		h.flip(h.block(1), payload(b))
		h.flip(h.block(3), payload(h.message(3, 10)))
	}, "truncates 3.blk"},
	{"hash-middle-indexed", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) { h.flip(h.block(2), payload(h.message(2, 40))) }, "nothing while index.db is valid: 1 message cannot be read; without it truncates 2.blk"},
	{"hash-first-indexed", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) { h.flip(h.block(2), payload(h.message(2, 0))) }, "without it deletes 2.blk"},
	{"hash-last-block-indexed", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) { h.flip(h.block(4), payload(h.message(4, -3))) }, "without it truncates 4.blk"},
	{"length-middle", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) { h.flip(h.block(2), h.message(2, 40).Offset+2) }, "truncates 2.blk"},
	{"length-middle-indexed", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) { h.flip(h.block(2), h.message(2, 40).Offset+2) }, "when it is first read"},
	{"length-first-indexed", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) { h.flip(h.block(2), h.message(2, 0).Offset+2) }, "empties 2.blk"},
	{"length-last-block-indexed", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) { h.flip(h.block(4), h.message(4, -3).Offset+2) }, "truncates 4.blk"},
	{"sequence-indexed", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) { h.flip(h.block(2), h.message(2, 40).Offset+5) }, "2.blk"},
	{"torn", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) {
		h.edit(h.block(4), func(b []byte) []byte { return b[:len(b)-5] })
	}, "truncates 4.blk"},
	{"torn-old-index", "2.14.5-basic", "BLOCKS", "rejected", func(h *harmed) {
		h.edit(h.block(4), func(b []byte) []byte { return b[:len(b)-5] })
	}, "truncates 4.blk"},
	{"zeros", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) {
		h.edit(h.block(2), func(b []byte) []byte { return make([]byte, len(b)) })
	}, "deletes 2.blk"},
	{"zeros-indexed", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) {
		h.edit(h.block(2), func(b []byte) []byte { return make([]byte, len(b)) })
	}, "empties 2.blk"},
	{"zero-tail", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) {
		h.edit(h.block(4), func(b []byte) []byte { return append(b, make([]byte, 4096)...) })
	}, "truncates 4.blk"},
	{"empty-block-indexed", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) { must(h.t, os.Truncate(h.block(2), 0)) }, "gone already"},
	{"missing-first", "2.14.5-basic", "BLOCKS", "rejected", func(h *harmed) { h.remove("msgs/1.blk") }, "nothing more is lost"},
	{"missing-middle", "2.14.5-basic", "BLOCKS", "rejected", func(h *harmed) { h.remove("msgs/2.blk") }, "nothing more is lost"},
	{"missing-last", "2.14.5-basic", "BLOCKS", "rejected", func(h *harmed) { h.remove("msgs/4.blk") }, "nothing more is lost"},
	{"index-flipped", "2.14.5-basic", "BLOCKS", "rejected", func(h *harmed) { h.flip(filepath.Join(h.msgs, "index.db"), 40) }, "ignores index.db"},
	{"index-flipped-and-hash", "2.14.5-basic", "BLOCKS", "rejected", func(h *harmed) {
		h.flip(filepath.Join(h.msgs, "index.db"), 40)
		h.flip(h.block(2), payload(h.message(2, 40)))
	}, "truncates 2.blk"},
	{"tombstones", "2.14.5-basic", "ORDERS", "removed", func(h *harmed) { h.flip(h.block(1), payload(h.message(1, 200))) }, "truncates 1.blk"},
	{"aes-hash", "2.14.5-aes-basic", "BLOCKS", "removed", func(h *harmed) { h.flip(h.block(2), payload(h.message(2, 40))) }, "truncates 2.blk"},
	{"key-flipped", "2.14.5-aes-basic", "BLOCKS", "removed", func(h *harmed) { h.flip(filepath.Join(h.msgs, "2.key"), 40) }, "deletes 2.blk"},
	{"key-flipped-indexed", "2.14.5-aes-basic", "BLOCKS", "kept", func(h *harmed) { h.flip(filepath.Join(h.msgs, "2.key"), 40) }, "without it deletes 2.blk"},
	{"key-flipped-last-indexed", "2.14.5-aes-basic", "BLOCKS", "rejected", func(h *harmed) { h.flip(filepath.Join(h.msgs, "4.key"), 40) }, "deletes 4.blk"},
	{"key-short", "2.14.5-aes-basic", "BLOCKS", "removed", func(h *harmed) { must(h.t, os.Truncate(filepath.Join(h.msgs, "2.key"), 20)) }, "deletes 2.blk"},
	{"key-missing", "2.14.5-aes-basic", "BLOCKS", "removed", func(h *harmed) { h.remove("msgs/2.key") }, "removes the stream's directory"},
	{"key-missing-indexed", "2.14.5-aes-basic", "BLOCKS", "kept", func(h *harmed) { h.remove("msgs/2.key") }, "makes a new 2.key"},
	{"key-missing-last-indexed", "2.14.5-aes-basic", "BLOCKS", "rejected", func(h *harmed) { h.remove("msgs/4.key") }, "deletes 4.blk"},
	{"plain-block-beside-key", "2.14.5-aes-basic", "BLOCKS", "removed", func(h *harmed) { h.plain(2) }, "deletes 2.blk"},
	{"plain-block-beside-key-indexed", "2.14.5-aes-basic", "BLOCKS", "kept", func(h *harmed) { h.plain(2) }, "empties 2.blk"},
	{"plain-block-without-key", "2.14.5-aes-basic", "BLOCKS", "removed", func(h *harmed) { h.plain(2); h.remove("msgs/2.key") }, "encrypts it"},
	{"plain-block-without-key-hash", "2.14.5-aes-basic", "BLOCKS", "removed", func(h *harmed) {
		h.plain(2)
		h.remove("msgs/2.key")
		h.flip(h.block(2), payload(h.message(2, 40)))
	}, "removes the stream's directory"},
	{"meta-key-flipped", "2.14.5-aes-basic", "BLOCKS", "kept", func(h *harmed) { h.flip(filepath.Join(h.dir, "meta.key"), 40) }, "skips the stream"},
	{"meta-key-short", "2.14.5-aes-basic", "BLOCKS", "kept", func(h *harmed) { must(h.t, os.Truncate(filepath.Join(h.dir, "meta.key"), 20)) }, "skips the stream"},
	{"meta-plain-beside-key", "2.14.5-aes-basic", "BLOCKS", "kept", func(h *harmed) {
		plain := OpenFixture(h.t, "2.14.5-basic")
		for _, name := range []string{"meta.inf", "meta.sum"} {
			b, err := os.ReadFile(filepath.Join(plain.Store(), "jetstream/$G/streams/BLOCKS", name))
			must(h.t, err)
			h.write(name, string(b))
		}
	}, "skips the stream"},
	{"s2-flipped", "2.14.5-compress", "S2", "removed", func(h *harmed) { h.flip(h.block(2), 200) }, "removes the stream's directory"},
	{"s2-flipped-indexed", "2.14.5-compress", "S2", "kept", func(h *harmed) { h.flip(h.block(2), 200) }, "without it removes the stream's directory"},
	{"s2-aes-flipped", "2.14.5-chacha-compress", "S2", "removed", func(h *harmed) { h.flip(h.block(2), 200) }, "removes the stream's directory"},
	{"s2-hash-inside", "2.14.5-compress", "S2", "removed", func(h *harmed) {
		at := payload(h.message(2, 40))
		h.inside(2, func(b []byte) { b[at] ^= 1 })
	}, "removes the stream's directory"},
	{"s2-hash-inside-indexed", "2.14.5-compress", "S2", "kept", func(h *harmed) {
		at := payload(h.message(2, 40))
		h.inside(2, func(b []byte) { b[at] ^= 1 })
	}, "1 message cannot be read; without it removes the stream's directory"},
	{"s2-first-inside", "2.14.5-compress", "S2", "removed", func(h *harmed) {
		at := payload(h.message(2, 0))
		h.inside(2, func(b []byte) { b[at] ^= 1 })
	}, "deletes 2.blk"},
	{"s2-length-inside-indexed", "2.14.5-compress", "S2", "kept", func(h *harmed) {
		at := h.message(2, 40).Offset + 2
		h.inside(2, func(b []byte) { b[at] ^= 0x10 })
	}, "cuts 2.blk in the wrong place when it is first read"},
	{"s2-headerless", "2.14.5-compress", "S2", "removed", func(h *harmed) { h.headless(2) }, "deletes 2.blk"},
	{"s2-headerless-indexed", "2.14.5-compress", "S2", "kept", func(h *harmed) { h.headless(2) }, "empties 2.blk"},
	{"s2-last-hash", "2.14.5-compress", "S2", "removed", func(h *harmed) { h.flip(h.block(2), -3) }, "removes the stream's directory"},
	{"s2-last-hash-indexed", "2.14.5-compress", "S2", "kept", func(h *harmed) { h.flip(h.block(2), -3) }, "without it removes the stream's directory"},
	{"meta-missing", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) { h.remove("meta.inf") }, "skips the stream"},
	{"meta-invalid", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) { h.write("meta.inf", "{") }, "skips the stream"},
	{"meta-empty", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) { h.write("meta.inf", "") }, "skips the stream"},
	{"sum-missing", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) { h.remove("meta.sum") }, "skips the stream"},
	{"sum-wrong-and-hash", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) {
		h.write("meta.sum", "0123456789abcdef")
		h.flip(h.block(2), payload(h.message(2, 40)))
	}, "nothing: the stream is skipped"},
	{"unknown-key", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) {
		h.meta(filepath.Join(h.dir, "meta.inf"), "BLOCKS", func(m map[string]any) { m["strange"] = 1 })
		h.flip(h.block(2), payload(h.message(2, 40)))
	}, "offline"},
	{"unknown-value", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) {
		h.meta(filepath.Join(h.dir, "meta.inf"), "BLOCKS", func(m map[string]any) { m["retention"] = "strange" })
	}, "skips the stream"},
	{"other-name", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) {
		h.meta(filepath.Join(h.dir, "meta.inf"), "BLOCKS", func(m map[string]any) { m["name"] = "STRANGE" })
	}, "makes an empty stream"},
	{"consumer-meta-missing", "2.14.5-basic", "ORDERS", "kept", func(h *harmed) { h.remove("obs/ALL/meta.inf") }, "skips the consumer"},
	{"consumer-meta-invalid", "2.14.5-basic", "ORDERS", "kept", func(h *harmed) { h.write("obs/ALL/meta.inf", "{") }, "skips the consumer"},
	{"consumer-sum-missing", "2.14.5-basic", "INTEREST", "kept", func(h *harmed) { h.remove("obs/A/meta.sum") }, "skips the consumer"},
	{"consumer-sum-wrong", "2.14.5-basic", "ORDERS", "kept", func(h *harmed) { h.write("obs/ALL/meta.sum", "0123456789abcdef") }, "nothing"},
	{"consumer-state", "2.14.5-basic", "ORDERS", "kept", func(h *harmed) { h.write("obs/ALL/o.dat", "\x16") }, "2.14.5 and earlier remove"},
	{"consumer-state-interest-a", "2.14.5-basic", "INTEREST", "kept", func(h *harmed) { h.write("obs/A/o.dat", "\x16") }, "2.14.5 and earlier remove"},
	{"consumer-state-interest-b", "2.14.5-basic", "INTEREST", "kept", func(h *harmed) { h.write("obs/B/o.dat", "\x16") }, "2.14.5 and earlier remove"},
	{"consumer-key", "2.14.5-aes-basic", "ORDERS", "kept", func(h *harmed) { h.flip(filepath.Join(h.dir, "obs/ALL/meta.key"), 40) }, "skips the consumer"},
	{"consumer-unknown-key", "2.14.5-basic", "ORDERS", "kept", func(h *harmed) {
		h.meta(filepath.Join(h.dir, "obs/ALL/meta.inf"), "ORDERS/ALL", func(m map[string]any) { m["strange"] = 1 })
	}, "stops the whole stream"},
	{"leftovers", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) {
		h.write("__msgs__/1.blk", "x")
		h.write("meta.inf.tmp", "x")
		h.write("_test_123", "x")
		h.write("msgs/9.key", "x")
		h.write("msgs/9.idx", "x")
		h.write("msgs/2.blk.tmp", "x")
		h.write("msgs/index.db.tmp", "x")
		h.write("msgs/2.new", "x")
		h.write("msgs/strange", "x")
		h.write("batches/0123/msgs/1.blk", "")
		h.write("strange", "x")
	}, "removes it, with what was purged"},
	{"leftovers-scanned", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) {
		h.write("msgs/9.key", "x")
		h.write("msgs/9.idx", "x")
		h.write("msgs/2.blk.tmp", "x")
		h.write("msgs/2.new", "x")
		h.write("msgs/strange", "x")
	}, "removes it"},
	{"batches", "2.15.2-new", "BATCH", "kept", func(h *harmed) { h.write("batches/0123/msgs/1.blk", "") }, "removes it; if"},
	{"large-record", "2.14.5-basic", "ORDERS", "removed", func(h *harmed) { h.append(2, 301, "orders.large", 33<<20) }, "deletes 2.blk: 1 message is lost; the last sequence falls back from 301 to 300"},
	{"no-large-record", "2.14.5-basic", "ORDERS", "removed", func(h *harmed) { h.append(2, 301, "orders.large", 31<<20) }, ""},
	{"new-msgs", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) { h.write("__new_msgs__/9.blk", "") }, "replaces msgs/"},
	{"new-msgs-keys", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) { h.write("__new_msgs__/2.key", "") }, "the 1 block whose keys"},
	{"odd-double", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) { h.write("msgs/2.blk.copy.blk", "") }, "twice"},
	{"odd-directory", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) { must(h.t, os.Mkdir(filepath.Join(h.msgs, "9.blk"), 0o755)) }, "removes the stream's directory"},
	{"odd-directory-indexed", "2.14.5-basic", "BLOCKS", "kept", func(h *harmed) { must(h.t, os.Mkdir(filepath.Join(h.msgs, "2x.blk"), 0o755)) }, "nothing"},
	{"dangling-link", "2.14.5-basic", "BLOCKS", "removed", func(h *harmed) { must(h.t, os.Symlink("nowhere", filepath.Join(h.msgs, "9.blk"))) }, "where that cannot be read"},
}

// append writes a block with one message.
func (h *harmed) append(n int, seq uint64, subject string, size int) {
	r := make([]byte, 22, 22+len(subject)+size+8)
	le := binary.LittleEndian
	le.PutUint32(r, uint32(cap(r)))
	le.PutUint64(r[4:], seq)
	le.PutUint64(r[12:], uint64(time.Now().UnixNano()))
	le.PutUint16(r[20:], uint16(len(subject)))
	r = append(append(r, subject...), make([]byte, size)...)
	key := sha256.Sum256(fmt.Appendf(nil, "%s-%d", h.stream, n))
	hh, err := highwayhash.New64(key[:])
	must(h.t, err)
	hh.Write(r[4:20])
	hh.Write(r[22:])
	must(h.t, os.WriteFile(h.block(n), hh.Sum(r), 0o600))
	h.messages, h.last = h.messages+1, seq
}

// plain puts the plaintext of a block in its place.
func (h *harmed) plain(n int) {
	plain := filepath.Join(h.t.TempDir(), "plain")
	Jetsam(h.t, h.f.Key, "-q", "restore", h.f.Store(), plain, "-s", h.stream, "--decrypt").Want(h.t, 0)
	b, err := os.ReadFile(filepath.Join(plain, "jetstream/$G/streams", h.stream, "msgs", strconv.Itoa(n)+".blk"))
	must(h.t, err)
	must(h.t, os.WriteFile(h.block(n), b, 0o600))
}

// inside changes the records of a compressed block.
func (h *harmed) inside(n int, change func([]byte)) {
	h.edit(h.block(n), func(b []byte) []byte {
		start := bytes.Index(b, []byte("\xff\x06\x00\x00S2sTwO"))
		end := len(b) - 8
		raw, err := io.ReadAll(s2.NewReader(bytes.NewReader(b[start:end])))
		must(h.t, err)
		change(raw)
		var packed bytes.Buffer
		w := s2.NewWriter(&packed)
		_, err = w.Write(raw)
		must(h.t, err)
		must(h.t, w.Close())
		return slices.Concat(b[:start], packed.Bytes(), b[end:])
	})
}

// headless takes the header off a compressed block.
func (h *harmed) headless(n int) {
	h.edit(h.block(n), func(b []byte) []byte { return b[bytes.Index(b, []byte("\xff\x06\x00\x00S2sTwO")):] })
}
