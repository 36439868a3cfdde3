package live

import (
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats.go"
)

// TestSideBySide times jetsam and a real server on the same stores, turn by turn in one run, and prints a table.
// It makes the stores first (JETSAM_BENCH names the directory; they stay there for the next run), and runs only
// when asked: benches/side-by-side.sh.
//
//	JETSAM_BENCH           where the stores are
//	JETSAM_BENCH_MESSAGES  messages in each (default 2,000,000 of 500 bytes)
//	JETSAM_BENCH_ROUNDS    rounds (default 5; the median counts)
func TestSideBySide(t *testing.T) {
	dir := os.Getenv("JETSAM_BENCH")
	if dir == "" {
		t.Skip("JETSAM_BENCH is not set")
	}
	messages, rounds := number("JETSAM_BENCH_MESSAGES", 2_000_000), number("JETSAM_BENCH_ROUNDS", 5)
	v := Version("2.14.9")
	fmt.Printf("%s, %d cores, nats-server %s, %d messages of 500 bytes, median of %d rounds\n\n", cpu(), runtime.NumCPU(), v, messages, rounds)
	fmt.Println("| store | bytes | server's recovery | `cat` | `check` | 1 thread | server ÷ check | check ÷ cat | 1 thread ÷ all | check, GB/s | CPU | peak RSS |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|---|")
	for _, kind := range []variant{{"plain", "", false}, {"s2", "", true}, {"chacha", "chacha", false}, {"aes", "aes", false}} {
		o := kind.options()
		store := filepath.Join(dir, fmt.Sprintf("%s-%d", kind.name, messages))
		if _, err := os.Stat(store); err != nil {
			fillBig(t, v, store, o, kind.compress, messages)
		}
		var server, cat, all, one, cpus []float64
		var rss int64
		for range rounds {
			server = append(server, recovery(t, v, store, filepath.Join(dir, "copy"), o))
			cat = append(cat, timed(t, o, "sh", "-c", "find '"+store+"' -type f -exec cat {} + > /dev/null").seconds)
			r := timed(t, o, jetsamBin(), "check", "-q", store)
			all, cpus, rss = append(all, r.seconds), append(cpus, r.cpu), max(rss, r.rss)
			one = append(one, timed(t, o, jetsamBin(), "check", "-q", "--threads", "1", store).seconds)
		}
		s, c, a, n := median(server), median(cat), median(all), median(one)
		size := float64(treeBytes(t, store))
		fmt.Printf("| %s | %.2f GB | %.2f s | %.3f s | %.3f s | %.3f s | %.1f | %.2f | %.2f | %.2f | %.2f s | %d MiB |\n",
			kind.name, size/1e9, s, c, a, n, s/a, a/c, n/a, size/1e9/a, median(cpus), rss>>10)
	}
}

func number(env string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(env)); err == nil {
		return n
	}
	return otherwise
}

func cpu() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	if m := regexp.MustCompile(`model name\s*: (.*)`).FindSubmatch(text); m != nil {
		return string(m[1])
	}
	return runtime.GOARCH
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// fillBig makes a store of one stream PERF with 1,000 subjects and JSON-like payloads.
func fillBig(t *testing.T, v Version, store string, o Options, compress bool, messages int) {
	making := store + ".making"
	must(t, os.RemoveAll(making))
	s := StartServer(t, v, making, o)
	f := NewFiller(t, s, "$G", 7, compress)
	f.stream("PERF", Cfg{"subjects": []string{"perf.>"}})
	pool := make([][]byte, 5000)
	words := make([]string, 4096)
	for i := range words {
		words[i] = strconv.FormatUint(f.rng.Uint64()>>24, 16)
	}
	for i := range pool {
		b := fmt.Appendf(nil, `{"id":%d,"items":[`, f.rng.Uint32())
		for len(b) < 497 {
			b = fmt.Appendf(b, "%q,", words[f.rng.Intn(len(words))])
		}
		pool[i] = append(b[:498], "]}"...)
	}
	js, err := f.nc.JetStream(nats.PublishAsyncMaxPending(4000))
	must(t, err)
	rng := rand.New(rand.NewSource(8))
	for i := range messages {
		_, err := js.PublishAsync("perf."+strconv.Itoa(rng.Intn(1000)), pool[i%len(pool)])
		must(t, err)
	}
	<-js.PublishAsyncComplete()
	time.Sleep(3 * time.Second) // the server syncs, compresses and writes its index
	s.Stop()
	must(t, os.Rename(making, store))
}

var restored = regexp.MustCompile(`(?m)^\[\d+\] (\S+ \S+) \[INF\]\s+(Starting restore|Restored [\d,]+ messages) for stream`)

// recovery is how long the server's own scan of the blocks takes, by its log: on a copy, without index.db.
func recovery(t *testing.T, v Version, store, copied string, o Options) float64 {
	must(t, os.RemoveAll(copied))
	run(t, "cp", "-r", store, copied)
	defer os.RemoveAll(copied)
	indexes, _ := filepath.Glob(filepath.Join(copied, "jetstream", "*", "streams", "*", "msgs", "index.db"))
	for _, index := range indexes {
		must(t, os.Remove(index))
	}
	s := StartServer(t, v, copied, o)
	lines := restored.FindAllStringSubmatch(s.Log(), -1)
	s.Kill()
	if len(lines) != 2 {
		t.Fatalf("the log does not tell how long recovery took:\n%s", s.Log())
	}
	var at [2]time.Time
	for i, line := range lines {
		var err error
		at[i], err = time.Parse("2006/01/02 15:04:05.000000", line[1])
		must(t, err)
	}
	return at[1].Sub(at[0]).Seconds()
}

