package live

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// Seqs is a pair of consumer and stream sequence.
type Seqs struct {
	Consumer uint64 `json:"consumer_seq"`
	Stream   uint64 `json:"stream_seq"`
}

// Consumer is what the API and jetsam both say of a consumer.
type Consumer struct {
	Stream         string         `json:"stream_name"`
	Name           string         `json:"name"`
	Created        time.Time      `json:"created"`
	Config         map[string]any `json:"config"`
	Delivered      Seqs           `json:"delivered"`
	AckFloor       Seqs           `json:"ack_floor"`
	NumAckPending  int            `json:"num_ack_pending"`
	NumRedelivered int            `json:"num_redelivered"`
	NumPending     uint64         `json:"num_pending"`
}

// State of a stream, nothing left out.
type State struct {
	Messages    uint64            `json:"messages"`
	Bytes       uint64            `json:"bytes"`
	FirstSeq    uint64            `json:"first_seq"`
	FirstTime   time.Time         `json:"first_ts"`
	LastSeq     uint64            `json:"last_seq"`
	LastTime    time.Time         `json:"last_ts"`
	NumSubjects int               `json:"num_subjects"`
	NumDeleted  int               `json:"num_deleted"`
	Consumers   int               `json:"consumer_count"`
	Deleted     []uint64          `json:"deleted,omitempty"`
	Subjects    map[string]uint64 `json:"subjects,omitempty"`
}

// Message as STREAM.MSG.GET gives it.
type Message struct {
	Seq     uint64    `json:"seq"`
	Subject string    `json:"subject"`
	Time    time.Time `json:"time"`
	Header  []byte    `json:"hdrs,omitempty"`
	Data    []byte    `json:"data,omitempty"`
}

// Stream is all that can be known of one stream.
type Stream struct {
	Config    map[string]any       `json:"config"`
	Created   time.Time            `json:"created"`
	State     State                `json:"state"`
	Messages  []Message            `json:"messages"`
	Consumers map[string]*Consumer `json:"consumers"`
}

// Truth is account → stream → what it holds.
type Truth map[string]map[string]*Stream

