package live

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// salvageKinds are the forms that are damaged here.
var salvageKinds = []variant{{"plain", "", false}, {"s2", "", true}, {"chacha", "chacha", false}, {"aes-s2", "aes", true}}

// salvageReport is what `jetsam salvage --json` says.
type salvageReport struct {
	Streams []struct {
		Account, Stream string
		Messages        uint64
		Corrected       uint64
		Lost            [][2]uint64
		LostMessages    uint64 `json:"lost_messages"`
		Unverified      uint64
		FromLeftovers   uint64 `json:"from_leftovers"`
		Corrections     []struct {
			File  string
			Flips []struct{ Offset, Bit int }
			Seq   uint64
			Proof string
		}
		Notes []string
		Error string
	}
}

// salvage runs it and gives the report, the new store and how long it took.
func salvage(t *testing.T, m *Made, store string, codes []int, more ...string) (salvageReport, string, time.Duration) {
	t.Helper()
	dest := filepath.Join(t.TempDir(), "salvaged")
	start := time.Now()
	ran := Jetsam(t, m.Opts.Key, append([]string{"-q", "salvage", "--json", store, dest}, more...)...).Want(t, codes...)
	took := time.Since(start)
	var r salvageReport
	if err := json.Unmarshal(ran.Stdout, &r); err != nil || len(r.Streams) != 1 {
		t.Fatalf("jetsam salvage: %v: %.2000s", err, ran.Stdout)
	}
	return r, dest, took
}

// TestSalvageFlippedBits: single bits flipped all over a store, at most one in a record or in a compressed chunk. A
// server serves every message from what `jetsam salvage` makes of it, and the consumers go on where they were.
//
//	JETSAM_SALVAGE_MESSAGES  messages in each store (default 10,000 in small blocks; JETSAM_LIVE_ALL: 200,000 in those that
//	                         servers make by default)
func TestSalvageFlippedBits(t *testing.T) {
	if !HaveJetsam(t) {
		t.Skip("no jetsam")
	}
	big := everyPair() || os.Getenv("JETSAM_SALVAGE_MESSAGES") != ""
	messages := number("JETSAM_SALVAGE_MESSAGES", 10_000)
	if everyPair() {
		messages = number("JETSAM_SALVAGE_MESSAGES", 200_000)
	}
	if big {
		patience = 10 * time.Minute
	}
	for _, v := range []Version{"2.14.9", "2.15.2"} {
		for _, kind := range salvageKinds {
			t.Run(fmt.Sprintf("%s/%s", v, kind.name), func(t *testing.T) {
				made := MakeStore(t, v, filepath.Join(t.TempDir(), "store"), kind, messages, 200, !big)
				if n := len(made.Truth["$G"][damaged].Messages); n != messages {
					t.Fatalf("the server holds %d messages", n)
				}
				for i, flips := range []int{1, 20, 200} {
					for _, index := range []bool{true, false} {
						if !big && index != (i == 1) {
							continue
						}
						name := fmt.Sprintf("%d-flips", flips)
						if !index {
							name += "-no-index"
						}
						t.Run(name, func(t *testing.T) { salvageFlips(t, made, flips, index) })
					}
				}
			})
		}
	}
}

func salvageFlips(t *testing.T, made *Made, flips int, index bool) {
	store := filepath.Join(t.TempDir(), "damaged")
	CopyTree(t, made.Dir, store)
	rng := rand.New(rand.NewSource(seed() + int64(flips)))
	all := made.allParts(t, store)
	if !index {
		removeIndex(t, store)
		// No hash covers the two bytes with the length of a subject: without the index a subject that is as possible as
		// the one that was is not known to be wrong.
		for i := range all {
			all[i].spare = all[i].seq != 0
		}
	}
	done := flipBits(t, rng, all, flips)
	r, dest, took := salvage(t, made, store, []int{0})
	got := r.Streams[0]
	bits := 0
	for _, c := range got.Corrections {
		bits += len(c.Flips)
	}
	t.Logf("%d bits flipped, %d corrected, %d messages; %.2f s", len(done), bits, got.Messages, took.Seconds())
	if len(got.Lost) > 0 {
		t.Errorf("lost: %v", got.Lost)
	}
	if bits != len(done) {
		t.Errorf("%d bits were corrected, %d were flipped", bits, len(done))
	}
	serves(t, made, dest, made.Truth, true)
	if t.Failed() {
		t.Logf("flipped: %v\nnotes: %q", done, got.Notes)
	}
}

