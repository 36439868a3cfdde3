package live

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats.go"
)

// TestDamage does damage to copies of a store and prints what becomes of each: what servers serve that are started
// on it, and what a server serves of what `jetsam salvage` makes of it. It runs only when asked: benches/damage.sh.
//
//	JETSAM_DAMAGE           a directory for the stores
//	JETSAM_DAMAGE_MESSAGES  messages in each (default 20,000)
func TestDamage(t *testing.T) {
	dir := os.Getenv("JETSAM_DAMAGE")
	if dir == "" {
		t.Skip("JETSAM_DAMAGE is not set")
	}
	patience = 10 * time.Minute
	messages := number("JETSAM_DAMAGE_MESSAGES", 20_000)
	servers := []Version{"2.14.9", "2.15.2"}
	row := func(cells ...any) {
		for _, c := range cells {
			fmt.Printf("| %v ", c)
		}
		fmt.Println("|")
	}
	fmt.Printf("One stream of %s messages of about 600 bytes, written by nats-server 2.14.9; messages that a server serves afterwards.\n\n", thousands(messages))
	row("store", "damage", "2.14.9 started on it", "2.15.2 started on it", "jetsam salvage")
	row("---", "---", "---", "---", "---")
	for _, kind := range []variant{{"plain", "", false}, {"s2", "", true}, {"aes-s2", "aes", true}} {
		store := filepath.Join(dir, fmt.Sprintf("%s-%d", kind.name, messages))
		must(t, os.RemoveAll(store))
		made := MakeStore(t, "2.14.9", store, kind, messages, 600, false)
		for _, d := range damages {
			if d.only != "" && d.only != kind.name {
				continue
			}
			work, err := os.MkdirTemp(dir, "work")
			must(t, err)
			spoilt := filepath.Join(work, "spoilt")
			CopyTree(t, store, spoilt)
			if !d.do(t, made, spoilt) {
				must(t, os.RemoveAll(work))
				continue
			}
			var cells []any
			for _, v := range servers {
				started := filepath.Join(work, string(v))
				CopyTree(t, spoilt, started)
				cells = append(cells, serving(t, v, started, made))
				must(t, os.RemoveAll(started))
			}
			dest := filepath.Join(work, "salvaged")
			ran := Jetsam(t, made.Opts.Key, "-q", "salvage", "--json", spoilt, dest).Want(t, 0, 1)
			var r salvageReport
			must(t, json.Unmarshal(ran.Stdout, &r))
			ours := "not recovered"
			if len(r.Streams) == 1 && r.Streams[0].Error == "" {
				ours = serving(t, "2.15.2", dest, made)
				if n := r.Streams[0].LostMessages; n > 0 {
					ours += fmt.Sprintf("; reports %s lost", thousands(int(n)))
				}
				if n := r.Streams[0].Unverified; n > 0 {
					ours += fmt.Sprintf("; reports %d unverified", n)
				}
			}
			row(kind.name, d.name, cells[0], cells[1], ours)
			must(t, os.RemoveAll(work))
		}
		must(t, os.RemoveAll(store))
	}
}

