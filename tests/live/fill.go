package live

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// Filler uses a server as clients do. Everything random comes from rng.
type Filler struct {
	t        testing.TB
	nc       *nats.Conn
	v        Version
	rng      *rand.Rand
	compress bool
	// Updated names the streams whose configuration was changed in a later run than the one that made them.
	Updated map[string]bool
}

// Cfg is a stream's or consumer's configuration.
type Cfg = map[string]any

// NewFiller makes a filler for an account of a running server.
func NewFiller(t testing.TB, s *Server, account string, seed int64, compress bool) *Filler {
	return &Filler{t: t, nc: s.Connect(account), v: s.Version, rng: rand.New(rand.NewSource(seed)), compress: compress, Updated: map[string]bool{}}
}

func (f *Filler) api(subject string, body any) {
	f.t.Helper()
	if err := API(f.nc, subject, body, nil); err != nil {
		f.t.Fatalf("%s: %v", f.v, err)
	}
}

func (f *Filler) exists(stream string) bool { return API(f.nc, "STREAM.INFO."+stream, nil, nil) == nil }

func (f *Filler) config(name string, c Cfg) Cfg {
	full := Cfg{
		"name": name, "retention": "limits", "storage": "file", "num_replicas": 1, "discard": "old", "max_consumers": -1,
		"max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msg_size": -1, "max_msgs_per_subject": -1, "duplicate_window": 2 * time.Minute,
	}
	if _, ok := c["mirror"]; ok {
		delete(full, "duplicate_window")
	}
	if f.compress && !f.v.Before(2, 10, 0) {
		full["compression"] = "s2"
	}
	for k, v := range c {
		full[k] = v
	}
	return full
}

func (f *Filler) stream(name string, c Cfg) {
	f.t.Helper()
	f.api("STREAM.CREATE."+name, f.config(name, c))
}

func (f *Filler) consumer(stream, name string, c Cfg) {
	f.t.Helper()
	full := Cfg{"durable_name": name, "ack_policy": "explicit", "deliver_policy": "all", "replay_policy": "instant", "ack_wait": time.Hour, "max_deliver": -1}
	for k, v := range c {
		full[k] = v
	}
	f.api("CONSUMER.DURABLE.CREATE."+stream+"."+name, Cfg{"stream_name": stream, "config": full})
}

func (f *Filler) payload(lo, hi int) []byte {
	n := lo + f.rng.Intn(hi-lo+1)
	switch f.rng.Intn(10) {
	case 0:
		return nil
	case 1, 2, 3, 4: // compresses well
		b := []byte(fmt.Sprintf(`{"id":%d,"note":"`, f.rng.Intn(1e6)))
		for len(b) < n {
			b = append(b, "lorem ipsum "[f.rng.Intn(6):]...)
		}
		return b
	default:
		b := make([]byte, n)
		f.rng.Read(b)
		return b
	}
}

// Pub is one message to publish; refused tells that the server may say no.
type Pub struct {
	Subject string
	Data    []byte
	Header  nats.Header
}

// publish sends all and waits for each answer, which must be good unless mayFail.
func (f *Filler) publish(mayFail bool, pubs ...Pub) {
	f.t.Helper()
	inbox := nats.NewInbox()
	sub, err := f.nc.SubscribeSync(inbox)
	must(f.t, err)
	defer sub.Unsubscribe()
	must(f.t, sub.SetPendingLimits(-1, -1))
	for got, sent := 0, 0; got < len(pubs); {
		for ; sent < len(pubs) && sent-got < 256; sent++ {
			p := pubs[sent]
			must(f.t, f.nc.PublishMsg(&nats.Msg{Subject: p.Subject, Reply: inbox, Data: p.Data, Header: p.Header}))
		}
		m, err := sub.NextMsg(15 * time.Second)
		if err != nil {
			f.t.Fatalf("%s: publish to %s: %v", f.v, pubs[0].Subject, err)
		}
		got++
		var ack struct {
			Error *APIError `json:"error"`
		}
		_ = json.Unmarshal(m.Data, &ack)
		if !mayFail && (ack.Error != nil || m.Header.Get("Status") != "") {
			f.t.Fatalf("%s: publish to %s: %v %v", f.v, pubs[0].Subject, ack.Error, m.Header)
		}
	}
}