// serves fails unless a server on the store serves the truth without a word of warning, takes its index without a
// scan, and has the consumers go on.
func serves(t *testing.T, made *Made, store string, want Truth, consumers bool) {
	t.Helper()
	scanned := filepath.Join(t.TempDir(), "index")
	CopyTree(t, store, scanned)

	s := StartServer(t, made.Version, store, made.Opts)
	got := ReadQuickly(t, s)
	report(t, "messages", compareMessages(want["$G"][damaged].Messages, got["$G"][damaged].Messages))
	if consumers {
		for name, w := range want["$G"][damaged].Consumers {
			g := got["$G"][damaged].Consumers[name]
			if g == nil {
				t.Errorf("consumer %s is missing", name)
				continue
			}
			report(t, "consumer "+name, compareConsumer(w, g, Rules{Version: made.Version}))
		}
		f := NewFiller(t, s, "$G", 1, false)
		next := want["$G"][damaged].Consumers["WORK"].Delivered.Stream + 1
		var seqs []uint64
		for _, m := range f.pull(damaged, "WORK", 5) {
			about, err := m.Metadata()
			must(t, err)
			if about.NumDelivered == 1 { // what was refused comes again
				seqs = append(seqs, about.Sequence.Stream)
			}
		}
		if len(seqs) > 0 && seqs[0] != next {
			t.Errorf("consumer WORK goes on at %v, not at %d", seqs, next)
		}
	}
	ack, err := s.Connect("$G").RequestMsg(&nats.Msg{Subject: "salv.new", Data: []byte("new")}, 5*time.Second)
	must(t, err)
	var pub struct{ Seq uint64 }
	must(t, json.Unmarshal(ack.Data, &pub))
	if last := want["$G"][damaged].State.LastSeq; pub.Seq != last+1 {
		t.Errorf("a new message gets sequence %d after %d", pub.Seq, last)
	}
	s.Stop()
	quiet(t, s, "start")

	// A server that scans would drop or cut the block that is damaged now.
	blocks := blockNumbers(t, msgsDir(scanned))
	flip(t, blockFile(msgsDir(scanned), blocks[0]), 60, 3)
	s = StartServer(t, made.Version, scanned, made.Opts)
	if n, messages := countMessages(t, s, [2]string{"$G", damaged}), uint64(len(want["$G"][damaged].Messages)); n != messages {
		t.Errorf("index.db was not taken: %d messages, not %d", n, messages)
	}
	s.Kill()
}

// TestSalvageStructures: files that are gone, renamed or cut.
func TestSalvageStructures(t *testing.T) {
	if !HaveJetsam(t) {
		t.Skip("no jetsam")
	}
	for _, v := range []Version{"2.14.9", "2.15.2"} {
		for _, kind := range salvageKinds {
			t.Run(fmt.Sprintf("%s/%s", v, kind.name), func(t *testing.T) {
				made := MakeStore(t, v, filepath.Join(t.TempDir(), "store"), kind, 3000, 200, true)
				for name, c := range structures {
					if c.keyed && made.Opts.Key == "" {
						continue
					}
					for _, index := range []bool{true, false} {
						name := name
						if !index {
							name += "-no-index"
						}
						t.Run(name, func(t *testing.T) { salvageStructure(t, made, c, index) })
					}
				}
			})
		}
	}
}

type structure struct {
	// damage gives the sequences that are gone for good.
	damage func(t *testing.T, m *Made, store string) (from, to uint64)
	// The configuration is not the stream's own then.
	config bool
	// Only of encrypted stores.
	keyed bool
	code  int
}

// sequences of a block, by the server's own record of them.
func (m *Made) sequences(t *testing.T, store string, block int) (from, to uint64) {
	t.Helper()
	// The blocks were filled in order, so what is not in the others is in this one.
	all := decrypted(t, m.Opts, "$G", damaged, msgsDir(store), block)
	if all = inflated(t, all); len(all) == 0 {
		t.Fatal("an empty block")
	}
	for _, p := range parts("", all) {
		if p.seq>>62 == 0 {
			from, to = min(from-1, p.seq-1)+1, max(to, p.seq)
		}
	}
	return from, to
}

