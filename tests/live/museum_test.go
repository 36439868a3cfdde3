package live

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats.go"
)

// ranges of sequences, both ends included.
type ranges [][2]uint64

// without takes these out.
func (r ranges) without(seqs ...uint64) (out ranges) {
	for _, x := range r {
		for seq := x[0]; seq <= x[1]; seq++ {
			if slices.Contains(seqs, seq) {
				continue
			}
			if n := len(out); n > 0 && out[n-1][1]+1 == seq {
				out[n-1][1] = seq
			} else {
				out = append(out, [2]uint64{seq, seq})
			}
		}
	}
	return out
}

// outcome is what salvage owes us of one directory of an exhibit.
type outcome struct {
	// Dir is what is salvaged.
	Dir  string `json:"dir"`
	Exit int    `json:"exit"`
	// Messages that have to come back, as they are in truth.json.
	Messages ranges `json:"messages"`
	// Maybe are messages that may come back; those that do not have to be reported as lost.
	Maybe ranges `json:"maybe,omitempty"`
	// AtLeast so many of them have to.
	AtLeast int `json:"at_least,omitempty"`
	// Lost has to be reported.
	Lost          ranges    `json:"lost"`
	Corrections   []flipped `json:"corrections"`
	FromLeftovers int       `json:"from_leftovers,omitempty"`
	Reconstructed bool      `json:"reconstructed,omitempty"`
	// Consumer is false where its state is gone.
	Consumer bool `json:"consumer"`
}

// exhibit is a store and what is wrong with it.
type exhibit struct {
	Server   Version   `json:"server"`
	Key      string    `json:"key,omitempty"`
	Cipher   string    `json:"cipher,omitempty"`
	Story    string    `json:"story"`
	Damage   string    `json:"damage"`
	Outcomes []outcome `json:"outcomes"`

	name string
	kind variant
	make func(h *hall)
}

// hall is where an exhibit is made.
type hall struct {
	*testing.T
	*exhibit
	dir   string
	store string
	truth *Stream
	n     int
}

const museum = "M"

func (h *hall) opts() Options {
	o := h.kind.options()
	if o.Key != "" {
		o.Key = "the museum's key"
	}
	return o
}

// serve runs a server on the store, lets it be used, takes the truth, and stops it.
func (h *hall) serve(use func(f *Filler)) *Server {
	s := StartServer(h, h.Server, h.store, h.opts())
	f := NewFiller(h, s, "$G", 3, h.kind.compress)
	if !f.exists(museum) {
		// Small blocks, and no limit later.
		config := Cfg{"subjects": []string{"m.>"}, "max_bytes": 120_000}
		f.stream(museum, config)
		config["max_bytes"] = -1
		f.api("STREAM.UPDATE."+museum, f.config(museum, config))
		f.consumer(museum, "C", nil)
	}
	h.truth = nil
	use(f)
	time.Sleep(700 * time.Millisecond) // compression happens aside
	if h.truth == nil {
		st, err := readStream(s.Connect("$G"), museum)
		must(h, err)
		h.truth = st
	}
	s.Stop()
	return s
}

var museumWords = strings.Fields("records acknowledged, yesterday nobody; elsewhere: whatever? somewhat! truncated")

// publish n messages of about size bytes.
func (h *hall) publish(f *Filler, n, size int) {
	for range n {
		h.n++
		p := Pub{Subject: fmt.Sprintf("m.%d", h.n%3), Data: fmt.Appendf(nil, "%d:", h.n)}
		for len(p.Data) < size {
			p.Data = fmt.Appendf(p.Data, " %s", museumWords[f.rng.Intn(len(museumWords))])
		}
		if h.n%4 == 0 {
			p.Header = nats.Header{"N": {fmt.Sprint(h.n)}}
		}
		f.publish(false, p)
	}
}

// simple is a store of n messages and a consumer that has got nine of them.
func (h *hall) simple(n, size int) {
	h.serve(func(f *Filler) {
		h.publish(f, n, size)
		for i, m := range f.pull(museum, "C", 9) {
			if i != 3 && i < 7 {
				f.ack(m)
			}
		}
	})
}