func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// serving starts a server on a store and tells what it serves: the messages that its API gives as they were, and what
// it says that it has.
func serving(t *testing.T, v Version, store string, made *Made) string {
	t.Helper()
	s, err := tryServer(t, v, store, made.Opts)
	if err != nil {
		return err.Error()
	}
	defer s.Kill()
	nc := s.Connect("$G")
	var info Stream
	if err := API(nc, "STREAM.INFO."+damaged, nil, &info); err != nil {
		var api *APIError
		if errors.As(err, &api) && api.Code == 404 {
			gone := ""
			if !exists(filepath.Join(store, "jetstream", "$G", "streams", damaged, "msgs")) {
				gone = ", **directory deleted**"
			}
			return "no stream" + gone
		}
		return err.Error()
	}
	got := map[uint64]Message{}
	// One by one: a consumer may stop at what cannot be read.
	type reply struct {
		seq uint64
		msg *nats.Msg
	}
	sub, err := nc.SubscribeSync(nats.NewInbox() + ".*")
	must(t, err)
	must(t, sub.SetPendingLimits(-1, -1))
	want := made.Truth["$G"][damaged].Messages
	prefix := strings.TrimSuffix(sub.Subject, "*")
	failed := 0
	for sent, answered := 0, 0; answered < len(want); {
		for ; sent < len(want) && sent-answered < 200; sent++ {
			body := fmt.Appendf(nil, `{"seq":%d}`, want[sent].Seq)
			must(t, nc.PublishRequest("$JS.API.DIRECT.GET."+damaged, prefix+fmt.Sprint(want[sent].Seq), body))
		}
		m, err := sub.NextMsg(5 * time.Second)
		if err != nil {
			failed = len(want) - answered
			break
		}
		answered++
		if m.Header.Get("Status") != "" {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, m.Header.Get("Nats-Time-Stamp"))
		must(t, err)
		var seq uint64
		_, err = fmt.Sscan(m.Header.Get("Nats-Sequence"), &seq)
		must(t, err)
		x := Message{Seq: seq, Subject: m.Header.Get("Nats-Subject"), Time: at, Data: m.Data}
		if of := m.Header.Get("X-Of"); of != "" {
			x.Header = []byte("NATS/1.0\r\nX-Of: " + of + "\r\n\r\n")
		}
		got[seq] = x
	}
	right, wrong := 0, 0
	for _, w := range want {
		if g, ok := got[w.Seq]; ok && g.Subject == w.Subject && g.Time.Equal(w.Time) && bytes.Equal(g.Data, w.Data) && bytes.Equal(g.Header, w.Header) {
			right++
		} else if ok {
			wrong++
		}
	}
	out := thousands(right)
	if n := int(info.State.Messages); n != right {
		out += fmt.Sprintf(" (says %s)", thousands(n))
	}
	if wrong > 0 {
		out += fmt.Sprintf(", %d of them **wrong**", wrong)
	}
	if failed > 0 {
		out += ", then hangs"
	}
	var list struct {
		Consumers []*Consumer `json:"consumers"`
	}
	if err := API(nc, "CONSUMER.LIST."+damaged, nil, &list); err == nil {
		if n := len(made.Truth["$G"][damaged].Consumers) - len(list.Consumers); n > 0 {
			out += fmt.Sprintf(", %d consumers gone", n)
		}
	}
	return out
}

// tryServer is StartServer for a store on which a server may not come up.
func tryServer(t *testing.T, v Version, store string, o Options) (s *Server, err error) {
	done := make(chan struct{})
	inner := &trial{TB: t}
	go func() {
		defer close(done)
		s = StartServer(inner, v, store, o)
	}()
	<-done
	if inner.failed {
		// One that spins on what it cannot read takes all memory while it does.
		for _, stop := range slices.Backward(inner.cleanups) {
			stop()
		}
		t.Logf("%.3000s", inner.why)
		return nil, errors.New("the server does not start")
	}
	for _, stop := range inner.cleanups {
		t.Cleanup(stop)
	}
	return s, nil
}

// trial keeps a failure to itself.
type trial struct {
	testing.TB
	failed   bool
	why      string
	cleanups []func()
}

func (t *trial) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }

func (t *trial) Fatalf(format string, args ...any) {
	t.failed, t.why = true, fmt.Sprintf(format, args...)
	runtime.Goexit()
}
func (t *trial) Fatal(...any) { t.failed = true; runtime.Goexit() }
func (t *trial) Failed() bool { return false }

type damage struct {
	name string
	only string // this kind of store
	do   func(t *testing.T, m *Made, store string) bool
}

// flips flips n bits, one to a record or chunk; where there are fewer of these, it does nothing.
func flips(n int, index bool) func(t *testing.T, m *Made, store string) bool {
	return func(t *testing.T, m *Made, store string) bool {
		if !index {
			removeIndex(t, store)
		}
		all := m.allParts(t, store)
		flipBits(t, rand.New(rand.NewSource(seed()+int64(n))), all, n)
		return n <= len(all)
	}
}

func firstBlock(store string) string { return blockFile(msgsDir(store), 1) }

