package live

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"
)

// TestServerSnapshotsOffline: what jetsam restores from a server's own archives is what a server makes of them itself,
// by the word of both servers.
func TestServerSnapshotsOffline(t *testing.T) {
	if !HaveJetsam(t) {
		t.Skip("no jetsam")
	}
	servers := testVersions()
	for i, fixture := range FixtureNames(t) {
		for _, version := range servers {
			v := Version(version)
			f := OpenFixture(t, fixture)
			// Servers make what they can of newer ones' archives: 2.9 brings back what a tombstone says is deleted, and
			// who has to scan because the index.db is too new, what limits had removed.
			if !v.atLeast(f.Version) || !everyPair() && v != firstAtLeast(servers, f.Version, i) {
				continue
			}
			t.Run(fmt.Sprintf("%s-on-%s", fixture, v), func(t *testing.T) {
				t.Parallel()
				replicas := 0
				if f.Cluster {
					replicas = 1
				}
				compareOffline(t, f.serverBackups(t), v, f.Truth, f.Version, replicas)
			})
		}
	}
	for i, version := range servers {
		t.Run("fresh/"+version, func(t *testing.T) {
			t.Parallel()
			v := Version(version)
			s := StartServer(t, v, filepath.Join(t.TempDir(), "store"), Options{})
			f := NewFiller(t, s, "$G", seed()*100+int64(50+i), false)
			f.Create()
			backup := filepath.Join(t.TempDir(), "backup")
			truth := ReadTruth(t, s)
			for name := range truth["$G"] {
				if plainName(name) { // the library takes no others
					must(t, os.MkdirAll(filepath.Join(backup, "$G"), 0o755))
					Snapshot(t, s.Connect("$G"), name, filepath.Join(backup, "$G", name))
				}
			}
			s.Kill()
			compareOffline(t, backup, v, truth, v, 0)
		})
	}
}

// firstAtLeast chooses one of the servers that are as new as v, in turn.
func firstAtLeast(servers []string, v Version, turn int) Version {
	servers = slices.DeleteFunc(slices.Clone(servers), func(s string) bool { return !Version(s).atLeast(v) })
	if len(servers) == 0 {
		return ""
	}
	return Version(servers[turn%len(servers)])
}

func plainName(name string) bool {
	for _, c := range name {
		if c > '~' {
			return false
		}
	}
	return true
}

// compareOffline has v, and jetsam for v, restore what a server of the version from made of truth.
func compareOffline(t *testing.T, backup string, v Version, truth Truth, from Version, replicas int) {
	t.Helper()
	v2 := !from.Before(2, 15, 0)
	o := Options{}
	if truth["$G"] == nil {
		o.Accounts = slices.Sorted(maps.Keys(truth))
	}
	online := StartServer(t, v, filepath.Join(t.TempDir(), "online"), o)
	restoreAll(t, online, backup, replicas)
	online.Stop()

	store := filepath.Join(t.TempDir(), "offline")
	args := []string{"-q", "restore", backup, store}
	if replicas > 0 {
		args = append(args, "--replicas", fmt.Sprint(replicas))
	}
	Jetsam(t, "", args...).Want(t, 0)

	// Both after a start.
	online = StartServer(t, v, online.StoreDir, o)
	want := readRestored(t, online)
	online.Stop()
	offline := StartServer(t, v, store, o)
	got := readRestored(t, offline)
	offline.Stop()
	r := Restoring{From: v, To: v, How: "v1", Restarted: true}
	if v2 {
		r.How = "v2"
	}
	for account, streams := range want {
		for name, w := range streams {
			g := got[account][name]
			if g == nil {
				continue
			}
			// The server loses, or does not know, the time of creation; jetsam keeps what the archive has.
			if r.How == "v1" && w.Created.After(g.Created) || r.How == "v2" {
				w.Created = g.Created
			}
			for c, wc := range w.Consumers {
				gc := g.Consumers[c]
				if gc == nil || !v2 {
					continue
				}
				wc.Created = gc.Created
				// A server that restores its own NATSARC1 ignores a consumer's state where the ack floor is not as high as
				// that of a new one, and begins anew. jetsam keeps the state.
				if was := truth[account][name].Consumers[c]; wc.Delivered.Consumer == 0 && was.Delivered.Consumer > 0 {
					wc.AckFloor = was.AckFloor
					if was.AckFloor.Consumer == 0 && gc.AckFloor.Consumer == 0 {
						wc.AckFloor = gc.AckFloor // nothing is acknowledged: where it began, or 0
					}
					wc.Delivered, wc.NumAckPending, wc.NumRedelivered, wc.NumPending = was.Delivered, was.NumAckPending, was.NumRedelivered, was.NumPending
				}
			}
			// What has expired by now may still be there a moment after a start.
			if diffs, some := compareExpired(truth[account][name].clone(), g, time.Now()); some {
				report(t, account+"/"+name, diffs)
				delete(streams, name)
				delete(got[account], name)
			}
		}
	}
	allowed := []*regexp.Regexp{plaintextPasswords, originLater}
	if r.raced(t, online) || r.raced(t, offline) {
		allowed = append(allowed, workQueueRace)
		withoutQueues(want, got)
	}
	report(t, "offline", CompareRestored(want, got, r))
	if from.Before(2, 10, 0) {
		allowed = append(allowed, oldSourceHeaders)
	}
	quiet(t, offline, "offline", allowed...)
}

