package live

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// Versions under test: the last release of each line that people still run.
var Versions = []string{"2.9.25", "2.10.29", "2.12.15", "2.14.9", "2.15.2"}

// Version is a server release that can be compared.
type Version string

// Before tells whether v is older than major.minor.patch.
func (v Version) Before(major, minor, patch int) bool {
	want := []int{major, minor, patch}
	for i, part := range strings.Split(string(v), ".") {
		n, _ := strconv.Atoi(part)
		if n != want[i] {
			return n < want[i]
		}
	}
	return false
}

func testVersions() []string {
	if s := os.Getenv("JETSAM_VERSIONS"); s != "" {
		return strings.Split(s, ",")
	}
	return Versions
}

var installing sync.Mutex

// ServerBinary gives the path of a released server, installing it on first use.
func ServerBinary(t testing.TB, v Version) string {
	t.Helper()
	cache := os.Getenv("JETSAM_SERVERS")
	if cache == "" {
		cache = filepath.Join("..", "..", "target", "servers")
	}
	cache, err := filepath.Abs(cache)
	must(t, err)
	bin := filepath.Join(cache, string(v), "nats-server")
	installing.Lock()
	defer installing.Unlock()
	if _, err := os.Stat(bin); err == nil {
		return bin
	}
	must(t, os.MkdirAll(cache, 0o755))
	tmp, err := os.MkdirTemp(cache, ".install-")
	must(t, err)
	defer os.RemoveAll(tmp)
	cmd := exec.Command("go", "install", "github.com/nats-io/nats-server/v2@v"+string(v))
	cmd.Dir = tmp // outside of this module
	cmd.Env = append(os.Environ(), "GOBIN="+tmp, "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("install nats-server %s: %v\n%s", v, err, out)
	}
	must(t, os.MkdirAll(filepath.Dir(bin), 0o755))
	must(t, os.Rename(filepath.Join(tmp, "nats-server"), bin))
	return bin
}

// Options of a server's start.
type Options struct {
	Key      string   // encrypts the store
	PrevKey  string   // 2.10+
	Cipher   string   // chacha or aes
	Accounts []string // user and password are the account's name; none: the global account $G
	Extra    string   // more lines for the jetstream block
}

// Server is a running nats-server, or one that ran.
type Server struct {
	Version  Version
	StoreDir string
	Opts     Options
	Started  time.Time
	URL      string

	t    testing.TB
	cmd  *exec.Cmd
	dir  string
	log  bytes.Buffer
	mu   sync.Mutex
	done chan struct{}
	conn map[string]*nats.Conn
}

// StartServer starts a released server on storeDir (which may be new) and waits until JetStream answers.
// It is killed when the test ends.
func StartServer(t testing.TB, v Version, storeDir string, o Options) *Server {
	t.Helper()
	s := &Server{Version: v, StoreDir: storeDir, Opts: o, t: t, dir: t.TempDir(), done: make(chan struct{}), conn: map[string]*nats.Conn{}}
	conf := &strings.Builder{}
	fmt.Fprintf(conf, "listen: \"127.0.0.1:-1\"\nserver_name: live\nports_file_dir: %q\n", s.dir)
	fmt.Fprintf(conf, "jetstream {\n  store_dir: %q\n  max_file: 4G\n  max_mem: 64M\n", storeDir)
	if o.Key != "" {
		fmt.Fprintf(conf, "  key: %q\n  cipher: %s\n", o.Key, o.Cipher)
	}
	if o.PrevKey != "" {
		fmt.Fprintf(conf, "  prev_key: %q\n", o.PrevKey)
	}
	fmt.Fprintf(conf, "%s}\n", o.Extra)
	if len(o.Accounts) > 0 {
		conf.WriteString("accounts {\n")
		for _, a := range o.Accounts {
			fmt.Fprintf(conf, "  %s { jetstream: enabled, users: [{user: %s, password: %s}] }\n", a, a, a)
		}
		conf.WriteString("}\n")
	}
	path := filepath.Join(s.dir, "server.conf")
	must(t, os.WriteFile(path, []byte(conf.String()), 0o600))

	s.cmd = exec.Command(ServerBinary(t, v), "-c", path)
	s.cmd.Stdout, s.cmd.Stderr = s, s
	s.cmd.SysProcAttr = dieWithParent()
	s.Started = time.Now()
	must(t, s.cmd.Start())
	go func() { _ = s.cmd.Wait(); close(s.done) }()
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			for _, line := range strings.Split(s.Log(), "\n") {
				if strings.Contains(line, "[WRN]") || strings.Contains(line, "[ERR]") || strings.Contains(line, "[FTL]") || strings.Contains(line, "panic") {
					t.Logf("nats-server %s: %s", v, line)
				}
			}
		}
	})

	deadline := time.Now().Add(30 * time.Second)
	for s.URL == "" {
		if files, _ := filepath.Glob(filepath.Join(s.dir, "nats-server_*.ports")); len(files) == 1 {
			var ports struct {
				Nats []string `json:"nats"`
			}
			if b, err := os.ReadFile(files[0]); err == nil && json.Unmarshal(b, &ports) == nil && len(ports.Nats) > 0 {
				s.URL = ports.Nats[0]
				break
			}
		}
		select {
		case <-s.done:
			t.Fatalf("nats-server %s ended at start:\n%s", v, s.Log())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("nats-server %s does not come up:\n%s", v, s.Log())
		}
	}
	for _, a := range s.AccountNames() {
		nc := s.Connect(a)
		for {
			if _, err := nc.Request("$JS.API.INFO", nil, time.Second); err == nil {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("nats-server %s: JetStream does not answer: %v\n%s", v, err, s.Log())
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return s
}

// Write takes the server's output.
func (s *Server) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

// Log is what the server has written so far.
func (s *Server) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// Pid of the server.
func (s *Server) Pid() int { return s.cmd.Process.Pid }

// AccountNames of this server: $G if none were given.
func (s *Server) AccountNames() []string {
	if len(s.Opts.Accounts) == 0 {
		return []string{"$G"}
	}
	return s.Opts.Accounts
}

// Connect gives the connection to an account, the same one each time.
func (s *Server) Connect(account string) *nats.Conn {
	s.t.Helper()
	if nc := s.conn[account]; nc != nil {
		return nc
	}
	opts := []nats.Option{nats.Timeout(10 * time.Second), nats.NoReconnect(), nats.CustomInboxPrefix("_INBOX_live")}
	if account != "$G" {
		opts = append(opts, nats.UserInfo(account, account))
	}
	nc, err := nats.Connect(s.URL, opts...)
	must(s.t, err)
	s.conn[account] = nc
	return nc
}

func (s *Server) end(sig os.Signal, patience time.Duration) error {
	for _, nc := range s.conn {
		nc.Close()
	}
	s.conn = map[string]*nats.Conn{}
	select {
	case <-s.done:
		return nil
	default:
	}
	_ = s.cmd.Process.Signal(sig)
	select {
	case <-s.done:
		return nil
	case <-time.After(patience):
		_ = s.cmd.Process.Kill()
		<-s.done
		return errors.New("it had to be killed")
	}
}

// Stop ends the server as an operator does (SIGTERM).
func (s *Server) Stop() {
	s.t.Helper()
	if err := s.end(syscall.SIGTERM, 20*time.Second); err != nil {
		s.t.Fatalf("stop nats-server %s: %v\n%s", s.Version, err, s.Log())
	}
}

// Kill ends the server at once (SIGKILL); it may be called at any time.
func (s *Server) Kill() { _ = s.end(syscall.SIGKILL, 20*time.Second) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
