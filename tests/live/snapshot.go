package live

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/jsm.go"
	"github.com/nats-io/jsm.go/api"
	"github.com/nats-io/nats.go"
)

// Snapshot has the server make a backup directory of a stream, as `nats stream backup` does.
func Snapshot(t testing.TB, nc *nats.Conn, stream, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	mgr, err := jsm.New(nc, jsm.WithTimeout(10*time.Second))
	must(t, err)
	st, err := mgr.LoadStream(stream)
	must(t, err)
	if _, err := st.SnapshotToDirectory(ctx, dir, jsm.SnapshotConsumers()); err != nil {
		t.Fatalf("snapshot of %s: %v", stream, err)
	}
}

// Restore gives a backup directory to the server, as `nats stream restore` does. config, if not nil, replaces the
// configuration in backup.json.
func Restore(t testing.TB, nc *nats.Conn, stream, dir string, config *api.StreamConfig) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	mgr, err := jsm.New(nc, jsm.WithTimeout(10*time.Second))
	must(t, err)
	var opts []jsm.SnapshotOption
	if config != nil {
		opts = append(opts, jsm.RestoreConfiguration(*config))
	}
	_, _, err = mgr.RestoreSnapshotFromDirectory(ctx, stream, dir, opts...)
	return err
}