func (f *Filler) some(n int, subject func(i int) string, lo, hi int) {
	f.t.Helper()
	pubs := make([]Pub, n)
	for i := range pubs {
		pubs[i] = Pub{Subject: subject(i), Data: f.payload(lo, hi)}
		if f.rng.Intn(4) == 0 {
			pubs[i].Header = nats.Header{"X-N": {fmt.Sprint(i)}, "X-Größe": {"ünï"}}
		}
		if f.rng.Intn(6) == 0 {
			pubs[i].Header = nats.Header{"Nats-Msg-Id": {fmt.Sprintf("%s-%d-%d", pubs[i].Subject, i, f.rng.Int63())}}
		}
	}
	f.publish(false, pubs...)
}

func (f *Filler) one(subject string, data string, header ...string) {
	f.t.Helper()
	p := Pub{Subject: subject, Data: []byte(data)}
	for i := 0; i+1 < len(header); i += 2 {
		if p.Header == nil {
			p.Header = nats.Header{}
		}
		p.Header.Add(header[i], header[i+1])
	}
	f.publish(false, p)
}

// delete removes a message, with or without overwriting it; one that is gone already is fine.
func (f *Filler) delete(stream string, seq uint64, noErase bool) {
	f.t.Helper()
	err := API(f.nc, "STREAM.MSG.DELETE."+stream, Cfg{"seq": seq, "no_erase": noErase}, nil)
	var api *APIError
	if err != nil && !(errors.As(err, &api) && (api.ErrCode == 10043 || api.ErrCode == 10057)) {
		f.t.Fatalf("%s: %v", f.v, err)
	}
}

func (f *Filler) deleteSome(stream string, n int) {
	f.t.Helper()
	var info struct {
		State State `json:"state"`
	}
	must(f.t, API(f.nc, "STREAM.INFO."+stream, nil, &info))
	span := int64(info.State.LastSeq-info.State.FirstSeq) + 1
	// 2.10.0–2.11.6 erase a message of a compressed block by writing plain bytes over compressed ones, which destroys
	// the block: that is a store for salvage, not a healthy one.
	mustKeep := f.compress && !f.v.Before(2, 10, 0) && f.v.Before(2, 11, 7)
	for i := 0; i < n && span > 0; i++ {
		f.delete(stream, info.State.FirstSeq+uint64(f.rng.Int63n(span)), mustKeep || f.rng.Intn(2) == 0)
	}
}

func (f *Filler) purge(stream string, how Cfg) { f.t.Helper(); f.api("STREAM.PURGE."+stream, how) }

// pull takes up to n messages without acknowledging them.
func (f *Filler) pull(stream, consumer string, n int) []*nats.Msg {
	f.t.Helper()
	inbox := nats.NewInbox()
	sub, err := f.nc.SubscribeSync(inbox)
	must(f.t, err)
	defer sub.Unsubscribe()
	body, _ := json.Marshal(Cfg{"batch": n, "no_wait": true})
	must(f.t, f.nc.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+stream+"."+consumer, inbox, body))
	var out []*nats.Msg
	for len(out) < n {
		m, err := sub.NextMsg(2 * time.Second)
		if err != nil || m.Header.Get("Status") != "" {
			break
		}
		out = append(out, m)
	}
	return out
}

func (f *Filler) ack(m *nats.Msg) {
	f.t.Helper()
	if _, err := f.nc.Request(m.Reply, nil, 10*time.Second); err != nil {
		f.t.Fatalf("%s: ack: %v", f.v, err)
	}
}

// use pulls, acknowledges some and refuses some.
func (f *Filler) use(stream, consumer string, n int) {
	f.t.Helper()
	for _, m := range f.pull(stream, consumer, n) {
		switch f.rng.Intn(8) {
		case 0: // leave pending
		case 1:
			must(f.t, f.nc.Publish(m.Reply, []byte("-NAK")))
		case 2:
			must(f.t, f.nc.Publish(m.Reply, []byte("+TERM")))
		default:
			f.ack(m)
		}
	}
	must(f.t, f.nc.Flush())
}