func (h *hall) streamDir() string {
	return filepath.Join(h.store, "jetstream", "$G", "streams", museum)
}
func (h *hall) msgs() string       { return filepath.Join(h.streamDir(), "msgs") }
func (h *hall) block(n int) string { return blockFile(h.msgs(), n) }
func (h *hall) noIndex()           { must(h, os.Remove(filepath.Join(h.msgs(), "index.db"))) }

func (h *hall) plain(n int) []byte {
	return inflated(h, decrypted(h, h.opts(), "$G", museum, h.msgs(), n))
}

// record of a block by its sequence.
func (h *hall) record(block int, seq uint64) part {
	for _, p := range parts(h.block(block), h.plain(block)) {
		if p.seq == seq {
			return p
		}
	}
	h.Fatalf("no record %d", seq)
	return part{}
}

// sequences of the messages in a block.
func (h *hall) sequences(block int) (out []uint64) {
	for _, p := range parts("", h.plain(block)) {
		if p.seq>>62 == 0 {
			out = append(out, p.seq)
		}
	}
	return out
}

func span(seqs []uint64) ranges { return ranges{{seqs[0], seqs[len(seqs)-1]}} }

func (h *hall) flip(file string, at, bit int) flipped {
	f := flip(h, file, at, bit)
	f.File, _ = filepath.Rel(h.store, file)
	return f
}

// live is what the truth has.
func (h *hall) live() (out ranges) {
	for _, m := range h.truth.Messages {
		if n := len(out); n > 0 && out[n-1][1]+1 == m.Seq {
			out[n-1][1] = m.Seq
		} else {
			out = append(out, [2]uint64{m.Seq, m.Seq})
		}
	}
	return out
}

func (h *hall) expect(o outcome) {
	if o.Dir == "" {
		o.Dir = "store"
	}
	if o.Lost == nil {
		o.Lost = ranges{}
	}
	if o.Corrections == nil {
		o.Corrections = []flipped{}
	}
	h.Outcomes = append(h.Outcomes, o)
}

// whole: everything comes back.
func (h *hall) whole(corrections ...flipped) {
	h.expect(outcome{Messages: h.live(), Corrections: corrections, Consumer: true})
}

