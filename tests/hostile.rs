//! Damaged, absurd and malicious sources: no panic, the documented exit status, a message that names the file, the
//! rest still read, nothing written, memory and time bounded.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use common::{Differences, Fixture, Jetsam, Ran, copy_tree, fingerprint, fixtures_dir};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const BASIC: &str = "2.14.5-basic";
/// Address space, KiB: far less than what the hostile files claim to need.
const MEMORY: u64 = 1_500_000;
/// Seconds of processor time for one call, without optimisation.
const PATIENCE: u64 = 30;

/// `jetsam` with bounded memory and time.
fn bounded(key: Option<&str>) -> Jetsam {
    let mut j = Jetsam::new();
    let program = j.command.get_program().to_owned();
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!(
            "ulimit -v {MEMORY} && ulimit -t {PATIENCE} && exec \"$@\""
        ))
        .arg("sh")
        .arg(program)
        .env_remove("JETSAM_KEY")
        .env("NO_COLOR", "1");
    if let Some(key) = key {
        command.env("JETSAM_KEY", key);
    }
    j.command = command;
    j
}

/// Runs a verb and fails on a panic, a signal, a timeout, or a status that is not allowed.
#[track_caller]
fn run(what: &str, key: Option<&str>, args: &[&str], source: &Path, allowed: &[i32]) -> Ran {
    let ran = bounded(key)
        .args(args)
        .args(["--threads", "2"])
        .arg(source)
        .run();
    assert!(
        ran.status.is_some_and(|s| allowed.contains(&s)) && !ran.stderr.contains("panicked"),
        "{what}: {}: {:?}\n{}\n{}",
        ran.line,
        ran.status,
        ran.stderr,
        ran.text().chars().take(2000).collect::<String>()
    );
    ran
}

fn said(ran: &Ran) -> String {
    ran.text() + &ran.stderr
}

/// A small generator of numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// What can be done to a file: a name, the bytes, and whether it was only cut.
fn mutations(good: &[u8], random: &mut Random) -> Vec<(String, Vec<u8>, bool)> {
    let n = good.len();
    let mut out = Vec::new();
    let mut lens = vec![0, 1, 4, 8, 16, 22, 30, n / 4, n / 2, n * 3 / 4];
    lens.extend([9, 8, 5, 1].map(|k| n.saturating_sub(k)));
    lens.extend((0..2).map(|_| random.next() as usize % n));
    lens.retain(|l| *l < n);
    lens.sort_unstable();
    lens.dedup();
    out.extend(
        lens.into_iter()
            .map(|l| (format!("cut to {l} of {n}"), good[..l].to_vec(), true)),
    );
    for (name, bytes) in [
        ("random", random.bytes(n)),
        ("random, long", random.bytes(5000)),
        ("ones", vec![0xff; n]),
        ("zeros", vec![0; n]),
        ("zeros, long", vec![0; 100_000]),
        ("text", b"{\"name\":".repeat(n / 8 + 1)),
        ("brackets", b"[".repeat(200_000)),
        ("appended", [good, &random.bytes(1000)].concat()),
        ("twice", [good, good].concat()),
    ] {
        out.push((name.to_owned(), bytes, false));
    }
    let absurd: [&[u8]; 5] = [
        &[0xff; 4],
        &[0xff; 8],
        &[0xff, 0xff, 0xff, 0x7f],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0, 0, 0, 0],
    ];
    for i in 0..9usize {
        let at = if i < 6 {
            i * 4
        } else {
            random.next() as usize % n
        };
        let value = absurd[(i + random.next() as usize) % absurd.len()];
        let mut bytes = good.to_vec();
        if let Some(slot) = bytes.get_mut(at..at + value.len()) {
            slot.copy_from_slice(value);
            out.push((format!("{value:02x?} at {at}"), bytes, false));
        }
    }
    out
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fingerprint(dir)
        .into_keys()
        .filter(|p| p.is_file())
        .collect();
    all.sort();
    all
}

/// A cut that nothing on disk could tell.
fn unseen_cut(file: &Path, bytes: &[u8], good: &[u8]) -> bool {
    match (
        file.file_name().unwrap().to_str().unwrap(),
        file.extension().and_then(OsStr::to_str),
    ) {
        // None is written before the first delivery.
        ("o.dat", _) => bytes.is_empty(),
        // No checksum; empty ones are left beside empty blocks.
        (_, Some("idx")) => bytes.is_empty() || bytes.len() + 1 == good.len(),
        // Only records of deletes are gone from the end.
        (_, Some("blk")) => good.len() - bytes.len() <= 60,
        _ => false,
    }
}