// ackAll pulls n and acknowledges up to one of them.
func (f *Filler) ackAll(stream, consumer string, n int) {
	f.t.Helper()
	if ms := f.pull(stream, consumer, n); len(ms) > 0 {
		f.ack(ms[f.rng.Intn(len(ms))])
	}
}

// push lets a push consumer deliver n messages, of which half are acknowledged.
func (f *Filler) push(deliver string, n int) {
	f.t.Helper()
	sub, err := f.nc.SubscribeSync(deliver)
	must(f.t, err)
	must(f.t, f.nc.Flush())
	for i := 0; i < n; i++ {
		m, err := sub.NextMsg(time.Second)
		if err != nil {
			break
		}
		if m.Header.Get("Status") == "" && i%2 == 0 {
			f.ack(m)
		}
	}
	must(f.t, sub.Unsubscribe())
	must(f.t, f.nc.Flush())
}

func tokens(prefix string, n int) func(int) string {
	return func(i int) string { return fmt.Sprintf("%s.%d", prefix, i%n) }
}

// Create makes every kind of stream that this version knows and uses it a first time.
func (f *Filler) Create() {
	f.t.Helper()
	// Limits retention with everything that removes, and consumers of each kind.
	f.stream("ORD", Cfg{"subjects": []string{"ord.>"}, "description": "orders <of> the shop & \"more\""})
	f.consumer("ORD", "PULL", Cfg{"description": "a pull consumer", "filter_subject": "ord.1"})
	f.consumer("ORD", "ALL", Cfg{"ack_policy": "all", "max_ack_pending": 500})
	f.consumer("ORD", "NONE", Cfg{"ack_policy": "none"})
	f.consumer("ORD", "START", Cfg{"deliver_policy": "by_start_sequence", "opt_start_seq": 20})
	f.consumer("ORD", "LAST", Cfg{"deliver_policy": "last_per_subject", "filter_subject": "ord.>"})
	f.consumer("ORD", "PUSH", Cfg{"deliver_subject": "push.ord", "max_ack_pending": 20, "idle_heartbeat": 5 * time.Second, "flow_control": true})
	f.consumer("ORD", "BACKOFF", Cfg{"max_deliver": 5, "backoff": []time.Duration{time.Hour, 2 * time.Hour}, "headers_only": true})
	if !f.v.Before(2, 10, 0) {
		f.consumer("ORD", "MULTI", Cfg{"filter_subjects": []string{"ord.2", "ord.3"}, "metadata": Cfg{"team": "a"}})
	}
	if !f.v.Before(2, 11, 0) {
		f.consumer("ORD", "PAUSED", Cfg{"pause_until": "2099-01-01T00:00:00Z"})
		f.consumer("ORD", "PRIO", Cfg{"priority_groups": []string{"g"}, "priority_policy": "overflow"})
	}
	// Small blocks.
	f.stream("BLK", Cfg{"subjects": []string{"blk.>"}, "max_bytes": 120_000})
	f.consumer("BLK", "C", nil)
	// Purged in each way.
	f.stream("PU_ALL", Cfg{"subjects": []string{"pua"}})
	f.stream("PU_MORE", Cfg{"subjects": []string{"pum.*"}})
	f.stream("PU_SEQ", Cfg{"subjects": []string{"pus.*"}})
	f.stream("PU_KEEP", Cfg{"subjects": []string{"puk.*"}})
	f.stream("PU_SUB", Cfg{"subjects": []string{"puf.*"}})
	f.stream("EMPTY", Cfg{"subjects": []string{"empty"}})
	f.stream("DEL_ALL", Cfg{"subjects": []string{"da.*"}})
	f.stream("ROLL", Cfg{"subjects": []string{"roll.*"}, "allow_rollup_hdrs": true})
	// Limits.
	f.stream("PSL", Cfg{"subjects": []string{"psl.*"}, "max_msgs_per_subject": 2})
	f.stream("MAXM", Cfg{"subjects": []string{"maxm.*"}, "max_msgs": 37})
	f.stream("MAXB", Cfg{"subjects": []string{"maxb.*"}, "max_bytes": 9000})
	f.stream("NEW", Cfg{"subjects": []string{"new.*"}, "max_msgs": 10, "discard": "new"})
	f.stream("NEWSUB", Cfg{"subjects": []string{"newsub.*"}, "max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": true})
	f.stream("AGE", Cfg{"subjects": []string{"age"}, "max_age": time.Hour})
	f.stream("SHORT", Cfg{"subjects": []string{"short"}, "max_age": time.Second, "duplicate_window": time.Second})
	// Retention.
	f.stream("WQ", Cfg{"subjects": []string{"wq.*"}, "retention": "workqueue"})
	f.consumer("WQ", "W", nil)
	f.stream("INT", Cfg{"subjects": []string{"int.*"}, "retention": "interest"})
	f.consumer("INT", "A", nil)
	f.consumer("INT", "B", Cfg{"filter_subject": "int.1"})
	f.stream("NOINT", Cfg{"subjects": []string{"noint"}, "retention": "interest"})
	// Changed while in use, and odd names.
	f.stream("UPD", Cfg{"subjects": []string{"upd.>"}})
	f.stream("Ünï-côdé_日本", Cfg{"subjects": []string{"uni.>"}})
	f.consumer("Ünï-côdé_日本", "чтец", nil)
	// Streams of streams.
	f.stream("MIRROR", Cfg{"mirror": Cfg{"name": "ORD"}})
	f.stream("SOURCED", Cfg{"sources": []Cfg{{"name": "ORD", "filter_subject": "ord.2"}, {"name": "MAXM"}}})
	if !f.v.Before(2, 10, 0) {
		f.stream("FIRST", Cfg{"subjects": []string{"first"}, "first_seq": 5000, "metadata": Cfg{"k": "v"}})
		f.stream("TRANSF", Cfg{"subjects": []string{"tr.*"}, "subject_transform": Cfg{"src": "tr.*", "dest": "tr.x.{{wildcard(1)}}"}})
	}
	f.New()
	f.Objects()
	f.Use()
}

