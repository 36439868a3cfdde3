package live

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func seed() int64 {
	n, err := strconv.ParseInt(os.Getenv("JETSAM_SEED"), 10, 64)
	if err != nil {
		return 1
	}
	return n
}

// variant is a way in which a store is laid out on disk.
type variant struct {
	name     string
	cipher   string
	compress bool
}

func variants(v Version) []variant {
	all := []variant{{"plain", "", false}, {"chacha", "chacha", false}, {"aes", "aes", false}}
	if !v.Before(2, 10, 0) {
		all = append(all, variant{"s2", "", true}, variant{"s2-chacha", "chacha", true})
	}
	return all
}

func (v variant) options() Options {
	o := Options{Cipher: v.cipher}
	if v.cipher != "" {
		o.Key = "live test key"
	}
	return o
}

func report(t *testing.T, what string, diffs []string) {
	t.Helper()
	if len(diffs) > 0 {
		t.Errorf("%s: %d differences\n  %s", what, len(diffs), strings.Join(diffs[:min(len(diffs), 40)], "\n  "))
	}
}

// compareStopped compares what jetsam reads from a stopped store with the truth.
func compareStopped(t *testing.T, store string, o Options, truth Truth, r Rules) {
	t.Helper()
	if !HaveJetsam(t) {
		return
	}
	report(t, "jetsam after "+string(r.Version), Compare(truth, ReadJetsam(t, store, o.Key), r))
	CheckHealthy(t, store, o.Key, "note")
}

// TestStores: a store is made and used, the server stopped; started and used again, killed; started and stopped.
// After each, jetsam has to read what the server said; after the kill, what the server then recovers.
func TestStores(t *testing.T) {
	for i, version := range testVersions() {
		v := Version(version)
		for j, kind := range variants(v) {
			t.Run(version+"/"+kind.name, func(t *testing.T) {
				t.Parallel()
				testStore(t, v, kind, seed()*1000+int64(i*10+j))
			})
		}
	}
}

func testStore(t *testing.T, v Version, kind variant, seed int64) {
	store := filepath.Join(t.TempDir(), "store")
	o := kind.options()

	s := StartServer(t, v, store, o)
	f := NewFiller(t, s, "$G", seed, kind.compress)
	f.Create()
	truth := ReadTruth(t, s)
	if j := HaveJetsam(t); j && kind.name == "plain" {
		inUse(t, store, o.Key)
	}
	s.Stop()
	compareStopped(t, store, o, truth, Rules{Version: v, Ended: time.Now()})

	// The server itself, after a restart, is the first judge of what was compared.
	s = StartServer(t, v, store, o)
	again := ReadTruth(t, s)
	report(t, "the server after a restart", Compare(truth, again, Rules{Version: v, Ended: time.Now(), Restarted: true}))

	f = NewFiller(t, s, "$G", seed+1_000_000, kind.compress)
	f.Use()
	f.Objects()
	time.Sleep(300 * time.Millisecond)
	truth = ReadTruth(t, s)
	s.Kill()

	// Killed: what is on disk now is what jetsam sees and what the server makes its own of.
	copied := filepath.Join(t.TempDir(), "killed")
	CopyTree(t, store, copied)
	var seen Truth
	if HaveJetsam(t) {
		seen = ReadJetsam(t, copied, o.Key)
		CheckHealthy(t, copied, o.Key, "warning")
	}
	s = StartServer(t, v, store, o)
	recovered := ReadTruth(t, s)
	killed := Rules{Version: v, Ended: time.Now(), Restarted: true, Killed: true, Updated: f.Updated}
	report(t, "the server after a kill", Compare(truth, recovered, killed))
	if seen != nil {
		report(t, "jetsam on the killed store", Compare(recovered, seen, Rules{Version: v, Ended: time.Now(), Restarted: true, Updated: f.Updated, AtStop: true}))
	}
	s.Stop()
	compareStopped(t, store, o, recovered, Rules{Version: v, Ended: time.Now(), Restarted: true, Updated: f.Updated})
}

// inUse: a running server's store is refused, or read with --live.
func inUse(t *testing.T, store, key string) {
	t.Helper()
	Jetsam(t, key, "info", "--json", store).Want(t, 3)
	Jetsam(t, key, "check", "--json", store).Want(t, 3)
	Jetsam(t, key, "info", "--json", "--live", store).Want(t, 0)
}

// TestUpgrades: each version in turn writes to the same store.
func TestUpgrades(t *testing.T) {
	for j, kind := range []variant{{"plain", "", false}, {"s2-chacha", "chacha", true}} {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			store := filepath.Join(t.TempDir(), "store")
			o := kind.options()
			var last Version
			for i, version := range testVersions() {
				v := Version(version)
				if kind.cipher != "" && v.Before(2, 10, 0) {
					continue // see TestUpgradeLosesMetaKeys
				}
				s := StartServer(t, v, store, o)
				f := NewFiller(t, s, "$G", seed()*100+int64(10*i+j), kind.compress)
				if last == "" {
					f.Create()
					f.Updated = nil
				} else {
					f.New()
					f.Use()
					f.Objects()
				}
				truth := ReadTruth(t, s)
				s.Stop()
				compareStopped(t, store, o, truth, Rules{Version: v, Ended: time.Now(), Updated: f.Updated})
				last = v
			}
		})
	}
}