/// Mutates each file of a tiny store, beside another account whose stream must not suffer.
fn every_file(name: &str) {
    let fx = Fixture::open_kind("tiny", name);
    let neighbour = Fixture::open_kind("tiny", "2.14.9-plain");
    let work = tempfile::tempdir().unwrap();
    let store = work.path().join("store");
    copy_tree(&fx.stores()[0], &store);
    copy_tree(
        &neighbour.stores()[0].join("jetstream/$G"),
        &store.join("jetstream/OTHER"),
    );
    let want: Vec<Value> = neighbour
        .view_lines("$G", "TINY")
        .into_iter()
        .map(|mut l| {
            l["account"] = "OTHER".into();
            l
        })
        .collect();
    let victim = store.join("jetstream/$G");
    let allowed: &[i32] = if fx.key().is_some() {
        &[0, 1, 4]
    } else {
        &[0, 1]
    };
    let mut random = Random(0x6a65_7473_616d ^ name.len() as u64);
    let mut silent = Vec::new();
    for file in files(&victim) {
        let good = fs::read(&file).unwrap();
        for (i, (what, bytes, cut)) in mutations(&good, &mut random).into_iter().enumerate() {
            fs::write(&file, &bytes).unwrap();
            let before = fingerprint(&store);
            let rel = file.strip_prefix(&store).unwrap().to_str().unwrap();
            let what = format!("{name}: {rel}: {what}");
            let view = run(
                &what,
                fx.key(),
                &["view", "--json", "--deleted"],
                &store,
                allowed,
            );
            let mut others = view.json_lines();
            others.retain(|l| l["account"] == "OTHER" && l.get("deleted").is_none());
            let mut d = Differences::default();
            d.lines("OTHER", &others, &want);
            d.none(&what);
            let check = run(&what, fx.key(), &["check", "--json"], &store, allowed);
            let report = check.json();
            let bad: Vec<&Value> = report["findings"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|f| f["severity"] != "note")
                .collect();
            assert_eq!(
                check.status == Some(0),
                !bad.iter().any(|f| f["severity"] == "error"),
                "{what}: {bad:?}"
            );
            for f in &bad {
                let place = f["file"].as_str().unwrap_or_default();
                assert!(
                    place.starts_with("jetstream/$G/streams/TINY/"),
                    "{what}: {f}"
                );
            }
            if cut && bad.is_empty() && !unseen_cut(&file, &bytes, &good) {
                silent.push(what.clone());
            }
            if i % 3 == 0 {
                let inspect = run(&what, fx.key(), &["inspect", "--json"], &file, &[0, 1, 4]);
                assert!(inspect.json_lines().iter().all(Value::is_object));
            }
            assert_eq!(before, fingerprint(&store), "{what}");
        }
        fs::write(&file, &good).unwrap();
    }
    assert!(
        silent.is_empty(),
        "check says nothing:\n  {}",
        silent.join("\n  ")
    );
}

