package live

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Ran is how a call of jetsam ended.
type Ran struct {
	Args   []string
	Code   int
	Stdout []byte
	Stderr string
}

// HaveJetsam tells whether there is a binary to test; without one only the harness itself is.
func HaveJetsam(t testing.TB) bool {
	t.Helper()
	if os.Getenv("JETSAM_NO_BIN") != "" {
		return false
	}
	if _, err := os.Stat(jetsamBin()); err != nil {
		t.Fatalf("no jetsam binary (set JETSAM_BIN, or JETSAM_NO_BIN to test the harness alone): %v", err)
	}
	return true
}

func jetsamBin() string {
	bin := os.Getenv("JETSAM_BIN")
	if bin == "" {
		bin = filepath.Join("..", "..", "target", "release", "jetsam")
	}
	bin, _ = filepath.Abs(bin)
	return bin
}

// patience with one call of jetsam.
var patience = time.Minute

// Jetsam runs the binary; key goes through the environment.
func Jetsam(t testing.TB, key string, args ...string) Ran {
	t.Helper()
	cmd := exec.Command(jetsamBin(), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(os.Environ(), "JETSAM_KEY="+key, "NO_COLOR=1")
	if key == "" {
		cmd.Env = append(os.Environ(), "NO_COLOR=1")
	}
	done := make(chan error, 1)
	must(t, cmd.Start())
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		t.Fatalf("jetsam %q hangs", args)
	}
	return Ran{args, cmd.ProcessState.ExitCode(), out.Bytes(), errs.String()}
}

// Want fails the test unless the call ended with one of these codes.
func (r Ran) Want(t testing.TB, codes ...int) Ran {
	t.Helper()
	for _, c := range codes {
		if r.Code == c {
			return r
		}
	}
	t.Fatalf("jetsam %q: exit %d, want %v\nstdout: %.2000s\nstderr: %s", r.Args, r.Code, codes, r.Stdout, r.Stderr)
	return r
}

// ReadJetsam puts together what `info` and `view` say of a source, in the form of the truth.
func ReadJetsam(t testing.TB, source, key string, more ...string) Truth {
	t.Helper()
	truth := Truth{}
	var infos []struct {
		Account string `json:"account"`
		Config  struct {
			Name string `json:"name"`
		} `json:"config"`
	}
	var streams []struct {
		Stream
		Consumers []*Consumer `json:"consumers"`
	}
	ran := Jetsam(t, key, append(append([]string{"info", "--json", "--deleted", "--subjects"}, more...), source)...).Want(t, 0)
	for _, into := range []any{&infos, &streams} {
		if err := json.Unmarshal(ran.Stdout, into); err != nil {
			t.Fatalf("jetsam info: %v\n%.2000s", err, ran.Stdout)
		}
	}
	for i, about := range infos {
		st := streams[i].Stream
		st.Consumers = map[string]*Consumer{}
		for _, c := range streams[i].Consumers {
			st.Consumers[c.Name] = c
		}
		if truth[about.Account] == nil {
			truth[about.Account] = map[string]*Stream{}
		}
		truth[about.Account][about.Config.Name] = &st
	}
	ran = Jetsam(t, key, append(append([]string{"view", "--json"}, more...), source)...).Want(t, 0)
	lines := bufio.NewScanner(bytes.NewReader(ran.Stdout))
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var m struct {
			Account string `json:"account"`
			Stream  string `json:"stream"`
			Message
		}
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			t.Fatalf("jetsam view: %v\n%.2000s", err, lines.Bytes())
		}
		st := truth[m.Account][m.Stream]
		if st == nil {
			t.Fatalf("jetsam view: a message of %s/%s, which info does not know", m.Account, m.Stream)
		}
		st.Messages = append(st.Messages, m.Message)
	}
	must(t, lines.Err())
	return truth
}

// Finding is one line of `check`.
type Finding struct {
	Code, Severity, Account, Stream, Consumer, File, Detail string
}

// CheckHealthy fails the test if `check` finds an error, or anything worse than worst.
func CheckHealthy(t testing.TB, source, key, worst string) {
	t.Helper()
	ran := Jetsam(t, key, "check", "--json", source)
	var got struct {
		Findings []Finding `json:"findings"`
	}
	if err := json.Unmarshal(ran.Stdout, &got); err != nil {
		t.Errorf("jetsam check: exit %d: %v\n%.2000s\n%s", ran.Code, err, ran.Stdout, ran.Stderr)
		return
	}
	rank := map[string]int{"note": 0, "warning": 1, "error": 2}
	for _, f := range got.Findings {
		if rank[f.Severity] > rank[worst] {
			t.Errorf("jetsam check of a healthy store: %+v", f)
		}
	}
	if ran.Code != 0 {
		t.Errorf("jetsam check of a healthy store: exit %d\n%s", ran.Code, ran.Stderr)
	}
}

// CopyTree copies a store.
func CopyTree(t testing.TB, from, to string) {
	t.Helper()
	must(t, os.CopyFS(to, os.DirFS(from)))
}
