//! Reading verbs leave the source as it is: bytes, names, modes, and every time except that of access.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use common::{Fixture, copy_tree, fingerprint, stream_dirs};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Runs every reading verb; what they say is for other tests.
fn read_everything(fx: &Fixture, store: &Path) {
    let run = |args: &[&str], source: &Path| {
        let ran = fx.jetsam().args(args).arg(source).run();
        assert!(
            matches!(ran.status, Some(0 | 1)),
            "{}: {:?}\n{}",
            ran.line,
            ran.status,
            ran.stderr
        );
    };
    run(&["ls", "--consumers"], store);
    run(&["info", "--json", "--deleted", "--subjects"], store);
    run(&["view", "--json", "--deleted"], store);
    run(&["check", "--json"], store);
    let ran = fx
        .jetsam()
        .arg("diff")
        .arg(store)
        .arg(store)
        .run()
        .status(0);
    drop(ran);
    let (_, _, dir) = &stream_dirs(store)[0];
    for file in fs::read_dir(dir.join("msgs")).unwrap() {
        run(&["inspect", "--json"], &file.unwrap().path());
    }
}

fn leaves_untouched(name: &str) {
    let fx = Fixture::open(name);
    let work = tempfile::tempdir().unwrap();
    let store = work.path().join("store");
    copy_tree(&fx.stores()[0], &store);
    let before = fingerprint(&store);
    assert!(before.len() > 20);
    read_everything(&fx, &store);
    assert_eq!(before, fingerprint(&store), "{name}");

    // The same where nothing could be written. Root may write everywhere, hence the comparison all the same.
    let mut dirs: Vec<_> = before.keys().cloned().collect();
    for path in &dirs {
        let mode = fs::symlink_metadata(path).unwrap().permissions().mode();
        fs::set_permissions(path, fs::Permissions::from_mode(mode & !0o222)).unwrap();
    }
    let before = fingerprint(&store);
    read_everything(&fx, &store);
    let after = fingerprint(&store);
    dirs.retain(|p| p.is_dir());
    for path in &dirs {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap(); // so that it can be deleted
    }
    assert_eq!(before, after, "{name}, read-only");
}

macro_rules! untouched {
    ($($test:ident = $name:literal,)*) => { $(#[test] fn $test() { leaves_untouched($name); })* };
}

untouched! {
    old_store = "2.2.6-basic",
    old_encrypted_store = "2.7.4-chacha-basic",
    killed_before_index_db = "2.9.25-kill-basic",
    compressed_and_encrypted_store = "2.10.29-chacha-compress",
    killed_store = "2.14.5-kill-basic",
    aes_store = "2.14.5-aes-basic",
    new_store = "2.15.2-basic",
}

#[test]
fn archives_are_left_untouched() {
    for name in ["2.9.25-basic", "2.14.5-basic", "2.15.2-basic"] {
        let fx = Fixture::open(name);
        let work = tempfile::tempdir().unwrap();
        let dir = work.path().join("snapshots");
        copy_tree(&fx.dir.join("snapshots/$G"), &dir);
        let before = fingerprint(&dir);
        for stream in ["ORDERS", "WORK"] {
            let archive = dir.join(format!("{stream}.tar.s2"));
            for verb in ["ls", "info", "view", "check"] {
                fx.jetsam()
                    .arg(verb)
                    .arg("--json")
                    .arg(&archive)
                    .run()
                    .status(0);
            }
        }
        assert_eq!(before, fingerprint(&dir), "{name}");
    }
}