macro_rules! every_file {
    ($($test:ident = $name:literal,)*) => { $(#[test] fn $test() { every_file($name); })* };
}

every_file! {
    every_file_of_2_2 = "2.2.6-plain",
    every_file_of_2_9 = "2.9.25-plain",
    every_file_of_2_14 = "2.14.9-plain",
    every_file_of_2_14_aes = "2.14.9-aes",
    every_file_of_2_15_s2 = "2.15.2-s2",
    every_file_of_2_15_s2_chacha = "2.15.2-s2-chacha",
}

// Archives.

fn vector(name: &str) -> Vec<u8> {
    fs::read(fixtures_dir().join("vectors/archive").join(name)).unwrap()
}

#[test]
fn every_archive() {
    let work = tempfile::tempdir().unwrap();
    let mut random = Random(7);
    for name in ["2.2.6.tar.s2", "2.14.5.tar.s2", "2.15.2.tar.s2"] {
        let good = vector(name);
        let mut kinds = vec![(name.to_owned(), good.clone())];
        if !name.starts_with("2.15") {
            let tar = unpack_s2(&good);
            kinds.push((name.replace(".s2", ""), tar.clone()));
            kinds.push((name.replace(".tar.s2", ".tgz"), gzip(&tar)));
        } else {
            kinds.push(("plain.v2".to_owned(), unpack_s2(&good)));
        }
        for (name, good) in kinds {
            let file = work.path().join(&name);
            for (what, bytes, cut) in mutations(&good, &mut random) {
                fs::write(&file, &bytes).unwrap();
                let before = fingerprint(work.path());
                let what = format!("{name}: {what}");
                run(&what, None, &["view", "--json"], &file, &[0, 1, 2]);
                let check = run(&what, None, &["check"], &file, &[0, 1, 2]);
                if check.status != Some(0) {
                    assert!(said(&check).contains(&name), "{what}: {}", said(&check));
                }
                let longer = what.ends_with("appended") || what.ends_with("twice");
                assert!(
                    check.status != Some(0) || !cut && (bytes.len() == good.len() || longer),
                    "{what}: sound"
                );
                assert_eq!(before, fingerprint(work.path()), "{what}");
            }
            fs::remove_file(&file).unwrap();
        }
    }
}

fn unpack_s2(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    minlz::Reader::new(bytes).read_to_end(&mut out).unwrap();
    out
}

fn pack_s2(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut w = minlz::Writer::new(&mut out);
    w.write_all(bytes).unwrap();
    w.flush().unwrap();
    drop(w);
    out
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    w.write_all(bytes).unwrap();
    w.finish().unwrap()
}

/// The members of a good archive, and what a test adds.
fn tar_with(extra: &[(&[u8], tar::EntryType, &str, Vec<u8>)]) -> Vec<u8> {
    let good = unpack_s2(&vector("2.14.5.tar.s2"));
    let mut out = Vec::new();
    for (name, kind, link, body) in extra {
        let mut h = tar::Header::new_ustar();
        h.as_mut_bytes()[..name.len()].copy_from_slice(name);
        h.set_entry_type(*kind);
        h.set_mode(0o644);
        h.set_size(body.len() as u64);
        if !link.is_empty() {
            h.set_link_name_literal(link).unwrap();
        }
        h.set_cksum();
        out.extend_from_slice(h.as_bytes());
        out.extend_from_slice(body);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    [out, good].concat()
}

#[test]
fn members_that_no_server_writes() {
    use tar::EntryType as T;
    let work = tempfile::tempdir().unwrap();
    let dir = work.path().join("a/b");
    fs::create_dir_all(&dir).unwrap();
    let body = b"evil".to_vec();
    let cases: Vec<(&[u8], T, &str, Vec<u8>)> = vec![
        (b"../../evil", T::Regular, "", body.clone()),
        (b"msgs/../../../evil", T::Regular, "", body.clone()),
        (b"/tmp/jetsam-evil", T::Regular, "", body.clone()),
        (b"msgs/9.blk", T::Symlink, "/etc/passwd", vec![]),
        (b"msgs/9.blk", T::Link, "../../../etc/passwd", vec![]),
        (b"msgs/9.blk", T::Char, "", vec![]),
        (b"msgs/9.blk", T::Block, "", vec![]),
        (b"msgs/9.blk", T::Fifo, "", vec![]),
        (
            b"meta.inf",
            T::Regular,
            "",
            b"{\"name\":\"OTHER\"}".to_vec(),
        ),
        (b"msgs/1.blk", T::Regular, "", body.clone()),
        (b"meta.inf", T::Directory, "", vec![]),
        (b"msgs/\xff\xfe.blk", T::Regular, "", body.clone()),
        (b"", T::Regular, "", body.clone()),
        (b"msgs/1.blk/x", T::Regular, "", body.clone()),
        (b"obs/../../x/meta.inf", T::Regular, "", body.clone()),
    ];
    for (i, case) in cases.iter().enumerate() {
        let what = format!("{i}: {}", String::from_utf8_lossy(case.0));
        let tar = tar_with(std::slice::from_ref(case));
        for (name, bytes) in [
            ("x.tar", tar.clone()),
            ("x.tar.s2", pack_s2(&tar)),
            ("x.tgz", gzip(&tar)),
        ] {
            let file = dir.join(name);
            fs::write(&file, bytes).unwrap();
            let before = fingerprint(work.path());
            for verb in ["ls", "info", "view"] {
                run(&what, None, &[verb], &file, &[0, 1]);
            }
            let check = run(&what, None, &["check", "--json"], &file, &[0, 1]).json();
            let findings = check["findings"].as_array().unwrap();
            assert!(
                findings
                    .iter()
                    .any(|f| f["severity"] != "note" || f["code"] == "odd_name"),
                "{what} in {name}: nothing found: {findings:?}"
            );
            assert_eq!(before, fingerprint(work.path()), "{what}");
            fs::remove_file(&file).unwrap();
        }
    }
    assert!(!Path::new("/tmp/jetsam-evil").exists());
}

#[test]
fn bombs() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("x.tar");
    // A block of zeros, small on disk.
    let header = |name: &str, size: &[u8; 12]| {
        let mut h = tar::Header::new_ustar();
        h.set_path(name).unwrap();
        h.set_entry_type(tar::EntryType::Regular);
        h.as_mut_bytes()[124..136].copy_from_slice(size);
        h.set_cksum();
        h.as_bytes().to_vec()
    };
    const BOMB: usize = 300 << 20;
    let octal: [u8; 12] = format!("{BOMB:011o}\0").into_bytes().try_into().unwrap();
    for member in ["msgs/1.blk", "meta.inf", "msgs/index.db"] {
        let head = header(member, &octal);
        let mut w = minlz::Writer::new(fs::File::create(&file).unwrap());
        w.write_all(&head).unwrap();
        let zeros = vec![0; 1 << 20];
        for _ in 0..BOMB >> 20 {
            w.write_all(&zeros).unwrap();
        }
        w.write_all(&tar_with(&[])).unwrap();
        w.flush().unwrap();
        drop(w);
        assert!(fs::metadata(&file).unwrap().len() < 40 << 20);
        for verb in ["view", "check"] {
            run(member, None, &[verb], &file, &[0, 1]);
        }
        if member == "msgs/1.blk" {
            let head = header(member, &octal);
            let mut w = flate2::write::GzEncoder::new(
                fs::File::create(&file).unwrap(),
                flate2::Compression::fast(),
            );
            w.write_all(&head).unwrap();
            for _ in 0..BOMB >> 20 {
                w.write_all(&zeros).unwrap();
            }
            w.finish().unwrap();
            run("gzip", None, &["check"], &file, &[1]);
        }
    }
    // Sizes that are not there, or that nobody could have.
    let mut base256 = [0xff; 12];
    base256[0] = 0x80;
    for size in [
        b"77777777777\0",
        b"99999999999\0",
        b"-0000000001\0",
        &base256,
        &[0xff; 12],
        &[0; 12],
    ] {
        for member in ["msgs/1.blk", "meta.inf"] {
            let tar = [header(member, size), tar_with(&[])].concat();
            for bytes in [pack_s2(&tar), tar.clone(), gzip(&tar)] {
                fs::write(&file, bytes).unwrap();
                run(
                    &format!("{member} {size:?}"),
                    None,
                    &["check"],
                    &file,
                    &[1, 2],
                );
                run(
                    &format!("{member} {size:?}"),
                    None,
                    &["view"],
                    &file,
                    &[0, 1, 2],
                );
            }
        }
    }
    // Very many members.
    let mut tar = Vec::new();
    for i in 0..50_000 {
        tar.extend(header(&format!("obs/{i}/meta.inf"), b"00000000000\0"));
    }
    tar.extend(tar_with(&[]));
    fs::write(&file, pack_s2(&tar)).unwrap();
    run("many members", None, &["check", "--json"], &file, &[0, 1]);
    // Names without end.
    let mut builder = tar::Builder::new(Vec::new());
    let deep = "a/".repeat(60_000) + "meta.inf";
    let mut h = tar::Header::new_gnu();
    h.set_size(4);
    builder.append_data(&mut h, &deep, &b"evil"[..]).unwrap();
    fs::write(
        &file,
        [builder.into_inner().unwrap(), tar_with(&[])].concat(),
    )
    .unwrap();
    run("deep name", None, &["check"], &file, &[0, 1, 2]);
}

#[test]
fn skippable_frames_without_end() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("x.tar.s2");
    let good = vector("2.14.5.tar.s2");
    let (identifier, rest) = good.split_at(10);
    for frame in [&[0xfe, 0, 0, 0][..], &[0x80, 1, 0, 0, 0], identifier] {
        let bytes = [identifier, &frame.repeat(1 << 20)].concat();
        fs::write(&file, &bytes).unwrap();
        run("nothing but frames", None, &["check"], &file, &[1, 2]);
        fs::write(&file, [&bytes, rest].concat()).unwrap();
        run("an archive after them", None, &["check"], &file, &[0, 1]);
        let view = run(
            "an archive after them",
            None,
            &["view", "--json"],
            &file,
            &[0, 1],
        );
        assert!(!view.json_lines().is_empty());
    }
    // A frame longer than the file, as long as can be said.
    for kind in [0x00, 0x01, 0xfe, 0x80, 0x02, 0x7f] {
        fs::write(
            &file,
            [identifier, &[kind, 0xff, 0xff, 0xff], rest].concat(),
        )
        .unwrap();
        run("frame too long", None, &["check"], &file, &[1, 2]);
    }
}

#[test]
fn natsarc1_with_absurd_numbers() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("x.tar.s2");
    let good = unpack_s2(&vector("2.15.2.tar.s2"));
    let big = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let too_big = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    // The first entry's header, borders between entries, and anywhere.
    let mut places: Vec<usize> = (8..28).collect();
    let mut random = Random(99);
    places.extend((0..60).map(|_| random.next() as usize % (good.len() - 10)));
    for at in places {
        for number in [&big, &too_big] {
            let replaced = [&good[..at], number, &good[at + 1..]].concat();
            for bytes in [pack_s2(&replaced), replaced] {
                fs::write(&file, bytes).unwrap();
                run(
                    &format!("{number:02x?} at {at}"),
                    None,
                    &["check"],
                    &file,
                    &[1, 2],
                );
            }
        }
    }
}