type usage struct {
	seconds float64
	cpu     float64 // seconds of all threads, user and system
	rss     int64   // KiB
}

func timed(t *testing.T, o Options, name string, args ...string) usage {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "JETSAM_KEY="+o.Key)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	seconds := time.Since(start).Seconds()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	cpu := (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	return usage{seconds, cpu, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func treeBytes(t *testing.T, dir string) (n int64) {
	must(t, filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		n += info.Size()
		return err
	}))
	return n
}

// TestSideBySideArchives times `jetsam backup` and `jetsam restore` beside the same through the API of a real server,
// with the library that the nats CLI uses, turn by turn; see [TestSideBySide].
func TestSideBySideArchives(t *testing.T) {
	dir := os.Getenv("JETSAM_BENCH")
	if dir == "" {
		t.Skip("JETSAM_BENCH is not set")
	}
	messages, rounds := number("JETSAM_BENCH_MESSAGES", 2_000_000), number("JETSAM_BENCH_ROUNDS", 5)
	o := Options{}
	store := filepath.Join(dir, fmt.Sprintf("plain-%d", messages))
	if _, err := os.Stat(store); err != nil {
		fillBig(t, "2.14.9", store, o, false, messages)
	}
	fmt.Printf("%s, %d cores, %d messages of 500 bytes, median of %d rounds\n\n", cpu(), runtime.NumCPU(), messages, rounds)
	fmt.Println("| what | nats-server | jetsam | ratio | jetsam's CPU | peak RSS | sizes |")
	fmt.Println("|---|---|---|---|---|---|---|")
	for _, v := range []Version{"2.14.9", "2.15.2"} {
		format := "v1"
		if !v.Before(2, 15, 0) {
			format = "v2"
		}
		var server, own, ownCPU, serverBack, ownBack, ownBackCPU []float64
		var rss, rssBack, size, ownSize int64
		for range rounds {
			work, err := os.MkdirTemp(dir, "work")
			must(t, err)
			copied, theirs, ours := filepath.Join(work, "store"), filepath.Join(work, "theirs"), filepath.Join(work, "ours")
			run(t, "cp", "-r", store, copied)
			s := StartServer(t, v, copied, o)
			nc := s.Connect("$G")
			start := time.Now()
			Snapshot(t, nc, "PERF", theirs)
			server = append(server, time.Since(start).Seconds())
			s.Stop()
			must(t, os.RemoveAll(copied))
			run(t, "sync")
			r := timed(t, o, jetsamBin(), "backup", "-q", "--format", format, store, ours, "-s", "PERF")
			own, ownCPU, rss = append(own, r.seconds), append(ownCPU, r.cpu), max(rss, r.rss)
			size, ownSize = treeBytes(t, theirs), treeBytes(t, ours)

			s = StartServer(t, v, filepath.Join(work, "new"), o)
			start = time.Now()
			must(t, Restore(t, s.Connect("$G"), "PERF", theirs, nil))
			serverBack = append(serverBack, time.Since(start).Seconds())
			s.Stop()
			must(t, os.RemoveAll(filepath.Join(work, "new")))
			run(t, "sync")
			r = timed(t, o, jetsamBin(), "restore", "-q", theirs, filepath.Join(work, "restored"))
			ownBack, ownBackCPU, rssBack = append(ownBack, r.seconds), append(ownBackCPU, r.cpu), max(rssBack, r.rss)
			must(t, os.RemoveAll(work))
		}
		for _, row := range []struct {
			what      string
			a, b, cpu []float64
			rss       int64
			detail    string
		}{
			{"backup, " + format + ", " + string(v), server, own, ownCPU, rss, fmt.Sprintf("%.1f MB, jetsam %.1f MB", float64(size)/1e6, float64(ownSize)/1e6)},
			{"restore, " + format + ", " + string(v), serverBack, ownBack, ownBackCPU, rssBack, ""},
		} {
			a, b := median(row.a), median(row.b)
			fmt.Printf("| %s | %.2f s | %.2f s | %.1f | %.2f s | %d MiB | %s |\n", row.what, a, b, a/b, median(row.cpu), row.rss>>10, row.detail)
		}
	}
	// What else one would do with the directory, which proves nothing.
	fmt.Println("\n| other tools | time | bytes |\n|---|---|---|")
	var copied, packed []float64
	var size int64
	for range rounds {
		to := filepath.Join(dir, "copy")
		must(t, os.RemoveAll(to))
		run(t, "sync")
		start := time.Now()
		run(t, "cp", "-r", store, to)
		run(t, "sync", "-f", to)
		copied = append(copied, time.Since(start).Seconds())
		must(t, os.RemoveAll(to))
		start = time.Now()
		size = packS2(t, store, filepath.Join(dir, "copy.tar.s2"))
		packed = append(packed, time.Since(start).Seconds())
	}
	fmt.Printf("| `cp -r` and `sync` | %.2f s | %.1f MB |\n", median(copied), float64(treeBytes(t, store))/1e6)
	fmt.Printf("| `tar`, the S2 writer of the `nats` CLI, `sync` | %.2f s | %.1f MB |\n", median(packed), float64(size)/1e6)
}

// packS2 is `tar | s2`: it gives the size of the file, which it removes.
func packS2(t *testing.T, from, to string) int64 {
	t.Helper()
	file, err := os.Create(to)
	must(t, err)
	defer os.Remove(to)
	w := s2.NewWriter(file)
	cmd := exec.Command("tar", "-cf", "-", "-C", from, ".")
	cmd.Stdout = w
	must(t, cmd.Run())
	must(t, w.Close())
	must(t, file.Sync())
	info, err := file.Stat()
	must(t, err)
	must(t, file.Close())
	return info.Size()
}