// TestSourcesAreNotCopiedAgain: 2.15 knows a stream that it sources by its time of creation. A stream that jetsam
// backs up and restores keeps it, so those that source it go on where they were.
func TestSourcesAreNotCopiedAgain(t *testing.T) {
	if !HaveJetsam(t) {
		t.Skip("no jetsam")
	}
	v := Version("2.15.2")
	store := filepath.Join(t.TempDir(), "store")
	s := StartServer(t, v, store, Options{})
	f := NewFiller(t, s, "$G", seed(), false)
	f.stream("ORIGIN", Cfg{"subjects": []string{"o.*"}})
	f.stream("COPY", Cfg{"sources": []Cfg{{"name": "ORIGIN", "filter_subject": "o.1"}, {"name": "OTHER"}}})
	f.stream("OTHER", Cfg{"subjects": []string{"other"}})
	f.some(60, tokens("o", 3), 0, 100)
	f.some(7, func(int) string { return "other" }, 0, 100)
	waitMessages(t, s, "COPY", 27)
	time.Sleep(300 * time.Millisecond)
	truth := ReadTruth(t, s)
	s.Stop()

	for _, how := range []struct {
		name, format string
		archived     string // what goes through an archive; the rest comes from the store
		copied       bool   // all comes once more
	}{
		{"origin-v1", "v1", "ORIGIN", false},
		{"all-v1", "v1", "*", false},
		{"store", "", "", false},
		// NATSARC1 cannot hold the time. This also shows that the test sees copies.
		{"origin-v2", "v2", "ORIGIN", true},
	} {
		t.Run(how.name, func(t *testing.T) {
			t.Parallel()
			dest := filepath.Join(t.TempDir(), "dest")
			if how.archived != "" {
				backup := filepath.Join(t.TempDir(), "backup")
				Jetsam(t, "", "-q", "backup", store, backup, "-a", "*", "-s", how.archived+"*", "--format", how.format).Want(t, 0)
				Jetsam(t, "", "-q", "restore", backup, dest).Want(t, 0)
			}
			for _, name := range []string{"ORIGIN", "COPY", "OTHER"} {
				if _, err := os.Stat(filepath.Join(dest, "jetstream", "$G", "streams", name)); err != nil {
					Jetsam(t, "", "-q", "restore", store, dest, "-s", name).Want(t, 0)
				}
			}
			s := StartServer(t, v, dest, Options{})
			f := NewFiller(t, s, "$G", 5, false)
			f.one("o.1", "new")
			f.one("other", "new")
			for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
				if countMessages(t, s, [2]string{"$G", "COPY"}) > 29 {
					break // a restart of the source takes the server up to two seconds
				}
			}
			got := ReadTruth(t, s)["$G"]["COPY"]
			if n := len(got.Messages); how.copied != (n > 29) || n < 29 {
				t.Errorf("%d messages, not 27 and 2 new ones", n)
			}
			if !how.copied {
				got.Messages = got.Messages[:min(27, len(got.Messages))]
				report(t, "the copies", compareMessages(truth["$G"]["COPY"].Messages, got.Messages))
			}
			s.Stop()
			allowed := []*regexp.Regexp{originLater}
			if how.copied {
				allowed = append(allowed, regexp.MustCompile(`source stream "ORIGIN" for stream '\$G > COPY' was recreated, resetting source state`))
			}
			quiet(t, s, "start", allowed...)
		})
	}
}

func waitMessages(t *testing.T, s *Server, stream string, want uint64) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		n := countMessages(t, s, [2]string{"$G", stream})
		if n == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s has %d messages, not %d", stream, n, want)
		}
	}
}