// New makes the streams that only this version knows; an upgraded store calls it again.
func (f *Filler) New() {
	f.t.Helper()
	if !f.v.Before(2, 11, 0) && !f.exists("TTL") {
		f.stream("TTL", Cfg{"subjects": []string{"ttl.>"}, "allow_msg_ttl": true, "subject_delete_marker_ttl": time.Hour, "allow_rollup_hdrs": true})
	}
	if !f.v.Before(2, 12, 0) && !f.exists("COUNT") {
		f.stream("COUNT", Cfg{"subjects": []string{"cnt.*"}, "allow_msg_counter": true, "allow_direct": true})
		f.stream("SCHED", Cfg{"subjects": []string{"sched.*", "due.*"}, "allow_msg_schedules": true, "allow_msg_ttl": true})
		f.stream("BATCH", Cfg{"subjects": []string{"batch.*"}, "allow_atomic": true})
	}
}

// Objects makes or changes a key-value bucket and an object store.
func (f *Filler) Objects() {
	f.t.Helper()
	js, err := f.nc.JetStream(nats.MaxWait(10 * time.Second))
	must(f.t, err)
	kv, err := js.KeyValue("conf")
	if err != nil {
		kv, err = js.CreateKeyValue(&nats.KeyValueConfig{Bucket: "conf", History: 3})
		must(f.t, err)
	}
	for i := 0; i < 40; i++ {
		_, err := kv.Put(fmt.Sprintf("app.%d.x", f.rng.Intn(12)), f.payload(1, 60))
		must(f.t, err)
	}
	must(f.t, kv.Delete("app.1.x"))
	must(f.t, kv.Purge("app.2.x"))
	obs, err := js.ObjectStore("files")
	if err != nil {
		obs, err = js.CreateObjectStore(&nats.ObjectStoreConfig{Bucket: "files"})
		must(f.t, err)
	}
	big := make([]byte, 150_000)
	f.rng.Read(big)
	for i, name := range []string{"a/big.bin", "small.txt", "gone"} {
		data := big
		if i > 0 {
			data = big[:300]
		}
		_, err := obs.PutBytes(name, data)
		must(f.t, err)
	}
	must(f.t, obs.Delete("gone"))
}