// Directories.

/// A store of its own, and the streams that nobody touches compared with the truth.
struct Store {
    fx: Fixture,
    work: tempfile::TempDir,
    dir: PathBuf,
}

impl Store {
    fn new() -> Self {
        let fx = Fixture::open(BASIC);
        let work = tempfile::tempdir().unwrap();
        let dir = work.path().join("store");
        copy_tree(&fx.stores()[0], &dir);
        Store { fx, work, dir }
    }

    fn stream(&self, name: &str) -> PathBuf {
        self.dir.join("jetstream/$G/streams").join(name)
    }

    /// All verbs, and of `check` the JSON.
    #[track_caller]
    fn survives(&self, damaged: &[&str], allowed: &[i32]) -> Value {
        let before = fingerprint(&self.dir);
        for verb in ["ls", "info"] {
            run(verb, None, &[verb], &self.dir, allowed);
            run(verb, None, &[verb, "--json"], &self.dir, allowed).json();
        }
        let view = run("view", None, &["view", "--json"], &self.dir, allowed).json_lines();
        let mut d = Differences::default();
        for (account, stream) in self.fx.stream_names() {
            if damaged.contains(&stream.as_str()) {
                continue;
            }
            let got: Vec<Value> = view
                .iter()
                .filter(|l| l["stream"] == stream.as_str())
                .cloned()
                .collect();
            d.lines(&stream, &got, &self.fx.view_lines(&account, &stream));
        }
        d.none("streams beside the damaged ones");
        let check = run("check", None, &["check", "--json"], &self.dir, allowed).json();
        run("check", None, &["check"], &self.dir, allowed);
        assert_eq!(before, fingerprint(&self.dir));
        check
    }
}

