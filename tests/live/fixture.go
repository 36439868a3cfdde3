package live

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Fixture is a store of fixtures/stores, unpacked, with the truth about it.
type Fixture struct {
	Name, Dir string
	Version   Version // that wrote it
	Key       string
	Cipher    string
	Killed    bool
	Cluster   bool
	Truth     Truth // what is on disk, or what the server that was killed makes of it
}

// Store is the directory that jetsam reads; of a cluster, the first node's.
func (f *Fixture) Store() string {
	if f.Cluster {
		return filepath.Join(f.Dir, "n0", "store")
	}
	return filepath.Join(f.Dir, "store")
}

// Accounts of the fixture; none where there is only $G.
func (f *Fixture) Accounts() []string {
	names := slices.Sorted(maps.Keys(f.Truth))
	if len(names) == 1 && names[0] == "$G" {
		return nil
	}
	return names
}

// Features gives the oldest server that can express what the fixture's streams use.
func (f *Fixture) Features() Version {
	switch {
	case strings.HasSuffix(f.Name, "-new") && !f.Version.Before(2, 12, 0):
		return "2.12.0" // counters, schedules, atomic batches
	case strings.HasSuffix(f.Name, "-new"):
		return "2.11.0" // message TTLs, priority groups
	case strings.HasSuffix(f.Name, "-compress"):
		return "2.10.0" // consumers with two filters
	}
	return "2.2.0"
}

// atLeast tells whether v is at least as new as the other.
func (v Version) atLeast(other Version) bool {
	var n [3]int
	for i, part := range strings.Split(string(other), ".") {
		for _, d := range part {
			n[i] = n[i]*10 + int(d-'0')
		}
	}
	return !v.Before(n[0], n[1], n[2])
}

// FixtureNames of fixtures/stores.
func FixtureNames(t testing.TB) []string {
	t.Helper()
	archives, err := filepath.Glob(filepath.Join("..", "..", "fixtures", "stores", "*.tar.xz"))
	must(t, err)
	if len(archives) == 0 {
		t.Fatal("no fixtures")
	}
	var names []string
	for _, a := range archives {
		names = append(names, strings.TrimSuffix(filepath.Base(a), ".tar.xz"))
	}
	return names
}

var (
	unpacked   = map[string]string{}
	unpacking  sync.Mutex
	unpackRoot string
)

// OpenFixture unpacks a fixture, once per run. Nobody may write there.
func OpenFixture(t testing.TB, name string) *Fixture {
	t.Helper()
	unpacking.Lock()
	defer unpacking.Unlock()
	if unpackRoot == "" {
		var err error
		unpackRoot, err = os.MkdirTemp("", "jetsam-fixtures-")
		must(t, err)
	}
	dir := unpacked[name]
	if dir == "" {
		dir = filepath.Join(unpackRoot, name)
		must(t, os.Mkdir(dir, 0o755))
		archive := filepath.Join("..", "..", "fixtures", "stores", name+".tar.xz")
		if out, err := exec.Command("tar", "-xJf", archive, "-C", dir).CombinedOutput(); err != nil {
			t.Fatalf("unpack %s: %v\n%s", name, err, out)
		}
		unpacked[name] = dir
	}
	f := &Fixture{Name: name, Dir: dir}
	_, err := os.Stat(filepath.Join(dir, "n0"))
	f.Cluster = err == nil
	var about struct {
		Server   string `json:"server"`
		Key      string `json:"key"`
		Cipher   string `json:"cipher"`
		Killed   bool   `json:"killed"`
		Accounts Truth  `json:"accounts"`
	}
	read := func(name string) bool {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if os.IsNotExist(err) {
			return false
		}
		must(t, err)
		must(t, json.Unmarshal(text, &about))
		return true
	}
	if !read("truth.json") {
		t.Fatalf("fixture %s has no truth.json", name)
	}
	f.Version, f.Key, f.Cipher, f.Killed = Version(about.Server), about.Key, about.Cipher, about.Killed
	if f.Killed {
		about.Accounts = nil
		if !read("recovered.json") {
			t.Fatalf("fixture %s has no recovered.json", name)
		}
	}
	f.Truth = about.Accounts
	for account, streams := range f.Truth {
		for stream, st := range streams {
			// What is in memory leaves nothing, and some streams of a cluster are not on the first node.
			at := filepath.Join(f.Store(), "jetstream", account, "streams", stream)
			if _, err := os.Stat(at); err != nil {
				if st.Config["storage"] != "memory" && !f.Cluster {
					t.Fatalf("fixture %s: %v", name, err)
				}
				delete(streams, stream)
			}
			st.State.Consumers = len(st.Consumers)
		}
	}
	return f
}