func exhibits() []*exhibit {
	plain, packed := variant{"plain", "", false}, variant{"s2", "", true}
	return []*exhibit{
		{name: "flipped-bit", Server: "2.14.9", kind: plain,
			Story:  "A bit of a payload is flipped, and `index.db` is gone. A server that starts cuts the block there: 37 messages behind it are gone for good.",
			Damage: "one bit in the payload of message 24 of 60; `index.db` deleted",
			make: func(h *hall) {
				h.simple(60, 60)
				p := h.record(1, 24)
				h.noIndex()
				h.whole(h.flip(p.file, p.from+50, 4))
			}},
		{name: "flipped-length", Server: "2.15.2", kind: plain,
			Story:  "A bit in the length of the very first record. A server that starts without an index deletes the block.",
			Damage: "one bit in the length of message 1; `index.db` deleted",
			make: func(h *hall) {
				h.simple(60, 60)
				h.noIndex()
				h.whole(h.flip(h.block(1), 1, 3))
			}},
		{name: "flipped-metadata", Server: "2.14.9", kind: plain,
			Story:  "Bits in `meta.inf`, `index.db` and a record. A server passes over the stream (its sum does not fit), and an API that creates it anew writes over what is there.",
			Damage: "one bit in each of `meta.inf`, `index.db`, message 7",
			make: func(h *hall) {
				h.simple(40, 60)
				p := h.record(1, 7)
				h.whole(
					h.flip(filepath.Join(h.streamDir(), "meta.inf"), 55, 1),
					h.flip(filepath.Join(h.msgs(), "index.db"), 19, 6),
					h.flip(p.file, p.to-3, 0))
			}},
		{name: "flipped-s2", Server: "2.15.2", kind: packed,
			Story:  "A bit in a compressed block, and no `index.db`. A server that starts removes the whole stream directory, consumers and all.",
			Damage: "one bit in the compressed chunk of block 1; `index.db` deleted",
			make: func(h *hall) {
				h.simple(120, 300)
				h.noIndex()
				h.whole(h.flip(h.block(1), 4321, 5))
			}},
		{name: "flipped-keys", Server: "2.14.9", kind: variant{"aes-s2", "aes", true},
			Story:  "Bits in the key files of the stream and of a block, and in the state of a consumer. Without these keys nothing can be read; a server deletes the block.",
			Damage: "one bit in each of `meta.key`, `msgs/1.key`, `obs/C/o.dat`",
			make: func(h *hall) {
				h.simple(104, 300)
				h.whole(
					h.flip(filepath.Join(h.streamDir(), "meta.key"), 20, 2),
					h.flip(filepath.Join(h.msgs(), "1.key"), 50, 7),
					h.flip(filepath.Join(h.streamDir(), "obs", "C", "o.dat"), 25, 0))
			}},
		{name: "flipped-chacha", Server: "2.15.2", kind: variant{"chacha", "chacha", false},
			Story:  "Encrypted blocks have no tag of their own: a bit of the ciphertext is a bit of a record, and its hash finds it.",
			Damage: "one bit in the record of message 30, encrypted; one in `msgs/1.key`; `index.db` deleted",
			make: func(h *hall) {
				h.simple(60, 60)
				p := h.record(1, 30)
				h.noIndex()
				h.whole(h.flip(p.file, p.from+5, 0), h.flip(filepath.Join(h.msgs(), "1.key"), 3, 3))
			}},
		{name: "erased-in-compressed", Server: "2.10.29", kind: packed,
			Story:  "`STREAM.MSG.DELETE` overwrites the message it deletes. Servers 2.10.0 to 2.11.6 do so at the offset that it has in the *decompressed* block, in the compressed file: the block cannot be read any more, and is deleted at the next scan. What was compressed in front of that place can be read.",
			Damage: "none but what the server did: message 8 of 112 was deleted with the default (erasing) request",
			make: func(h *hall) {
				var before [][]byte
				h.serve(func(f *Filler) {
					h.publish(f, 112, 300)
					for range f.pull(museum, "C", 4) {
					}
					time.Sleep(time.Second)
					before = append(before, h.plain(1))
				})
				seqs := h.sequences(1)
				file, err := os.ReadFile(h.block(1))
				must(h, err)
				h.serve(func(f *Filler) {
					// The truth is what could be read before.
					st, err := readStream(f.nc, museum)
					must(h, err)
					f.delete(museum, 8, false)
					h.truth = st
				})
				h.truth = h.before(8)
				now, err := os.ReadFile(h.block(1))
				must(h, err)
				if bytes.Equal(now, file) {
					h.Fatal("the server left the file as it was")
				}
				readable := 0
				for _, p := range parts("", before[0]) {
					if p.seq != 8 && p.to <= decodes(h, now, before[0]) {
						readable++
					}
				}
				h.expect(outcome{Exit: 1, Messages: h.live().without(seqs...), Maybe: span(seqs).without(8), AtLeast: readable, Consumer: true})
			}},
		{name: "headerless-s2", Server: "2.12.0", kind: packed,
			Story:  "Purging up to a sequence rewrites the block that it ends in. Servers 2.10.0 to 2.12.11 and 2.14.0 to 2.14.2 compress it and forget the header that says so: the next start hangs (2.12), or drops it. Everything in it is sound.",
			Damage: "none but what the server did: a purge up to sequence 200",
			make: func(h *hall) {
				h.serve(func(f *Filler) {
					// Large blocks.
					f.api("STREAM.DELETE."+museum, nil)
					f.stream(museum, Cfg{"subjects": []string{"m.>"}})
					f.consumer(museum, "C", nil)
					// The block counts as large by what it takes on disk: most of it does not compress, and goes.
					noise := make([]byte, 100_000)
					for range 76 {
						f.rng.Read(noise)
						f.one("m.0", string(noise))
					}
					for i := range 170 {
						f.one(fmt.Sprintf("m.%d", i%3), strings.Repeat(fmt.Sprintf("much of nothing, %d ", i), 250))
					}
					f.pull(museum, "C", 4)
					time.Sleep(time.Second) // a server that compressed the block itself knows that it is
					// Reading it after the purge would damage it.
					st, err := readStream(f.nc, museum)
					must(h, err)
					st.Messages = slices.DeleteFunc(st.Messages, func(m Message) bool { return m.Seq < 200 })
					h.truth = st
					f.purge(museum, Cfg{"seq": 200})
				})
				file, err := os.ReadFile(h.block(1))
				must(h, err)
				if !bytes.HasPrefix(file, []byte("\xff\x06\x00\x00S2sTwO")) {
					h.Fatalf("the block has a header: %q", file[:12])
				}
				if len(h.truth.Messages) != 47 {
					h.Fatalf("%d messages", len(h.truth.Messages))
				}
				h.expect(outcome{Messages: h.live()})
			}},
		{name: "swallowed-tombstones", Server: "2.10.29", kind: plain,
			Story:  "Erasing the last message of a block, 2.10.10 to 2.11.10 and 2.12.0 erase the tombstones behind it, too: only `index.db` knows then that those messages were deleted. Here a bit of it is flipped. A server that starts rejects it, scans, and three deleted messages are back.",
			Damage: "by the server: messages 3, 4 and 5 were deleted, then 20, the last, was erased; then one bit in `index.db`",
			make: func(h *hall) {
				h.serve(func(f *Filler) {
					h.publish(f, 20, 60)
					f.pull(museum, "C", 2)
					for _, seq := range []uint64{3, 4, 5} {
						f.delete(museum, seq, true)
					}
					f.delete(museum, 20, false)
				})
				for _, p := range parts("", h.plain(1)) {
					if p.seq>>62 == 1 && p.seq<<2>>2 != 20 {
						h.Fatalf("a tombstone is left: %x", p.seq)
					}
				}
				h.whole(h.flip(filepath.Join(h.msgs(), "index.db"), 12, 2))
			}},
		{name: "cut-by-start", Server: "2.14.9", kind: plain,
			Story:  "What a server start does to `flipped-bit`: the block is cut at the damage, and the new `index.db` says that there never was more. `original/` is the copy that was made before.",
			Damage: "`original/`: one bit in message 24, no `index.db`; `store/`: nats-server 2.14.9 was started on it once",
			make: func(h *hall) {
				h.simple(60, 60)
				truth := h.truth
				p := h.record(1, 24)
				h.noIndex()
				f := h.flip(p.file, p.from+50, 4)
				CopyTree(h, h.store, filepath.Join(h.dir, "original"))
				h.serve(func(*Filler) {})
				if n := len(h.truth.Messages); n != 23 {
					h.Fatalf("the server kept %d messages", n)
				}
				h.expect(outcome{Messages: h.live(), Consumer: false})
				h.truth = truth
				h.expect(outcome{Dir: "original", Messages: h.live(), Corrections: []flipped{f}, Consumer: true})
			}},
		{name: "cut-by-start-s2", Server: "2.12.15", kind: packed,
			Story:  "A record was damaged in memory, before its block was compressed: the chunk is sound, the record is not. 2.12.15 cuts the compressed file at the offset that the record has in the decompressed block, beyond its end: zeros follow then, and the last eight bytes, which belong to the last record, are not last any more.",
			Damage: "`original/`: block 1 decompressed, one bit of message 70 flipped, compressed again; no `index.db`; `store/`: nats-server 2.12.15 was started on it once",
			make: func(h *hall) {
				h.simple(120, 300)
				truth, seqs := h.truth, h.sequences(1)
				raw := h.plain(1)
				var at part
				for _, p := range parts("", raw) {
					if p.seq == 70 {
						at = p
					}
				}
				raw[at.from+60] ^= 1
				var packed bytes.Buffer
				packed.WriteString("cmp\x01")
				packed.Write(binary.AppendUvarint(nil, uint64(len(raw))))
				w := s2.NewWriter(&packed)
				_, err := w.Write(raw[:len(raw)-8])
				must(h, err)
				must(h, w.Close())
				packed.Write(raw[len(raw)-8:])
				must(h, os.WriteFile(h.block(1), packed.Bytes(), 0o640))
				h.noIndex()
				CopyTree(h, h.store, filepath.Join(h.dir, "original"))
				h.serve(func(*Filler) {})
				now, err := os.Stat(h.block(1))
				if err != nil || now.Size() != int64(at.from) {
					h.Fatalf("the block was not cut at %d: %v %v", at.from, now, err)
				}
				h.Logf("%d bytes were, %d are; the server has %d messages", packed.Len(), now.Size(), len(h.truth.Messages))
				h.truth = truth
				// The file was made longer, so all but the last hash is where it was; the server's new index says that there
				// is nothing behind 69, the block says otherwise.
				f := []flipped{{"jetstream/$G/streams/M/msgs/1.blk", at.from + 60, 0}}
				last := seqs[len(seqs)-1]
				h.expect(outcome{Exit: 1, Messages: h.live().without(last), Lost: ranges{{last, last}}, Corrections: f})
				h.expect(outcome{Dir: "original", Messages: h.live(), Corrections: f, Consumer: true})
			}},
		{name: "zero-tail", Server: "2.14.9", kind: plain,
			Story:  "After a power loss a file may be longer than what was written to it: the rest is zeros. What was meant to be there nobody can tell.",
			Damage: "4,096 zeros appended to the last block; `index.db` deleted",
			make: func(h *hall) {
				h.simple(40, 60)
				h.noIndex()
				file, err := os.ReadFile(h.block(1))
				must(h, err)
				must(h, os.WriteFile(h.block(1), append(file, make([]byte, 4096)...), 0o640))
				h.expect(outcome{Exit: 1, Messages: h.live(), Consumer: true})
			}},
		{name: "torn-page", Server: "2.15.2", kind: plain,
			Story:  "After a power loss a page in the middle was never written, and later ones were. A server cuts the block in front of it.",
			Damage: "bytes 4,096 to 8,191 of the block are zeros; `index.db` deleted",
			make: func(h *hall) {
				h.simple(120, 100)
				var gone []uint64
				for _, p := range parts("", h.plain(1)) {
					if p.seq>>62 == 0 && p.to > 4096 && p.from < 8192 {
						gone = append(gone, p.seq)
					}
				}
				file, err := os.ReadFile(h.block(1))
				must(h, err)
				clear(file[4096:8192])
				must(h, os.WriteFile(h.block(1), file, 0o640))
				h.noIndex()
				h.expect(outcome{Exit: 1, Messages: h.live().without(gone...), Lost: span(gone), Consumer: true})
			}},
		{name: "torn-tail", Server: "2.14.9", kind: plain,
			Story:  "The last record was written in part. It may have been acknowledged: servers do not sync each message by default.",
			Damage: "the file ends 41 bytes into the record of message 40; `index.db` deleted",
			make: func(h *hall) {
				h.simple(40, 60)
				h.noIndex()
				p := h.record(1, 40)
				must(h, os.Truncate(p.file, int64(p.from+41)))
				h.expect(outcome{Exit: 1, Messages: h.live().without(40), Lost: ranges{{40, 40}}, Consumer: true})
			}},
		{name: "stale-index", Server: "2.15.2", kind: plain,
			Story:  "The server was killed: `index.db` is the one of the last clean stop, and messages were written and deleted since.",
			Damage: "SIGKILL",
			make: func(h *hall) {
				h.simple(30, 60)
				s := StartServer(h, h.Server, h.store, h.opts())
				f := NewFiller(h, s, "$G", 4, false)
				h.publish(f, 12, 60)
				f.delete(museum, 10, true)
				f.delete(museum, 35, true)
				st, err := readStream(s.Connect("$G"), museum)
				must(h, err)
				h.truth = st
				s.Kill()
				h.whole()
			}},
		{name: "interrupted-purge", Server: "2.14.9", kind: plain,
			Story:  "A purge puts its tombstone into `__new_msgs__`, then moves `msgs` away. The power went in between: nobody was told that the purge was done, all messages are there, and the next start deletes them.",
			Damage: "the store before a purge, and `__new_msgs__` as the server makes it (the block with the tombstone that the finished purge left)",
			make: func(h *hall) {
				h.simple(40, 60)
				truth := h.truth
				before := filepath.Join(h.dir, "before")
				CopyTree(h, h.store, before)
				h.serve(func(f *Filler) { f.purge(museum, Cfg{}) })
				blocks := blockNumbers(h, h.msgs())
				last := blocks[len(blocks)-1]
				tomb, err := os.ReadFile(h.block(last))
				must(h, err)
				must(h, os.RemoveAll(h.store))
				must(h, os.Rename(before, h.store))
				must(h, os.Mkdir(filepath.Join(h.streamDir(), "__new_msgs__"), 0o750))
				must(h, os.WriteFile(blockFile(filepath.Join(h.streamDir(), "__new_msgs__"), last), tomb, 0o640))
				h.truth = truth
				h.whole()
			}},
		{name: "blk-tmp-left", Server: "2.14.9", kind: packed,
			Story:  "A server that rewrites a block writes `1.blk.tmp` and renames it. After a power loss the directory entry and the content may come apart: `1.blk` is there, and empty. A start deletes it and then the copy.",
			Damage: "block 1 copied to `1.blk.tmp`, `1.blk` cut to nothing; `index.db` deleted",
			make: func(h *hall) {
				h.simple(120, 300)
				n := len(h.sequences(1))
				file, err := os.ReadFile(h.block(1))
				must(h, err)
				must(h, os.WriteFile(h.block(1)+".tmp", file, 0o640))
				must(h, os.Truncate(h.block(1), 0))
				h.noIndex()
				h.expect(outcome{Messages: h.live(), FromLeftovers: n, Consumer: true})
			}},
		{name: "missing-block", Server: "2.14.9", kind: plain,
			Story:  "A block is gone (a file system check put it into `lost+found`). `index.db` says what was in it.",
			Damage: "`msgs/2.blk` deleted",
			make: func(h *hall) {
				h.simple(230, 300)
				gone := h.sequences(2)
				must(h, os.Remove(h.block(2)))
				h.expect(outcome{Exit: 1, Messages: h.live().without(gone...), Lost: span(gone), Consumer: true})
			}},
		{name: "renamed-block", Server: "2.15.2", kind: plain,
			Story:  "A block came back from `lost+found` under another number. The number is in the key of every hash: a server takes the whole block for damaged and deletes it.",
			Damage: "`msgs/1.blk` renamed to `msgs/1374.blk`; `index.db` deleted",
			make: func(h *hall) {
				h.simple(120, 300)
				must(h, os.Rename(h.block(1), h.block(1374)))
				h.noIndex()
				h.whole()
			}},
		{name: "no-meta-inf", Server: "2.14.9", kind: plain,
			Story:  "The configuration is gone. A server passes over the directory without a word.",
			Damage: "`meta.inf` deleted",
			make: func(h *hall) {
				h.simple(40, 60)
				must(h, os.Remove(filepath.Join(h.streamDir(), "meta.inf")))
				h.expect(outcome{Exit: 1, Messages: h.live(), Reconstructed: true, Consumer: true})
			}},
		{name: "no-meta-sum", Server: "2.15.2", kind: plain,
			Story:  "The checksum of the configuration is gone; the configuration is sound. A server passes over the directory.",
			Damage: "`meta.sum` deleted",
			make: func(h *hall) {
				h.simple(40, 60)
				must(h, os.Remove(filepath.Join(h.streamDir(), "meta.sum")))
				h.whole()
			}},
	}
}