#[track_caller]
fn finding<'a>(report: &'a Value, file: &str) -> &'a Value {
    report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["file"] == file)
        .unwrap_or_else(|| panic!("nothing about {file}: {report:#}"))
}

const VERBS: [&str; 4] = ["ls", "info", "view", "check"];

#[test]
fn what_is_no_store() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir_all(at("photos/2020/summer")).unwrap();
    fs::write(at("photos/2020/1.jpg"), b"\xff\xd8\xff").unwrap();
    fs::write(at("text"), "hello\n").unwrap();
    fs::write(at("nothing"), "").unwrap();
    fs::write(at("random"), Random(5).bytes(10_000)).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    symlink("loop", at("loop")).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(at("pipe"))
            .status()
            .unwrap()
            .success()
    );
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    fs::create_dir_all(at("deep").join("d/".repeat(1500))).unwrap();
    let before = fingerprint(work.path());
    for name in [
        "missing", "empty", "photos", "text", "random", "dangling", "loop", "pipe", "socket",
        "deep", "text/x",
    ] {
        for verb in VERBS {
            let ran = run(name, None, &[verb], &at(name), &[2]);
            assert!(ran.stderr.contains(name), "{name}: {}", ran.stderr);
            assert!(ran.stdout.is_empty(), "{name}: {}", ran.text());
        }
        let ran = run(name, None, &["inspect"], &at(name), &[0, 1, 2]);
        assert!(said(&ran).contains(name), "{name}: {}", said(&ran));
    }
    // An empty file may be an archive that never came to be.
    for verb in VERBS {
        let ran = run("nothing", None, &[verb], &at("nothing"), &[1, 2]);
        assert!(said(&ran).contains("nothing"), "{verb}: {}", said(&ran));
    }
    run("/dev/null", None, &["ls"], Path::new("/dev/null"), &[2]);
    run("/proc", None, &["ls"], Path::new("/proc/self"), &[2]);
    assert_eq!(before, fingerprint(work.path()));
}

