package live

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats.go"
	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/chacha20poly1305"
)

// Made is a store that a real server wrote and left, and what it held.
type Made struct {
	Version Version
	Opts    Options
	Dir     string
	Truth   Truth
}

// damaged is the stream that the tests of damage make.
const damaged = "SALV"

// MakeStore has a server write messages of about size bytes into one stream, with two consumers, and stops it.
// Small blocks are of 32 kB, as those of a stream with a small max_bytes.
func MakeStore(t testing.TB, v Version, dir string, kind variant, messages, size int, small bool) *Made {
	t.Helper()
	o := kind.options()
	s := StartServer(t, v, dir, o)
	f := NewFiller(t, s, "$G", 11, kind.compress)
	// At a start servers read what is younger than the window for duplicates, and 2.14 and 2.15 spin there for ever if it
	// cannot be decompressed.
	config := Cfg{"subjects": []string{"salv.>"}, "allow_direct": true, "duplicate_window": 100 * time.Millisecond}
	if small {
		// The size of blocks stays what it was at the creation.
		config["max_bytes"] = 120_000
		f.stream(damaged, config)
		config["max_bytes"] = -1
		f.api("STREAM.UPDATE."+damaged, f.config(damaged, config))
	} else {
		f.stream(damaged, config)
	}
	f.consumer(damaged, "WORK", Cfg{"max_ack_pending": 10_000})
	f.consumer(damaged, "ALL", Cfg{"ack_policy": "all", "filter_subject": "salv.1.>"})
	js, err := f.nc.JetStream(nats.PublishAsyncMaxPending(2000))
	must(t, err)
	words := make([]string, 3000)
	for i := range words {
		words[i] = strconv.FormatUint(f.rng.Uint64()>>36, 36)
	}
	for i := range messages {
		m := &nats.Msg{Subject: fmt.Sprintf("salv.%d.%s", i%7, words[f.rng.Intn(200)])}
		if i%5 == 0 {
			m.Header = nats.Header{"X-Of": {strconv.Itoa(i)}}
		}
		n := size - 40 + f.rng.Intn(81)
		m.Data = fmt.Appendf(nil, `{"id":%d`, i)
		for len(m.Data) < n {
			m.Data = fmt.Appendf(m.Data, `,"%s":"%s"`, words[f.rng.Intn(50)], words[f.rng.Intn(len(words))])
		}
		_, err := js.PublishMsgAsync(m, nats.StallWait(30*time.Second))
		must(t, err)
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(2 * time.Minute):
		t.Fatal("publishing hangs")
	}
	f.use(damaged, "WORK", messages/10)
	f.ackAll(damaged, "ALL", messages/20)
	time.Sleep(700 * time.Millisecond) // compression happens aside
	made := &Made{v, o, dir, ReadQuickly(t, s)}
	s.Stop()
	return made
}

// ReadQuickly is the truth of the stream [damaged] in $G, its messages read through a consumer.
func ReadQuickly(t testing.TB, s *Server) Truth {
	t.Helper()
	nc := s.Connect("$G")
	st := &Stream{Consumers: map[string]*Consumer{}}
	must(t, API(nc, "STREAM.INFO."+damaged, Cfg{"deleted_details": true}, st))
	var page struct {
		Consumers []*Consumer `json:"consumers"`
	}
	must(t, API(nc, "CONSUMER.LIST."+damaged, nil, &page))
	for _, c := range page.Consumers {
		st.Consumers[c.Name] = c
	}
	var err error
	st.Messages, err = consume(nc, damaged, 15*time.Second)
	must(t, err)
	return Truth{"$G": {damaged: st}}
}

// consume reads a stream as an application does, and tells what it got if no more comes.
func consume(nc *nats.Conn, stream string, wait time.Duration) (all []Message, err error) {
	var info Stream
	if err := API(nc, "STREAM.INFO."+stream, nil, &info); err != nil || info.State.Messages == 0 {
		return nil, err
	}
	js, err := nc.JetStream(nats.MaxWait(wait))
	if err != nil {
		return nil, err
	}
	sub, err := js.SubscribeSync("", nats.BindStream(stream), nats.OrderedConsumer())
	if err != nil {
		return nil, err
	}
	defer sub.Unsubscribe()
	for {
		m, err := sub.NextMsg(wait)
		if err != nil {
			return all, err
		}
		about, err := m.Metadata()
		if err != nil {
			return all, err
		}
		got := Message{Seq: about.Sequence.Stream, Subject: m.Subject, Time: about.Timestamp.UTC(), Data: m.Data}
		if len(m.Header) > 0 {
			b := bytes.NewBufferString("NATS/1.0\r\n")
			if err := http.Header(m.Header).Write(b); err != nil {
				return all, err
			}
			got.Header = append(b.Bytes(), "\r\n"...)
		}
		all = append(all, got)
		if about.NumPending == 0 {
			return all, nil
		}
	}
}

// msgsDir is the directory of the stream's blocks in a store.
func msgsDir(store string) string {
	return filepath.Join(store, "jetstream", "$G", "streams", damaged, "msgs")
}