// before is the truth without one message.
func (h *hall) before(seq uint64) *Stream {
	st := *h.truth
	st.Messages = slices.DeleteFunc(slices.Clone(st.Messages), func(m Message) bool { return m.Seq == seq })
	return &st
}

// decodes tells how much of a block that was compressed into one chunk an independent decoder gets out of what is left
// of it, by comparing with what it was.
func decodes(t testing.TB, file, was []byte) int {
	t.Helper()
	_, n := binary.Uvarint(file[4:])
	at := 4 + n + 10
	size := int(file[at+1]) + int(file[at+2])<<8 + int(file[at+3])<<16
	if file[at] != 0 {
		t.Fatalf("not a compressed chunk: %d", file[at])
	}
	got := make([]byte, len(was)+100)
	_, _ = s2.Decode(got, file[at+8:at+4+size])
	for i := range was {
		if was[i] != got[i] {
			return i
		}
	}
	return len(was)
}

// TestMakeMuseum makes fixtures/damage: small stores, each with a damage of its own, and what is to be brought back.
func TestMakeMuseum(t *testing.T) {
	out := os.Getenv("JETSAM_MUSEUM_OUT")
	if out == "" {
		t.Skip("JETSAM_MUSEUM_OUT is not set")
	}
	out, err := filepath.Abs(out)
	must(t, err)
	all := map[string]*exhibit{}
	text, err := os.ReadFile(filepath.Join(out, "expected.json"))
	if err == nil {
		must(t, json.Unmarshal(text, &all))
	}
	for _, e := range exhibits() {
		t.Run(e.name, func(t *testing.T) {
			dir := t.TempDir()
			h := &hall{T: t, exhibit: e, dir: dir, store: filepath.Join(dir, "store")}
			o := h.opts()
			e.Key, e.Cipher = o.Key, o.Cipher
			e.make(h)
			// As text, in which xz finds again what is in the blocks.
			var texts []map[string]any
			for _, m := range h.truth.Messages {
				texts = append(texts, map[string]any{"seq": m.Seq, "subject": m.Subject, "time": m.Time, "hdrs": string(m.Header), "data": string(m.Data)})
			}
			b, err := json.Marshal(map[string]any{"messages": texts, "consumers": h.truth.Consumers, "config": h.truth.Config, "created": h.truth.Created})
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, "truth.json"), b, 0o644))
			archive := filepath.Join(out, e.name+".tar.xz")
			members := []string{"store", "truth.json"}
			if exists(filepath.Join(dir, "original")) {
				members = append(members, "original")
			}
			cmd := exec.Command("tar", append([]string{"--owner=0", "--group=0", "--sort=name", "-I", "xz -9e", "-cf", archive}, members...)...)
			cmd.Dir = dir
			if msg, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("tar: %v\n%s", err, msg)
			}
			info, err := os.Stat(archive)
			must(t, err)
			if info.Size() > 20_000 {
				t.Errorf("%d bytes", info.Size())
			}
			all[e.name] = e
		})
	}
	must(t, os.WriteFile(filepath.Join(out, "README.md"), []byte(readme(all)), 0o644))
	b, err := json.MarshalIndent(all, "", " ")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(out, "expected.json"), append(b, '\n'), 0o644))
}

