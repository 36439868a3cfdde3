// Package live tests jetsam against real NATS servers: it starts released servers, uses them, asks them what they
// hold, stops or kills them, and compares with what jetsam reads out of the directory that is left.
//
//	go test -parallel 4            the whole suite (three minutes on two cores)
//	go test -run TestStores/2.15   one server line
//
// Environment:
//
//	JETSAM_BIN        the binary; default ../../target/release/jetsam
//	JETSAM_MAKE_STORE the store generator; default examples/make_store beside the binary
//	JETSAM_SERVERS    cache of servers, one directory per version; default ../../target/servers
//	                  (missing ones are installed with `go install`)
//	JETSAM_VERSIONS   comma-separated subset of versions, e.g. 2.9.25,2.15.2
//	JETSAM_SEED       seed of everything random; default 1
//	JETSAM_LIVE_ALL   if set, every fixture in every form on every server (ten minutes), not a choice of them
//	JETSAM_TINY_OUT   where TestMakeTiny puts the stores of fixtures/tiny
//	JETSAM_NO_BIN     if set, leave jetsam out and only test the harness: a server is its own oracle after a restart
//
// Everything listens on 127.0.0.1 and every server is killed when its test ends.
package live