// Use publishes, consumes, deletes and purges in every stream there is.
func (f *Filler) Use() {
	f.t.Helper()
	f.some(1, func(int) string { return "short" }, 10, 10) // expires while the rest goes on
	f.some(150, tokens("ord", 7), 0, 300)
	f.use("ORD", "PULL", 15)
	f.use("ORD", "PULL", 5)
	f.ackAll("ORD", "ALL", 30)
	f.pull("ORD", "NONE", 9)
	f.use("ORD", "LAST", 4)
	f.use("ORD", "BACKOFF", 6)
	if !f.v.Before(2, 10, 0) && API(f.nc, "CONSUMER.INFO.ORD.MULTI", nil, nil) == nil {
		f.use("ORD", "MULTI", 8)
	}
	f.push("push.ord", 12)
	f.deleteSome("ORD", 20)
	f.purge("ORD", Cfg{"filter": "ord.5", "keep": 3})

	f.some(260, func(i int) string { return fmt.Sprintf("blk.%d.%d", i%5, f.rng.Intn(3)) }, 200, 500)
	f.use("BLK", "C", 25)
	f.deleteSome("BLK", 25)
	f.purge("BLK", Cfg{"filter": "blk.3.>"})

	f.some(30, func(int) string { return "pua" }, 0, 60)
	f.purge("PU_ALL", Cfg{})
	f.some(30, tokens("pum", 3), 0, 60)
	f.purge("PU_MORE", Cfg{})
	f.some(8, tokens("pum", 3), 0, 60)
	f.some(40, tokens("pus", 3), 0, 60)
	f.purge("PU_SEQ", Cfg{"seq": f.last("PU_SEQ") - 12})
	f.some(40, tokens("puk", 3), 0, 60)
	f.purge("PU_KEEP", Cfg{"keep": 11})
	f.some(40, tokens("puf", 4), 0, 60)
	f.purge("PU_SUB", Cfg{"filter": "puf.2"})
	f.some(6, tokens("da", 2), 0, 60)
	for seq := f.last("DEL_ALL"); seq > 0 && seq+8 > f.last("DEL_ALL"); seq-- {
		f.delete("DEL_ALL", seq, seq%2 == 0)
	}
	f.some(25, tokens("roll", 4), 0, 60)
	f.one("roll.1", "rolled up", "Nats-Rollup", "sub")
	if f.rng.Intn(2) == 0 {
		f.one("roll.2", "all rolled up", "Nats-Rollup", "all")
		f.some(4, tokens("roll", 4), 0, 60)
	}
	f.some(60, func(int) string { return fmt.Sprintf("psl.%d", f.rng.Intn(9)) }, 0, 80)
	f.some(90, tokens("maxm", 5), 0, 80)
	f.some(90, tokens("maxb", 5), 20, 300)
	for i := 0; i < 14; i++ {
		f.publish(true, Pub{Subject: tokens("new", 3)(i), Data: f.payload(0, 40)}, Pub{Subject: tokens("newsub", 6)(i), Data: f.payload(0, 40)})
	}
	f.some(20, func(int) string { return "age" }, 0, 60)
	f.some(40, tokens("wq", 4), 0, 80)
	f.use("WQ", "W", 25)
	f.some(40, tokens("int", 3), 0, 80)
	f.use("INT", "A", 22)
	f.use("INT", "B", 9)
	f.some(7, func(int) string { return "noint" }, 0, 20)

	f.some(12, tokens("upd", 3), 0, 60)
	f.Updated["UPD"] = true
	update := Cfg{"subjects": []string{"upd.>", "upd2"}, "max_msgs": 50 + f.rng.Intn(10), "description": fmt.Sprintf("change %d", f.rng.Int())}
	if !f.v.Before(2, 10, 0) {
		update["compression"] = []string{"none", "s2"}[f.rng.Intn(2)]
	}
	f.api("STREAM.UPDATE.UPD", f.config("UPD", update))
	f.some(60, tokens("upd", 3), 0, 60)
	f.one("upd2", "of the second subject")

	f.some(20, tokens("uni.größe", 3), 0, 60)
	f.use("Ünï-côdé_日本", "чтец", 7)
	if f.exists("FIRST") {
		f.some(9, func(int) string { return "first" }, 0, 60)
		f.some(9, tokens("tr", 3), 0, 60)
	}
	if f.exists("TTL") {
		for i := 0; i < 20; i++ {
			ttl := []string{"1h", "never", "30m"}[i%3]
			f.one(fmt.Sprintf("ttl.%d", i%7), "with a time to live", "Nats-TTL", ttl)
		}
		f.one("ttl.short", "goes at once", "Nats-TTL", "1s")
	}
	if f.exists("COUNT") {
		for i := 0; i < 12; i++ {
			f.one(fmt.Sprintf("cnt.%d", i%3), "", "Nats-Incr", fmt.Sprintf("+%d", i))
		}
		for i := 0; i < 3; i++ {
			f.one(fmt.Sprintf("sched.%d", i), "later", "Nats-Schedule", fmt.Sprintf("@at 2099-01-01T00:00:0%dZ", i), "Nats-Schedule-Target", fmt.Sprintf("due.%d", i))
		}
		f.batch(5)
	}
	f.settle()
}