func readme(all map[string]*exhibit) string {
	b := &strings.Builder{}
	b.WriteString(`# A museum of damage

Small stores of real servers, each with a damage of its own. Every archive has the stream ` + "`M`" + ` (with a consumer ` + "`C`" + `) in ` + "`store/`" + `, in
two cases the copy that was made before a server was started in ` + "`original/`" + `, and in ` + "`truth.json`" + ` what the server held before
the damage, by its own API. ` + "`expected.json`" + ` says what has to come back, which sequences have to be reported as lost, and
which bits as corrected; it comes from the making of the damage, not from what jetsam says. ` + "`cargo test --test museum`" + `
compares; ` + "`JETSAM_MUSEUM_OUT=../../fixtures/damage go test -run TestMakeMuseum`" + ` in ` + "`tests/live`" + ` makes them anew.
`)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		e := all[name]
		how := "plain"
		if e.Key != "" {
			how = "encrypted (" + e.Cipher + ")"
		}
		fmt.Fprintf(b, "\n## %s\n\n%s\n\nnats-server %s, %s. Damage: %s.\n\n", name, e.Story, e.Server, how, e.Damage)
		for _, o := range e.Outcomes {
			fmt.Fprintf(b, "Salvage of `%s/`: messages %s", o.Dir, o.Messages)
			if len(o.Maybe) > 0 {
				fmt.Fprintf(b, ", and at least %d of %s", o.AtLeast, o.Maybe)
			}
			switch {
			case o.Exit < 0:
			case len(o.Lost) > 0:
				fmt.Fprintf(b, "; lost: %s", o.Lost)
			case len(o.Maybe) > 0:
				b.WriteString("; the others of them are reported as lost")
			default:
				b.WriteString("; nothing is reported as lost")
			}
			if n := len(o.Corrections); n > 0 {
				fmt.Fprintf(b, "; corrected bits: %d", n)
			}
			if o.FromLeftovers > 0 {
				fmt.Fprintf(b, "; from left-overs: %d", o.FromLeftovers)
			}
			if o.Reconstructed {
				b.WriteString("; the configuration is reconstructed")
			}
			b.WriteString(".\n")
		}
	}
	return b.String()
}

func (r ranges) String() string {
	if len(r) == 0 {
		return "none"
	}
	var all []string
	for _, x := range r {
		if x[0] == x[1] {
			all = append(all, fmt.Sprint(x[0]))
		} else {
			all = append(all, fmt.Sprintf("%d–%d", x[0], x[1]))
		}
	}
	return strings.Join(all, ", ")
}