// APIError is an error in a JetStream API reply.
type APIError struct {
	Code        int    `json:"code"`
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

func (e *APIError) Error() string { return fmt.Sprintf("%s (%d)", e.Description, e.ErrCode) }

// API makes a JetStream API request and decodes the reply into out (which may be nil).
func API(nc *nats.Conn, subject string, body, out any) error {
	var payload []byte
	if body != nil {
		var err error
		if payload, err = json.Marshal(body); err != nil {
			return err
		}
	}
	reply, err := nc.Request("$JS.API."+subject, payload, 15*time.Second)
	if err != nil {
		return fmt.Errorf("%s: %w", subject, err)
	}
	var failed struct {
		Error *APIError `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &failed); err != nil {
		return fmt.Errorf("%s: %w", subject, err)
	}
	if failed.Error != nil {
		return fmt.Errorf("%s: %w", subject, failed.Error)
	}
	if out != nil {
		return json.Unmarshal(reply.Data, out)
	}
	return nil
}

// ReadTruth asks a running server for everything it holds on disk.
func ReadTruth(t testing.TB, s *Server) Truth {
	t.Helper()
	truth := Truth{}
	for _, account := range s.AccountNames() {
		streams, err := readAccount(s.Connect(account))
		if err != nil {
			t.Fatalf("truth of %s on %s: %v\n%s", account, s.Version, err, s.Log())
		}
		truth[account] = streams
	}
	return truth
}

func readAccount(nc *nats.Conn) (map[string]*Stream, error) {
	var names []string
	for {
		var page struct {
			Total   int      `json:"total"`
			Streams []string `json:"streams"`
		}
		if err := API(nc, "STREAM.NAMES", map[string]any{"offset": len(names)}, &page); err != nil {
			return nil, err
		}
		names = append(names, page.Streams...)
		if len(page.Streams) == 0 || len(names) >= page.Total {
			break
		}
	}
	out := map[string]*Stream{}
	for _, name := range names {
		st, err := readStream(nc, name)
		if err != nil {
			return nil, err
		}
		if st.Config["storage"] == "file" { // what is in memory leaves nothing
			out[name] = st
		}
	}
	return out, nil
}

func readStream(nc *nats.Conn, name string) (*Stream, error) {
	st := &Stream{Consumers: map[string]*Consumer{}}
	ask := map[string]any{"deleted_details": true, "subjects_filter": ">"}
	if err := API(nc, "STREAM.INFO."+name, ask, st); err != nil {
		return nil, err
	}
	deleted := make(map[uint64]bool, len(st.State.Deleted))
	for _, seq := range st.State.Deleted {
		deleted[seq] = true
	}
	for seq := max(1, st.State.FirstSeq); seq <= st.State.LastSeq && st.State.Messages > 0; seq++ {
		if deleted[seq] {
			continue
		}
		var got struct {
			Message Message `json:"message"`
		}
		err := API(nc, "STREAM.MSG.GET."+name, map[string]any{"seq": seq}, &got)
		var api *APIError
		if errors.As(err, &api) && api.Code == 404 {
			continue
		} else if err != nil {
			return nil, err
		}
		st.Messages = append(st.Messages, got.Message)
	}
	for n := 0; ; {
		var page struct {
			Total     int         `json:"total"`
			Consumers []*Consumer `json:"consumers"`
		}
		if err := API(nc, "CONSUMER.LIST."+name, map[string]any{"offset": n}, &page); err != nil {
			return nil, err
		}
		for _, c := range page.Consumers {
			if c.Config["mem_storage"] == true { // leaves nothing on disk
				continue
			}
			st.Consumers[c.Name] = c
		}
		n += len(page.Consumers)
		if len(page.Consumers) == 0 || n >= page.Total {
			break
		}
	}
	st.State.Consumers = len(st.Consumers)
	return st, nil
}

// Rules say where an answer cannot be the truth to the letter, and why.
type Rules struct {
	// Version that wrote last.
	Version Version
	// Restarted: the answer is a server's after a restart. Its internal consumers begin anew, sequences it keeps
	// for consumers that never delivered are worked out again, and what nobody waits for any more is removed.
	Restarted bool
	// Killed: the answer is a server's after it was killed. What removed messages without leaving a mark in a block
	// (limits, rollups) is undone by that, and consumers' states were written up to 100 ms before the kill. Only that
	// no message and no configuration was lost is compared.
	Killed bool
	// Ended: when the server was gone. What could expire until then is not compared.
	Ended time.Time
	// Updated: streams whose configuration was changed in a run of the server that was not their first. Until
	// 2.14.5 such a change writes the time of the server's start into meta.inf as the time of creation.
	Updated map[string]bool
	// AtStop: what is compared was read before the server started whose answer is the truth. The start itself
	// changes some things then.
	AtStop bool
}

// Compare lists how got differs from the truth.
func Compare(want, got Truth, r Rules) []string {
	var out []string
	for _, account := range slices.Sorted(maps.Keys(union(want, got))) {
		for _, name := range slices.Sorted(maps.Keys(union(want[account], got[account]))) {
			w, g := want[account][name], got[account][name]
			at := account + "/" + name
			switch {
			case w == nil:
				out = append(out, at+": not in the truth")
			case g == nil:
				out = append(out, at+": missing")
			default:
				for _, d := range compareStream(w, g, r, r.Updated[name]) {
					out = append(out, at+" "+d)
				}
			}
		}
	}
	return out
}

func union[V any](a, b map[string]V) map[string]bool {
	all := map[string]bool{}
	for k := range a {
		all[k] = true
	}
	for k := range b {
		all[k] = true
	}
	return all
}

// storedConfig takes out what servers add to an answer and never store: their own version and level.
func storedConfig(c map[string]any) map[string]any {
	c = maps.Clone(c)
	if md, ok := c["metadata"].(map[string]any); ok {
		md = maps.Clone(md)
		delete(md, "_nats.ver")
		delete(md, "_nats.level")
		delete(c, "metadata")
		if len(md) > 0 {
			c["metadata"] = md
		}
	}
	// A newer server answers with its defaults for keys that an older one, which wrote meta.inf, did not know.
	for k, v := range c {
		if m, ok := v.(map[string]any); v == nil || v == false || v == "none" || ok && len(m) == 0 {
			delete(c, k)
		}
	}
	return c
}

// expires tells when a message goes by itself, if it does.
func expires(config map[string]any, m Message) (time.Time, bool) {
	if age, _ := config["max_age"].(float64); age > 0 {
		return m.Time.Add(time.Duration(age)), true
	}
	for _, line := range strings.Split(string(m.Header), "\r\n") {
		if ttl, ok := strings.CutPrefix(line, "Nats-TTL: "); ok {
			if d, err := time.ParseDuration(ttl); err == nil {
				return m.Time.Add(d), true
			}
		}
	}
	return time.Time{}, false
}

func compareStream(w, g *Stream, r Rules, updated bool) (out []string) {
	diff := func(what string, got, want any) {
		if !reflect.DeepEqual(got, want) {
			out = append(out, fmt.Sprintf("%s: %v but the truth is %v", what, brief(got), brief(want)))
		}
	}
	wc, gc := storedConfig(w.Config), storedConfig(g.Config)
	for _, k := range slices.Sorted(maps.Keys(union(wc, gc))) {
		diff("config."+k, gc[k], wc[k])
	}
	if !(updated && r.Version.Before(2, 14, 6)) && !g.Created.Equal(w.Created) {
		diff("created", g.Created, w.Created)
	}

	racy := false
	for _, m := range w.Messages {
		if at, ok := expires(w.Config, m); ok && at.Before(r.Ended.Add(time.Second)) {
			racy = true
		}
	}
	if racy {
		return out
	}
	if r.Killed {
		for _, d := range compareMessages(w.Messages, g.Messages) {
			if !strings.HasSuffix(d, "is not in the truth") && !strings.HasPrefix(d, "…") {
				out = append(out, d)
			}
		}
		return out
	}
	ws, gs := w.State, g.State
	// A server that has not yet stored anything in a stream says first 0 and one deleted, which is nowhere on disk.
	if ws.LastSeq == 0 && gs.LastSeq == 0 {
		for _, s := range []*State{&ws, &gs} {
			s.FirstSeq, s.NumDeleted, s.Deleted = 0, 0, nil
			s.FirstTime, s.LastTime = time.Time{}, time.Time{}
		}
	}
	// Servers read a zero time back as 1970.
	for _, t := range []*time.Time{&ws.FirstTime, &gs.FirstTime, &ws.LastTime, &gs.LastTime} {
		if t.UnixNano() == 0 {
			*t = time.Time{}
		}
	}
	if ws.Messages == 0 && gs.Messages == 0 {
		// No time belongs to the first sequence of an empty stream; some servers keep the one it had.
		ws.FirstTime, gs.FirstTime = time.Time{}, time.Time{}
		// Before 2.10 nothing on disk keeps the last time of a stream that became empty.
		if r.Version.Before(2, 10, 0) {
			ws.LastTime, gs.LastTime = time.Time{}, time.Time{}
		}
	}
	// What every consumer has acknowledged goes at a start, and not before.
	if r.AtStop && w.Config["retention"] == "interest" {
		for _, d := range compareMessages(w.Messages, g.Messages) {
			if !strings.HasSuffix(d, "is not in the truth") && !strings.HasPrefix(d, "…") {
				out = append(out, d)
			}
		}
		return out
	}
	// A record that was erased has no time. Where it is the last one, a server that scans blocks has no last time
	// either; the store may know better.
	if r.Restarted && ws.LastTime.IsZero() && ws.Messages > 0 {
		gs.LastTime = ws.LastTime
	}
	if r.Version.Before(2, 10, 0) && gs.LastTime.IsZero() && slices.Contains(ws.Deleted, ws.LastSeq) {
		ws.LastTime = gs.LastTime
	}
	// Before 2.10 a message that nobody is interested in leaves no record: the index knows the first of a run, and
	// the last sequence is gone with the server.
	if r.Version.Before(2, 10, 0) && w.Config["retention"] == "interest" && ws.Messages == 0 {
		gs.FirstSeq, gs.LastSeq, gs.LastTime = ws.FirstSeq, ws.LastSeq, ws.LastTime
	}
	ws.Consumers, gs.Consumers = 0, 0
	diff("messages", gs.Messages, ws.Messages)
	diff("bytes", gs.Bytes, ws.Bytes)
	diff("first_seq", gs.FirstSeq, ws.FirstSeq)
	diff("last_seq", gs.LastSeq, ws.LastSeq)
	diff("first_ts", gs.FirstTime.UTC().Format(time.RFC3339Nano), ws.FirstTime.UTC().Format(time.RFC3339Nano))
	diff("last_ts", gs.LastTime.UTC().Format(time.RFC3339Nano), ws.LastTime.UTC().Format(time.RFC3339Nano))
	diff("num_subjects", gs.NumSubjects, ws.NumSubjects)
	diff("num_deleted", gs.NumDeleted, ws.NumDeleted)
	slices.Sort(gs.Deleted)
	slices.Sort(ws.Deleted)
	if len(gs.Deleted)+len(ws.Deleted) > 0 {
		diff("deleted", gs.Deleted, ws.Deleted)
	}
	if len(gs.Subjects)+len(ws.Subjects) > 0 {
		diff("subjects", gs.Subjects, ws.Subjects)
	}
	out = append(out, compareMessages(w.Messages, g.Messages)...)

	for _, name := range slices.Sorted(maps.Keys(union(w.Consumers, g.Consumers))) {
		wc, gc := w.Consumers[name], g.Consumers[name]
		switch {
		case internal(wc) && r.Restarted || internal(gc) && r.Restarted:
		case wc == nil:
			out = append(out, "> "+name+": not in the truth")
		case gc == nil:
			out = append(out, "> "+name+": missing")
		default:
			// A start gives up on what was delivered too often, and before 2.10 moves ack floors over deletes, in
			// memory: o.dat has the new one only when something else changes.
			if r.AtStop && wc.Config["backoff"] != nil || r.Restarted && r.Version.Before(2, 10, 0) {
				copied := *wc
				copied.NumAckPending, copied.AckFloor, copied.NumRedelivered = gc.NumAckPending, gc.AckFloor, gc.NumRedelivered
				wc = &copied
			}
			// Servers keep a running number, which deletes can leave too high; a restart counts anew.
			if n, ok := countPending(wc, w.Messages); ok && gc.NumPending == n {
				copied := *wc
				copied.NumPending = n
				wc = &copied
			}
			for _, d := range compareConsumer(wc, gc, r) {
				out = append(out, "> "+name+" "+d)
			}
		}
	}
	return out
}

// internal consumers serve a mirror or a source; they get a new delivery subject at each start.
func internal(c *Consumer) bool {
	return c != nil && (c.Config["sourcing"] == true || c.Config["direct"] == true)
}

func compareMessages(w, g []Message) (out []string) {
	index := func(ms []Message) map[uint64]Message {
		m := make(map[uint64]Message, len(ms))
		for _, x := range ms {
			m[x.Seq] = x
		}
		return m
	}
	wi, gi := index(w), index(g)
	if !sort.SliceIsSorted(g, func(i, j int) bool { return g[i].Seq < g[j].Seq }) {
		out = append(out, "messages out of order")
	}
	if len(gi) != len(g) {
		out = append(out, "a message twice")
	}
	for _, m := range w {
		x, ok := gi[m.Seq]
		switch {
		case !ok:
			out = append(out, fmt.Sprintf("message %d missing", m.Seq))
		case x.Subject != m.Subject || !x.Time.Equal(m.Time) || string(x.Header) != string(m.Header) || string(x.Data) != string(m.Data):
			out = append(out, fmt.Sprintf("message %d: %v but the truth is %v", m.Seq, brief(x), brief(m)))
		}
	}
	for _, m := range g {
		if _, ok := wi[m.Seq]; !ok {
			out = append(out, fmt.Sprintf("message %d is not in the truth", m.Seq))
		}
	}
	if len(out) > 12 {
		out = append(out[:12], fmt.Sprintf("… and %d more", len(out)-12))
	}
	return out
}

func compareConsumer(w, g *Consumer, r Rules) (out []string) {
	diff := func(what string, got, want any) {
		if !reflect.DeepEqual(got, want) {
			out = append(out, fmt.Sprintf("%s: %v but the truth is %v", what, brief(got), brief(want)))
		}
	}
	wc, gc := storedConfig(w.Config), storedConfig(g.Config)
	for _, k := range slices.Sorted(maps.Keys(union(wc, gc))) {
		diff("config."+k, gc[k], wc[k])
	}
	// Until 2.11 the API gives the consumer's own reading of the clock, meta.inf its store's, made right after.
	later := g.Created.Sub(w.Created)
	if r.Version.Before(2, 12, 0) {
		if later < 0 || later > time.Second {
			diff("created", g.Created, w.Created)
		}
	} else if later != 0 {
		diff("created", g.Created, w.Created)
	}
	diff("delivered", g.Delivered, w.Delivered)
	diff("ack_floor", g.AckFloor, w.AckFloor)
	diff("num_ack_pending", g.NumAckPending, w.NumAckPending)
	diff("num_redelivered", g.NumRedelivered, w.NumRedelivered)
	diff("num_pending", g.NumPending, w.NumPending)
	return out
}

// countPending counts what a consumer has yet to get, unless it picks messages in a way that is more than a filter.
func countPending(c *Consumer, messages []Message) (n uint64, ok bool) {
	if p := c.Config["deliver_policy"]; p != "all" && p != "by_start_sequence" {
		return 0, false
	}
	var filters []string
	if f, ok := c.Config["filter_subject"].(string); ok {
		filters = append(filters, f)
	}
	if fs, ok := c.Config["filter_subjects"].([]any); ok {
		for _, f := range fs {
			filters = append(filters, f.(string))
		}
	}
	for _, m := range messages {
		wanted := len(filters) == 0
		for _, f := range filters {
			wanted = wanted || matches(f, m.Subject)
		}
		if wanted && m.Seq > c.Delivered.Stream {
			n++
		}
	}
	return n, true
}

func matches(filter, subject string) bool {
	fs, ss := strings.Split(filter, "."), strings.Split(subject, ".")
	for i, f := range fs {
		if f == ">" {
			return len(ss) > i
		}
		if i >= len(ss) || f != "*" && f != ss[i] {
			return false
		}
	}
	return len(fs) == len(ss)
}

func brief(v any) string {
	s := fmt.Sprintf("%+v", v)
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return s
}
