package live

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// TestMakeTiny makes the stores of fixtures/tiny: one stream of a few dozen short messages in each on-disk form.
func TestMakeTiny(t *testing.T) {
	out := os.Getenv("JETSAM_TINY_OUT")
	if out == "" {
		t.Skip("JETSAM_TINY_OUT is not set")
	}
	for _, form := range []struct {
		name   string
		v      Version
		cipher string
		s2     bool
	}{
		{"2.2.6-plain", "2.2.6", "", false},
		{"2.9.25-plain", "2.9.25", "", false},
		{"2.14.9-plain", "2.14.9", "", false},
		{"2.15.2-s2", "2.15.2", "", true},
		{"2.14.9-chacha", "2.14.9", "chacha", false},
		{"2.14.9-aes", "2.14.9", "aes", false},
		{"2.15.2-s2-chacha", "2.15.2", "chacha", true},
	} {
		t.Run(form.name, func(t *testing.T) {
			dir := t.TempDir()
			o := Options{Cipher: form.cipher}
			if form.cipher != "" {
				o.Key = "s3cr3t-fixture-key"
			}
			s := StartServer(t, form.v, filepath.Join(dir, "store"), o)
			f := NewFiller(t, s, "$G", 1, form.s2)
			f.stream("TINY", Cfg{"subjects": []string{"t.*"}, "max_bytes": 120_000})
			f.consumer("TINY", "C", nil)
			if form.s2 {
				// Enough of the same to roll a block of 32 kB, which is then compressed to little.
				for i := 0; i < 27; i++ {
					f.one("t.fill", strings.Repeat("so much of nothing ", 63))
				}
			}
			for i := 0; i < 24; i++ {
				p := Pub{Subject: "t." + string(rune('a'+i%3)), Data: []byte(strings.Repeat("{}", i%5+1))}
				if i%4 == 0 {
					p.Header = nats.Header{"N": {string(rune('a' + i))}}
				}
				f.publish(false, p)
			}
			last := f.last("TINY")
			f.delete("TINY", last-5, true)
			if !form.s2 { // erasing rewrites a block; once is enough
				f.delete("TINY", last-9, false)
			}
			for i, m := range f.pull("TINY", "C", 9) {
				if i != 3 && i < 7 {
					f.ack(m)
				}
			}
			time.Sleep(500 * time.Millisecond) // compression happens aside
			truth := ReadTruth(t, s)
			s.Stop()
			about := map[string]any{"server": string(form.v), "killed": false, "scenario": "tiny", "accounts": truth}
			if o.Key != "" {
				about["key"], about["cipher"] = o.Key, o.Cipher
			}
			b, err := json.MarshalIndent(about, "", " ")
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, "truth.json"), b, 0o644))
			archive, err := filepath.Abs(filepath.Join(out, form.name+".tar.xz"))
			must(t, err)
			cmd := exec.Command("tar", "--owner=0", "--group=0", "-cJf", archive, "store", "truth.json")
			cmd.Dir = dir
			if msg, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("tar: %v\n%s", err, msg)
			}
		})
	}
}
