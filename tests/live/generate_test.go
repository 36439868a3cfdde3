package live

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// generated are the shapes of stores that examples/make_store makes, in small.
var generated = []struct {
	name    string
	options string
	// sampled: too much to ask for one by one.
	sampled bool
}{
	{"plain", "--messages 600 --size 0..3k --headers --block-size 64k", false},
	{"s2", "--messages 600 --s2 --block-size 64k --consumers 2", false},
	{"chacha", "--messages 400 --cipher chacha --block-size 64k --consumers 2", false},
	{"aes", "--messages 400 --cipher aes --block-size 64k --consumers 2", false},
	{"s2-chacha", "--messages 400 --s2 --cipher chacha --block-size 64k", false},
	{"runs", "--messages 500 --deleted-runs 5x400 --block-size 64k --consumers 7", false},
	{"runs-between", "--messages 500 --deleted-runs 5x400 --between-blocks --consumers 7", false},
	{"million", "--messages 500 --deleted-runs 10x100000 --consumers 7", true},
	// In a block's list, or with consumers, servers go through them one by one.
	{"billion", "--messages 500 --deleted-runs 10x100000000 --between-blocks", true},
	{"scattered", "--messages 500 --deleted-scattered 50 --block-size 64k --consumers 7", false},
	{"kv", "--messages 800 --kv --size 64 --block-size 8k", false},
	{"consumers", "--messages 300 --consumers 60", false},
	{"streams", "--streams 12 --messages 30 --consumers 1", false},
	{"tiny-blocks", "--messages 500 --block-size 1 --size 100", false},
	{"empty", "--messages 0 --streams 2 --consumers 1", false},
	{"text", "--messages 300 --payload text --s2 --block-size 32k", false},
	{"random", "--messages 300 --payload random --s2 --block-size 32k", false},
	{"zero", "--messages 300 --payload zero --s2 --block-size 32k", false},
	{"no-index", "--messages 500 --deleted-scattered 20 --block-size 32k --no-index", false},
}

// TestGenerate: servers take the stores that examples/make_store makes as their own. They complain of nothing, scan
// nothing and hold what it says.
func TestGenerate(t *testing.T) {
	if !HaveJetsam(t) {
		t.Skip("no jetsam")
	}
	for _, version := range testVersions() {
		v := Version(version)
		if v.Before(2, 10, 0) {
			continue // knows no index.db
		}
		for _, g := range generated {
			t.Run(version+"/"+g.name, func(t *testing.T) {
				t.Parallel()
				store, want, o := generate(t, g.options)
				CheckHealthy(t, store, o.Key, "note")
				unscanned := filepath.Join(t.TempDir(), "unscanned")
				scan := strings.Contains(g.options, "--no-index") || g.sampled
				if !scan {
					CopyTree(t, store, unscanned)
				}

				s := StartServer(t, v, store, o)
				if g.sampled {
					holdsSample(t, s, want)
					s.Stop()
				} else {
					report(t, "started", Compare(want, ReadTruth(t, s), Rules{Version: v, Ended: time.Now(), Restarted: true}))
					publishOne(t, s, want)
					s.Stop()
					CheckHealthy(t, store, o.Key, "note")
				}
				quiet(t, s, "start")

				if scan {
					return
				}
				// A server that has to scan drops what is damaged.
				damaged := damageFirst(t, unscanned, want)
				s = StartServer(t, v, unscanned, o)
				for at, messages := range damaged {
					if n := countMessages(t, s, at); n != messages {
						t.Errorf("index.db of %v was not taken: %d messages, not %d", at, n, messages)
					}
				}
				s.Kill()
				quiet(t, s, "start without a scan")
			})
		}
	}
}

// generate makes a store with the example that JETSAM_MAKE_STORE names (by default beside JETSAM_BIN). It gives what
// it holds, and the options of a server for it.
func generate(t *testing.T, options string) (string, Truth, Options) {
	t.Helper()
	bin := os.Getenv("JETSAM_MAKE_STORE")
	if bin == "" {
		bin = filepath.Join(filepath.Dir(jetsamBin()), "examples", "make_store")
	}
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("no store generator (cargo build --release --example make_store, or set JETSAM_MAKE_STORE): %v", err)
	}
	dir := t.TempDir()
	store, file := filepath.Join(dir, "store"), filepath.Join(dir, "truth.json")
	args := append([]string{store, "--truth", file, "--seed", fmt.Sprint(seed())}, strings.Fields(options)...)
	var o Options
	for i, arg := range args {
		if arg == "--cipher" {
			o = Options{Key: "live test key", Cipher: args[i+1]}
			args = append(args, "--key", o.Key)
		}
	}
	if out, err := exec.Command(bin, args...).CombinedOutput(); err != nil {
		t.Fatalf("make_store %q: %v\n%s", args, err, out)
	}
	text, err := os.ReadFile(file)
	must(t, err)
	var truth Truth
	must(t, json.Unmarshal(text, &truth))
	return store, truth, o
}

// holdsSample compares the streams' state, consumers, and the messages that are in the truth.
func holdsSample(t *testing.T, s *Server, want Truth) {
	t.Helper()
	for account, streams := range want {
		nc := s.Connect(account)
		for name, st := range streams {
			var info struct {
				State State `json:"state"`
			}
			must(t, API(nc, "STREAM.INFO."+name, nil, &info))
			got, state := info.State, st.State
			state.Deleted, state.Subjects = nil, nil
			if fmt.Sprint(got) != fmt.Sprint(state) {
				t.Errorf("%s: %+v but the truth is %+v", name, got, state)
			}
			var messages []Message
			for _, m := range st.Messages {
				var reply struct {
					Message Message `json:"message"`
				}
				must(t, API(nc, "STREAM.MSG.GET."+name, map[string]any{"seq": m.Seq}, &reply))
				messages = append(messages, reply.Message)
			}
			report(t, name, compareMessages(st.Messages, messages))
			for _, c := range st.Consumers {
				var got Consumer
				must(t, API(nc, "CONSUMER.INFO."+name+"."+c.Name, nil, &got))
				report(t, c.Name, compareConsumer(c, &got, Rules{Version: s.Version}))
			}
		}
	}
}