#[test]
fn things_that_are_no_files() {
    let s = Store::new();
    let fifo = s.stream("ORDERS").join("msgs/1.blk");
    fs::remove_file(&fifo).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let link = s.stream("WORK").join("msgs/1.blk");
    let outside = s.work.path().join("outside.blk");
    fs::rename(&link, &outside).unwrap();
    symlink(&outside, &link).unwrap();
    let dir = s.stream("LIMITED").join("msgs/1.blk");
    fs::remove_file(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    let meta = s.stream("LASTONLY").join("meta.inf");
    fs::remove_file(&meta).unwrap();
    symlink("meta.inf", &meta).unwrap();
    let index = s.stream("SOURCED").join("msgs/index.db");
    fs::remove_file(&index).unwrap();
    symlink("/nowhere/at/all", &index).unwrap();
    symlink("/", s.dir.join("jetstream/$G/streams/ROOT")).unwrap();
    symlink(".", s.dir.join("jetstream/SELF")).unwrap();
    symlink("..", s.stream("MIRROR").join("obs/UP")).unwrap();
    let socket = s.stream("INTEREST").join("obs/A/o.dat");
    fs::remove_file(&socket).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();

    let report = s.survives(&["ORDERS", "WORK", "LIMITED"], &[1]);
    let base = "jetstream/$G/streams";
    for file in [
        "ORDERS/msgs/1.blk",
        "WORK/msgs/1.blk",
        "LIMITED/msgs/1.blk",
        "LASTONLY/meta.inf",
        "SOURCED/msgs/index.db",
        "ROOT",
        "MIRROR/obs/UP",
        "INTEREST/obs/A/o.dat",
    ] {
        finding(&report, &format!("{base}/{file}"));
    }
    finding(&report, "jetstream/SELF");
    // Not followed.
    let view = run(
        "link",
        None,
        &["view", "--json", "-s", "WORK"],
        &s.dir,
        &[1],
    );
    assert!(view.json_lines().is_empty());
    // A link that the user names is.
    let named = s.work.path().join("named");
    symlink(&s.dir, &named).unwrap();
    run("named link", None, &["ls"], &named, &[1]);
    for file in [&fifo, &socket] {
        let ran = run("inspect", None, &["inspect"], file, &[2]);
        assert!(
            ran.stderr.contains(file.to_str().unwrap()),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn what_may_not_be_read() {
    let s = Store::new();
    for path in fingerprint(&s.dir).into_keys() {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let block = s.stream("ORDERS").join("msgs/1.blk");
    let (meta, obs) = (
        s.stream("LIMITED").join("meta.inf"),
        s.stream("WORK").join("obs"),
    );
    let msgs = s.stream("BLOCKS").join("msgs");
    for path in [&block, &meta, &obs, &msgs] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
    }
    fs::set_permissions(s.work.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Root may read everything: then somebody else has to try.
    let mut nobody = fs::File::open(&block).is_ok();
    let call = |args: &[&str], nobody: bool| {
        let mut j = Jetsam::new();
        if nobody {
            let program = j.command.get_program().to_owned();
            let mut c = Command::new("setpriv");
            c.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
                .arg(program);
            j.command = c;
        }
        j.args(args)
    };
    if nobody {
        let can = call(&["--version"], true)
            .command
            .output()
            .is_ok_and(|o| o.status.success());
        if !can {
            eprintln!("skipped: running as root, and no other user can be made to run the binary");
            return;
        }
    } else {
        nobody = false;
    }
    for verb in VERBS {
        let ran = call(&[verb], nobody).arg(&s.dir).run().no_panic().status(1);
        for file in ["ORDERS/msgs/1.blk", "BLOCKS/msgs"] {
            assert!(
                said(&ran).contains(file),
                "{verb}: no word of {file}\n{}",
                said(&ran)
            );
        }
    }
    let check = call(&["check", "--json"], nobody)
        .arg(&s.dir)
        .run()
        .status(1)
        .json();
    for file in [
        "ORDERS/msgs/1.blk",
        "LIMITED/meta.inf",
        "WORK/obs",
        "BLOCKS/msgs",
    ] {
        let f = finding(&check, &format!("jetstream/$G/streams/{file}"));
        assert_eq!(
            (&f["code"], &f["severity"]),
            (&"unreadable".into(), &"error".into()),
            "{f}"
        );
    }
    let view = call(&["view", "--json"], nobody)
        .arg(&s.dir)
        .run()
        .status(1)
        .json_lines();
    let mut d = Differences::default();
    for stream in ["MIRROR", "WORK", "LIMITED", "SOURCED"] {
        let got: Vec<Value> = view
            .iter()
            .filter(|l| l["stream"] == stream)
            .cloned()
            .collect();
        d.lines(stream, &got, &s.fx.view_lines("$G", stream));
    }
    d.none("what may be read");
    let ran = call(&["inspect"], nobody).arg(&block).run().status(2);
    assert!(ran.stderr.contains("1.blk"), "{}", ran.stderr);
    fs::set_permissions(&s.dir, fs::Permissions::from_mode(0o0)).unwrap();
    let ran = call(&["ls"], nobody).arg(&s.dir).run().status(2);
    assert!(
        ran.stderr.contains(s.dir.to_str().unwrap()),
        "{}",
        ran.stderr
    );
    for path in [&s.dir, &obs, &msgs] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn left_overs_and_odd_names() {
    let s = Store::new();
    let sound = s.survives(&[], &[0]);
    assert_eq!(sound["findings"], Value::Array(vec![]));
    let base = s.stream("ORDERS");
    copy_tree(&base.join("msgs"), &base.join("__msgs__"));
    fs::create_dir_all(base.join("batches/abc/msgs")).unwrap();
    for file in [
        "meta.inf.tmp",
        "_test_1",
        "msgs/index.db.tmp",
        "msgs/2.new",
        "msgs/7.key",
        "odd",
        "msgs/x.stream",
    ] {
        fs::write(base.join(file), "x").unwrap();
    }
    copy_tree(&s.stream("WORK"), &s.stream(".WORK"));
    fs::create_dir(s.stream("VOID")).unwrap();
    fs::write(s.dir.join("jetstream/$G/streams/file.stream"), "x").unwrap();
    fs::create_dir_all(s.dir.join("jetstream/$G/__snapshots__/x")).unwrap();
    fs::create_dir_all(s.dir.join("jetstream/.snap-staging")).unwrap();
    fs::write(s.dir.join("jetstream/stray"), "x").unwrap();
    let odd = |n: &[u8]| OsStr::from_bytes(n).to_owned();
    fs::create_dir(s.dir.join("jetstream").join(odd(b"ACC\xff"))).unwrap();
    copy_tree(
        &s.stream("LIMITED"),
        &s.dir.join("jetstream/$G/streams").join(odd(b"S\xfe")),
    );
    fs::write(base.join("msgs").join(odd(b"\xff.blk")), "x").unwrap();
    fs::create_dir(base.join("obs").join(odd(b"C\xfd"))).unwrap();
    fs::create_dir_all(base.join("msgs").join("d/".repeat(1500))).unwrap();
    fs::create_dir_all(s.dir.join("jetstream/$G").join("d/".repeat(1500))).unwrap();

    let report = s.survives(&[], &[1]);
    let orders = "jetstream/$G/streams/ORDERS";
    for (file, code) in [
        ("__msgs__", "leftover"),
        ("batches", "leftover"),
        ("meta.inf.tmp", "leftover"),
        ("_test_1", "leftover"),
        ("msgs/index.db.tmp", "leftover"),
        ("msgs/2.new", "leftover"),
        ("msgs/7.key", "leftover"),
        ("odd", "odd_name"),
        ("msgs/x.stream", "odd_name"),
        ("msgs/\u{fffd}.blk", "odd_name"),
        ("msgs/d", "odd_name"),
    ] {
        let f = finding(&report, &format!("{orders}/{file}"));
        assert_eq!(
            (&f["code"], &f["severity"]),
            (&code.into(), &"note".into()),
            "{f}"
        );
    }
    for file in [
        "jetstream/$G/streams/.WORK",
        "jetstream/$G/streams/file.stream",
        "jetstream/$G/streams/VOID",
        "jetstream/$G/streams/S\u{fffd}",
        "jetstream/$G/__snapshots__",
        "jetstream/.snap-staging",
        "jetstream/stray",
        "jetstream/ACC\u{fffd}",
    ] {
        finding(&report, file);
    }
    // Errors are only of the directories that lack what a stream or consumer has to have.
    for f in report["findings"].as_array().unwrap() {
        let file = f["file"].as_str().unwrap();
        assert!(
            f["severity"] != "error"
                || ["VOID/", "S\u{fffd}/", "C\u{fffd}/", "batches/abc/"]
                    .iter()
                    .any(|n| file.contains(n)),
            "{f}"
        );
    }
}

#[test]
fn sparse_files_of_gigabytes() {
    let s = Store::new();
    let grow = |path: &Path, len: u64| {
        fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)
            .unwrap()
            .set_len(len)
            .unwrap();
        path.to_owned()
    };
    let huge = |path: &Path| grow(path, 3 << 30);
    let files = [
        huge(&s.stream("ORDERS").join("msgs/1.blk")),
        huge(&s.stream("WORK").join("msgs/index.db")),
        huge(&s.stream("WORK").join("obs/WORKER/o.dat")),
        huge(&s.stream("LIMITED").join("meta.inf")),
        huge(&s.stream("LASTONLY").join("meta.sum")),
        // One that comes later is not even asked for ahead: that would take hours.
        grow(&s.stream("BLOCKS").join("msgs/4.blk"), 4 << 40),
    ];
    let check = run("sparse", None, &["check", "--json"], &s.dir, &[1]).json();
    for file in &files {
        finding(&check, file.strip_prefix(&s.dir).unwrap().to_str().unwrap());
        let ran = run("sparse", None, &["inspect"], file, &[1, 2]);
        assert!(
            said(&ran).contains(file.to_str().unwrap()),
            "{}",
            said(&ran)
        );
    }
    for verb in ["ls", "info"] {
        run("sparse", None, &[verb], &s.dir, &[1]);
    }
    let view = run("sparse", None, &["view", "--json"], &s.dir, &[1]).json_lines();
    let mut d = Differences::default();
    for (account, stream) in s.fx.stream_names() {
        if stream != "ORDERS" && stream != "BLOCKS" {
            let got: Vec<Value> = view
                .iter()
                .filter(|l| l["stream"] == stream.as_str())
                .cloned()
                .collect();
            d.lines(&stream, &got, &s.fx.view_lines(&account, &stream));
        }
    }
    d.none("beside sparse files");
    // Just below the ceiling for a block it is read, all of it zeros.
    fs::OpenOptions::new()
        .write(true)
        .open(&files[0])
        .unwrap()
        .set_len(200 << 20)
        .unwrap();
    run("200 MiB", None, &["check", "-s", "ORDERS"], &s.dir, &[1]);
    run(
        "200 MiB",
        None,
        &["view", "-s", "ORDERS", "--deleted"],
        &s.dir,
        &[1],
    );
    // Archives, and what stands beside them.
    let dir = s.work.path().join("backup");
    fs::create_dir(&dir).unwrap();
    for (name, begin) in [
        ("stream.tar.s2", vector("2.14.5.tar.s2")),
        ("x.tar", unpack_s2(&vector("2.14.5.tar.s2"))),
    ] {
        let file = dir.join(name);
        fs::write(&file, begin).unwrap();
        // In S2 a frame could begin at any byte, so each is looked at.
        fs::OpenOptions::new()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(256 << 20)
            .unwrap();
        run(name, None, &["check"], &file, &[0, 1]);
    }
    fs::remove_file(dir.join("stream.tar.s2")).unwrap();
    let zeros = huge(&dir.join("stream.tar.s2"));
    run("zeros", None, &["ls"], &zeros, &[1, 2]);
    huge(&dir.join("backup.json"));
    let ran = run("backup", None, &["ls"], &dir, &[1]);
    assert!(ran.stderr.contains("backup.json"), "{}", ran.stderr);
}

#[test]
fn files_without_a_byte() {
    let s = Store::new();
    for file in files(&s.stream("ORDERS")) {
        let good = fs::read(&file).unwrap();
        fs::write(&file, "").unwrap();
        let report = s.survives(&["ORDERS"], &[0, 1]);
        let rel = file.strip_prefix(&s.dir).unwrap().to_str().unwrap();
        if !rel.ends_with("o.dat") {
            assert!(
                report["findings"].as_array().unwrap().iter().any(|f| {
                    f["severity"] == "error"
                        && f["file"]
                            .as_str()
                            .unwrap()
                            .starts_with("jetstream/$G/streams/ORDERS/")
                }),
                "{rel}: {report}"
            );
        }
        fs::write(&file, good).unwrap();
    }
    assert_eq!(s.survives(&[], &[0])["findings"], Value::Array(vec![]));
}