// batch publishes an atomic batch, and the start of one that is never committed.
func (f *Filler) batch(n int) {
	f.t.Helper()
	id := fmt.Sprintf("b%d", f.rng.Int63())
	for i := 1; i <= n; i++ {
		h := nats.Header{"Nats-Batch-Id": {id}, "Nats-Batch-Sequence": {fmt.Sprint(i)}}
		if i == n {
			h.Set("Nats-Batch-Commit", "1")
		}
		m := &nats.Msg{Subject: fmt.Sprintf("batch.%d", i), Data: []byte("of a batch"), Header: h}
		if i > 1 && i < n {
			must(f.t, f.nc.PublishMsg(m))
			continue
		}
		r, err := f.nc.RequestMsg(m, 5*time.Second)
		must(f.t, err)
		if strings.Contains(string(r.Data), `"error"`) {
			f.t.Fatalf("%s: batch: %s", f.v, r.Data)
		}
	}
	half := &nats.Msg{Subject: "batch.x", Data: []byte("half"), Header: nats.Header{"Nats-Batch-Id": {id + "h"}, "Nats-Batch-Sequence": {"1"}}}
	_, err := f.nc.RequestMsg(half, 5*time.Second)
	must(f.t, err)
}

func (f *Filler) last(stream string) uint64 {
	f.t.Helper()
	var info struct {
		State State `json:"state"`
	}
	must(f.t, API(f.nc, "STREAM.INFO."+stream, nil, &info))
	return info.State.LastSeq
}

// settle waits until mirrors and sources have caught up, what expires within a second is gone, and nothing moves.
func (f *Filler) settle() {
	f.t.Helper()
	time.Sleep(1200 * time.Millisecond)
	last := ""
	for deadline := time.Now().Add(20 * time.Second); ; {
		now := &strings.Builder{}
		for _, stream := range []string{"MIRROR", "SOURCED", "TTL", "SHORT", "WQ", "INT"} {
			var info struct {
				State   State                  `json:"state"`
				Mirror  *struct{ Lag uint64 }  `json:"mirror"`
				Sources []struct{ Lag uint64 } `json:"sources"`
			}
			if API(f.nc, "STREAM.INFO."+stream, nil, &info) == nil {
				fmt.Fprintf(now, "%s %d %d %d;", stream, info.State.Messages, info.State.FirstSeq, info.State.LastSeq)
				if stream == "SHORT" && info.State.Messages > 0 || info.Mirror != nil && info.Mirror.Lag > 0 {
					fmt.Fprint(now, time.Now()) // not yet
				}
				for _, s := range info.Sources {
					if s.Lag > 0 {
						fmt.Fprint(now, time.Now())
					}
				}
			}
		}
		if now.String() == last {
			return
		}
		if time.Now().After(deadline) {
			f.t.Logf("%s: does not settle: %s", f.v, now)
			return
		}
		last = now.String()
		time.Sleep(300 * time.Millisecond)
	}
}