// TestUpgradeLosesMetaKeys: 2.10.0–2.10.29 and 2.12.0 read a stream's key only together with index.db. Where that is
// missing (a store of 2.9, or a killed one), they write a new meta.key when they stop, and leave meta.inf sealed with
// the old one, which is gone: at the next start every server skips the stream ("unable to recover keys"). The blocks
// have keys of their own, so that every message is still there.
func TestUpgradeLosesMetaKeys(t *testing.T) {
	t.Parallel()
	store := filepath.Join(t.TempDir(), "store")
	o := Options{Key: "live test key", Cipher: "chacha"}
	s := StartServer(t, "2.9.25", store, o)
	f := NewFiller(t, s, "$G", seed(), false)
	f.stream("LOST", Cfg{"subjects": []string{"lost.*"}})
	f.some(50, tokens("lost", 3), 0, 100)
	s.Stop()
	for i, v := range []Version{"2.10.29", "2.10.29", "2.15.2"} {
		s = StartServer(t, v, store, o)
		_, there := ReadTruth(t, s)["$G"]["LOST"]
		s.Stop()
		if there != (i == 0) {
			t.Fatalf("start %d, of %s: stream there: %v\n%s", i+1, v, there, s.Log())
		}
	}
	if !HaveJetsam(t) {
		return
	}
	if ran := Jetsam(t, o.Key, "check", "--json", store); ran.Code != 1 && ran.Code != 4 {
		t.Errorf("check of a stream whose key is lost: exit %d", ran.Code)
	}
	ran := Jetsam(t, o.Key, "view", "--json", filepath.Join(store, "jetstream", "$G", "streams", "LOST"))
	if n := strings.Count(string(ran.Stdout), "\n"); n != 50 {
		t.Errorf("view shows %d of 50 messages, exit %d\n%s", n, ran.Code, ran.Stderr)
	}
}

// TestAccounts: several accounts with streams of the same names.
func TestAccounts(t *testing.T) {
	for i, version := range testVersions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			v := Version(version)
			store := filepath.Join(t.TempDir(), "store")
			o := Options{Accounts: []string{"ACME", "BETA", "GAMMA"}}
			s := StartServer(t, v, store, o)
			for j, account := range o.Accounts {
				f := NewFiller(t, s, account, seed()*100+int64(10*i+j), false)
				for _, name := range []string{"EVENTS", "ONLY_" + account} {
					subject := strings.ToLower(name)
					f.stream(name, Cfg{"subjects": []string{subject + ".*"}})
					f.consumer(name, "TAIL", nil)
					f.some(40, tokens(subject, 3), 0, 100)
					f.use(name, "TAIL", 10+j)
					f.deleteSome(name, 4)
				}
			}
			time.Sleep(200 * time.Millisecond)
			truth := ReadTruth(t, s)
			s.Stop()
			compareStopped(t, store, o, truth, Rules{Version: v, Ended: time.Now()})
			if HaveJetsam(t) {
				only := ReadJetsam(t, store, "", "-a", "BETA", "-s", "ONLY*")
				if len(only) != 1 || len(only["BETA"]) != 1 {
					t.Errorf("-a BETA -s 'ONLY*' gives %v", only)
				}
			}
		})
	}
}

// TestSnapshots: backups made by `nats stream backup`'s library, read by jetsam, and restored into another server.
func TestSnapshots(t *testing.T) {
	for i, version := range testVersions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			v := Version(version)
			s := StartServer(t, v, filepath.Join(t.TempDir(), "store"), Options{})
			f := NewFiller(t, s, "$G", seed()*100+int64(i), false)
			f.stream("SNAP", Cfg{"subjects": []string{"snap.*"}, "max_bytes": 120_000})
			f.consumer("SNAP", "C", Cfg{"filter_subject": "snap.1"})
			f.consumer("SNAP", "D", Cfg{"ack_policy": "all"})
			f.some(300, tokens("snap", 5), 50, 400)
			f.use("SNAP", "C", 20)
			f.ackAll("SNAP", "D", 40)
			f.deleteSome("SNAP", 15)
			time.Sleep(200 * time.Millisecond)
			truth := ReadTruth(t, s)
			dir := filepath.Join(t.TempDir(), "backup")
			Snapshot(t, s.Connect("$G"), "SNAP", dir)
			s.Stop()
			if HaveJetsam(t) {
				want := Truth{"": {"SNAP": truth["$G"]["SNAP"]}}
				got := ReadJetsam(t, dir, "")
				if !v.Before(2, 15, 0) { // v2 archives hold no time of creation
					got[""]["SNAP"].Created = want[""]["SNAP"].Created
					for name, c := range got[""]["SNAP"].Consumers {
						c.Created = want[""]["SNAP"].Consumers[name].Created
					}
				}
				report(t, "jetsam on a backup", Compare(want, got, Rules{Version: v, Ended: time.Now()}))
				CheckHealthy(t, dir, "", "note")
			}
			// The newest server takes every form.
			newest := Version(Versions[len(Versions)-1])
			s = StartServer(t, newest, filepath.Join(t.TempDir(), "other"), Options{})
			must(t, Restore(t, s.Connect("$G"), "SNAP", dir, nil))
			restored := ReadTruth(t, s)
			want, got := truth["$G"]["SNAP"], restored["$G"]["SNAP"]
			if got == nil {
				t.Fatal("the restored stream is not there")
			}
			got.Created = want.Created
			for name, c := range got.Consumers {
				if w := want.Consumers[name]; w != nil {
					c.Created = w.Created
					c.Config, got.Config = w.Config, want.Config // the newer server adds fields of its own
				}
			}
			report(t, fmt.Sprintf("%s restored into %s", v, newest), Compare(truth, restored, Rules{Version: newest, Ended: time.Now(), Restarted: true}))
		})
	}
}