// blockNumbers of a directory, ascending.
func blockNumbers(t testing.TB, msgs string) (all []int) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(msgs, "*.blk"))
	must(t, err)
	for _, name := range names {
		n, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(name), ".blk"))
		must(t, err)
		all = append(all, n)
	}
	slices.Sort(all)
	return all
}

func blockFile(msgs string, n int) string { return filepath.Join(msgs, fmt.Sprint(n)+".blk") }

// decrypted gives a block as it was before it was encrypted, by the server's rules.
func decrypted(t testing.TB, o Options, account, stream, msgs string, n int) []byte {
	t.Helper()
	block, err := os.ReadFile(blockFile(msgs, n))
	must(t, err)
	sealed, err := os.ReadFile(filepath.Join(msgs, fmt.Sprint(n)+".key"))
	if os.IsNotExist(err) {
		return block
	}
	must(t, err)
	mac := hmac.New(sha256.New, []byte(o.Key))
	fmt.Fprintf(mac, "%s%s:%d", account, stream, n)
	kek := mac.Sum(nil)
	var aead cipher.AEAD
	if o.Cipher == "aes" {
		b, err := aes.NewCipher(kek)
		must(t, err)
		aead, err = cipher.NewGCMWithNonceSize(b, 16)
		must(t, err)
	} else {
		aead, err = chacha20poly1305.NewX(kek)
		must(t, err)
	}
	nonce := sealed[:aead.NonceSize()]
	seed, err := aead.Open(nil, nonce, sealed[len(nonce):], nil)
	must(t, err)
	var stretch cipher.Stream
	if o.Cipher == "aes" {
		b, err := aes.NewCipher(seed)
		must(t, err)
		stretch = cipher.NewCTR(b, nonce)
	} else {
		stretch, err = chacha20.NewUnauthenticatedCipher(seed, nonce)
		must(t, err)
	}
	stretch.XORKeyStream(block, block)
	return block
}

// part is a stretch of a file of which one flipped bit can be found: a record, or a compressed chunk.
type part struct {
	file     string
	from, to int
	seq      uint64 // of a record
	spare    bool   // leave its length of the subject alone
}

// parts of a block. Encryption does not move anything.
func parts(file string, plain []byte) (all []part) {
	if bytes.HasPrefix(plain, []byte("cmp\x01")) {
		_, n := binary.Uvarint(plain[4:])
		for at := 4 + n; at+4 <= len(plain)-8; {
			size := 4 + int(plain[at+1]) + int(plain[at+2])<<8 + int(plain[at+3])<<16
			if plain[at] <= 1 {
				all = append(all, part{file: file, from: at, to: at + size})
			}
			at += size
		}
		return all
	}
	for at := 0; at+30 <= len(plain); {
		size := int(binary.LittleEndian.Uint32(plain[at:]) &^ (1 << 31))
		all = append(all, part{file: file, from: at, to: at + size, seq: binary.LittleEndian.Uint64(plain[at+4:])})
		at += size
	}
	return all
}

// allParts of a stream's blocks.
func (m *Made) allParts(t testing.TB, store string) (all []part) {
	t.Helper()
	msgs := msgsDir(store)
	for _, n := range blockNumbers(t, msgs) {
		all = append(all, parts(blockFile(msgs, n), decrypted(t, m.Opts, "$G", damaged, msgs, n))...)
	}
	return all
}

// flipped is a bit that was flipped.
type flipped struct {
	File   string `json:"file"`
	Offset int    `json:"offset"`
	Bit    int    `json:"bit"`
}

func (f flipped) String() string {
	return fmt.Sprintf("%s@%d.%d", filepath.Base(f.File), f.Offset, f.Bit)
}

// flip flips a bit of a file.
func flip(t testing.TB, file string, at, bit int) flipped {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, int64(at))
	must(t, err)
	b[0] ^= 1 << bit
	_, err = f.WriteAt(b, int64(at))
	must(t, err)
	return flipped{file, at, bit}
}

// flipBits flips n random single bits, each in a part of its own; fewer where there are fewer parts.
func flipBits(t testing.TB, rng *rand.Rand, all []part, n int) (done []flipped) {
	t.Helper()
	for _, i := range rng.Perm(len(all))[:min(n, len(all))] {
		p := all[i]
		at := p.from + rng.Intn(p.to-p.from)
		if p.spare && (at == p.from+20 || at == p.from+21) {
			at = p.to - 1
		}
		done = append(done, flip(t, p.file, at, rng.Intn(8)))
	}
	return done
}

func removeIndex(t testing.TB, store string) {
	t.Helper()
	must(t, os.Remove(filepath.Join(msgsDir(store), "index.db")))
}

// inflated gives the records of a block that may be compressed.
func inflated(t testing.TB, block []byte) []byte {
	t.Helper()
	if !bytes.HasPrefix(block, []byte("cmp\x01")) {
		return block
	}
	_, n := binary.Uvarint(block[4:])
	end := len(block) - 8
	raw, err := io.ReadAll(s2.NewReader(bytes.NewReader(block[4+n : end])))
	must(t, err)
	return append(raw, block[end:]...)
}