var damages = []damage{
	{"1 flipped bit", "", flips(1, true)},
	{"1 flipped bit, no `index.db`", "", flips(1, false)},
	{"20 flipped bits, no `index.db`", "", flips(20, false)},
	{"200 flipped bits", "", flips(200, true)},
	{"200 flipped bits, no `index.db`", "", flips(200, false)},
	{"a page of zeros in block 1, no `index.db`", "", func(t *testing.T, m *Made, store string) bool {
		removeIndex(t, store)
		b, err := os.ReadFile(firstBlock(store))
		must(t, err)
		at := len(b) / 3 &^ 4095
		clear(b[at : at+4096])
		must(t, os.WriteFile(firstBlock(store), b, 0o640))
		return true
	}},
	{"block 1 cut in the middle", "", func(t *testing.T, m *Made, store string) bool {
		info, err := os.Stat(firstBlock(store))
		must(t, err)
		must(t, os.Truncate(firstBlock(store), info.Size()/2))
		return true
	}},
	{"last block loses its last 100 bytes", "", func(t *testing.T, m *Made, store string) bool {
		all := blockNumbers(t, msgsDir(store))
		last := blockFile(msgsDir(store), all[len(all)-1])
		info, err := os.Stat(last)
		must(t, err)
		must(t, os.Truncate(last, info.Size()-100))
		return true
	}},
	{"block 1 is missing", "", func(t *testing.T, m *Made, store string) bool {
		must(t, os.Remove(firstBlock(store)))
		return true
	}},
	{"block 1 has another number", "", func(t *testing.T, m *Made, store string) bool {
		msgs := msgsDir(store)
		must(t, os.Rename(firstBlock(store), blockFile(msgs, 99)))
		if m.Opts.Key != "" {
			must(t, os.Rename(filepath.Join(msgs, "1.key"), filepath.Join(msgs, "99.key")))
		}
		return true
	}},
	{"block 1 without its S2 header, no `index.db`", "s2", func(t *testing.T, m *Made, store string) bool {
		removeIndex(t, store)
		b, err := os.ReadFile(firstBlock(store))
		must(t, err)
		_, n := binary.Uvarint(b[4:])
		must(t, os.WriteFile(firstBlock(store), b[4+n:], 0o640))
		return true
	}},
	{"a bad record in a sound S2 block, no `index.db`", "s2", func(t *testing.T, m *Made, store string) bool {
		removeIndex(t, store)
		b, err := os.ReadFile(firstBlock(store))
		must(t, err)
		raw := inflated(t, b)
		raw[len(raw)/3] ^= 8
		var packed bytes.Buffer
		packed.WriteString("cmp\x01")
		packed.Write(binary.AppendUvarint(nil, uint64(len(raw))))
		w := s2.NewWriter(&packed)
		_, err = w.Write(raw[:len(raw)-8])
		must(t, err)
		must(t, w.Close())
		packed.Write(raw[len(raw)-8:])
		must(t, os.WriteFile(firstBlock(store), packed.Bytes(), 0o640))
		return true
	}},
	{"a flipped bit in `1.key`", "aes-s2", func(t *testing.T, m *Made, store string) bool {
		flip(t, filepath.Join(msgsDir(store), "1.key"), 30, 3)
		return true
	}},
	{"a flipped bit in `1.key`, no `index.db`", "aes-s2", func(t *testing.T, m *Made, store string) bool {
		removeIndex(t, store)
		flip(t, filepath.Join(msgsDir(store), "1.key"), 30, 3)
		return true
	}},
	{"a flipped bit in `meta.key`", "aes-s2", func(t *testing.T, m *Made, store string) bool {
		flip(t, filepath.Join(msgsDir(store), "..", "meta.key"), 30, 3)
		return true
	}},
	{"a flipped bit in `meta.inf`", "", func(t *testing.T, m *Made, store string) bool {
		flip(t, filepath.Join(msgsDir(store), "..", "meta.inf"), 44, 0)
		return true
	}},
	{"`meta.sum` is missing", "plain", func(t *testing.T, m *Made, store string) bool {
		must(t, os.Remove(filepath.Join(msgsDir(store), "..", "meta.sum")))
		return true
	}},
	{"`meta.inf` is missing", "plain", func(t *testing.T, m *Made, store string) bool {
		must(t, os.Remove(filepath.Join(msgsDir(store), "..", "meta.inf")))
		return true
	}},
}