var structures = map[string]structure{
	"no-meta-inf": {config: true, code: 1, damage: func(t *testing.T, m *Made, store string) (uint64, uint64) {
		must(t, os.Remove(filepath.Join(msgsDir(store), "..", "meta.inf")))
		return 0, 0
	}},
	"no-meta-sum": {damage: func(t *testing.T, m *Made, store string) (uint64, uint64) {
		must(t, os.Remove(filepath.Join(msgsDir(store), "..", "meta.sum")))
		return 0, 0
	}},
	"no-block": {code: 1, damage: func(t *testing.T, m *Made, store string) (uint64, uint64) {
		from, to := m.sequences(t, store, 5)
		must(t, os.Remove(blockFile(msgsDir(store), 5)))
		return from, to
	}},
	"renamed-block": {damage: func(t *testing.T, m *Made, store string) (uint64, uint64) {
		msgs := msgsDir(store)
		must(t, os.Rename(blockFile(msgs, 4), blockFile(msgs, 4711)))
		if m.Opts.Key != "" {
			must(t, os.Rename(filepath.Join(msgs, "4.key"), filepath.Join(msgs, "4711.key")))
		}
		return 0, 0
	}},
	"cut-tail": {code: 1, damage: func(t *testing.T, m *Made, store string) (uint64, uint64) {
		blocks := blockNumbers(t, msgsDir(store))
		last := blocks[len(blocks)-1]
		all := parts("", decrypted(t, m.Opts, "$G", damaged, msgsDir(store), last))
		all = slices.DeleteFunc(all, func(p part) bool { return p.seq>>62 != 0 })
		cut := all[len(all)-3]
		must(t, os.Truncate(blockFile(msgsDir(store), last), int64(cut.from+17)))
		return cut.seq, all[len(all)-1].seq
	}},
	"flipped-meta-inf": {damage: func(t *testing.T, m *Made, store string) (uint64, uint64) {
		flip(t, filepath.Join(msgsDir(store), "..", "meta.inf"), 33, 2)
		return 0, 0
	}},
	"flipped-index": {damage: func(t *testing.T, m *Made, store string) (uint64, uint64) {
		if index := filepath.Join(msgsDir(store), "index.db"); exists(index) {
			flip(t, index, 21, 5)
		}
		return 0, 0
	}},
	"flipped-key": {keyed: true, damage: func(t *testing.T, m *Made, store string) (uint64, uint64) {
		flip(t, filepath.Join(msgsDir(store), "3.key"), 40, 1)
		return 0, 0
	}},
	"flipped-meta-key": {keyed: true, damage: func(t *testing.T, m *Made, store string) (uint64, uint64) {
		flip(t, filepath.Join(msgsDir(store), "..", "meta.key"), 7, 1)
		return 0, 0
	}},
	"flipped-o-dat": {keyed: true, damage: func(t *testing.T, m *Made, store string) (uint64, uint64) {
		flip(t, filepath.Join(msgsDir(store), "..", "obs", "WORK", "o.dat"), 30, 6)
		return 0, 0
	}},
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func salvageStructure(t *testing.T, made *Made, c structure, index bool) {
	store := filepath.Join(t.TempDir(), "damaged")
	CopyTree(t, made.Dir, store)
	if !index {
		removeIndex(t, store)
	}
	from, to := c.damage(t, made, store)
	want := made.Truth.clone()
	st := want["$G"][damaged]
	if to > 0 {
		st.Messages = slices.DeleteFunc(slices.Clone(st.Messages), func(m Message) bool { return m.Seq >= from && m.Seq <= to })
		if !index && to == st.State.LastSeq {
			// Nothing says that there was more.
			st.State.LastSeq = from - 1
		}
	}
	r, dest, _ := salvage(t, made, store, []int{c.code})
	got := r.Streams[0]
	if to == 0 && len(got.Lost) > 0 || to > 0 && st.State.LastSeq >= to && !slices.Equal(got.Lost, [][2]uint64{{from, to}}) {
		t.Errorf("lost: %v, not %d..%d", got.Lost, from, to)
	}
	serves(t, made, dest, want, !c.config && to == 0)
	if t.Failed() {
		t.Logf("notes: %q", got.Notes)
	}
}
