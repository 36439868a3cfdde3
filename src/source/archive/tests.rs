use super::*;
use crate::pipeline::Threads;
use crate::source::tree::{ChildKind, Tree as _};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::ops::ControlFlow;
use std::path::PathBuf;

const V1: [&[u8]; 2] = [
    include_bytes!("../../../fixtures/vectors/archive/2.2.6.tar.s2"),
    include_bytes!("../../../fixtures/vectors/archive/2.14.5.tar.s2"),
];
const V2: &[u8] = include_bytes!("../../../fixtures/vectors/archive/2.15.2.tar.s2");
const V2_TRUTH: &[u8] = include_bytes!("../../../fixtures/vectors/archive/2.15.2.truth.json");

type Files = BTreeMap<String, Vec<u8>>;

fn with_file<T>(bytes: &[u8], f: impl FnOnce(&Path) -> T) -> T {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    f(file.path())
}

fn open_bytes(bytes: &[u8]) -> Result<Opened, ArchiveError> {
    with_file(bytes, open)
}

fn tree(bytes: &[u8]) -> Arc<TarTree> {
    match open_bytes(bytes).unwrap() {
        Opened::Tar(tree) => tree,
        Opened::V2(_) => panic!("not a tar"),
    }
}

fn v2(bytes: &[u8]) -> Arc<super::V2> {
    match open_bytes(bytes).unwrap() {
        Opened::V2(v2) => v2,
        Opened::Tar(_) => panic!("not NATSARC1"),
    }
}

/// Every file in a tree, and the faults met.
fn files(tree: &TarTree) -> (Files, Vec<String>) {
    let (mut out, mut faults) = (Files::new(), Vec::new());
    let mut stack = vec![PathBuf::new()];
    while let Some(dir) = stack.pop() {
        for child in tree.children(&dir).unwrap() {
            let path = dir.join(&child.name);
            assert_eq!(tree.stat(&path).unwrap().kind, child.kind);
            if child.kind == ChildKind::Dir {
                stack.push(path);
                continue;
            }
            let mut buf = b"what was here before".to_vec();
            let name = path.to_str().unwrap().to_owned();
            let found = tree.read_into(&path, &mut buf, 1 << 30).unwrap();
            faults.extend(
                found
                    .into_iter()
                    .map(|f| format!("{name} {} {}", f.offset, f.detail)),
            );
            assert_eq!(buf.len() as u64, child.len, "{name}");
            out.insert(name, buf);
        }
    }
    (out, faults)
}

fn codes(findings: &[Finding]) -> Vec<Code> {
    let mut codes: Vec<Code> = findings.iter().map(|f| f.code).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

/// The members by another tar reader and another S2 decoder.
fn oracle(tar: impl std::io::Read) -> Files {
    let mut out = Files::new();
    let mut archive = ::tar::Archive::new(tar);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        out.insert(name, data);
    }
    out
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = minlz::s2::Writer::new(&mut out);
    writer.write_all(bytes).unwrap();
    writer.flush().unwrap();
    drop(writer);
    out
}

fn unframe(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    minlz::s2::Reader::new(bytes).read_to_end(&mut out).unwrap();
    out
}

fn make_tar(files: &Files) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(1_700_000_000);
        header.set_entry_type(::tar::EntryType::Regular);
        builder
            .append_data(&mut header, name, data.as_slice())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

/// Bytes that compress by about half and differ everywhere.
fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 16);
    while out.len() < len {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&seed.to_le_bytes());
        out.extend_from_slice(b"........");
    }
    out.truncate(len);
    out
}

fn large() -> Files {
    let mut files = Files::from([
        (
            "meta.inf".to_owned(),
            br#"{"name":"BIG","storage":"file"}"#.to_vec(),
        ),
        ("meta.sum".to_owned(), b"0011223344556677".to_vec()),
    ]);
    for n in 1..=9usize {
        files.insert(format!("msgs/{n}.blk"), noise(n * 300_007, n as u64));
    }
    for c in 0..30 {
        files.insert(format!("obs/C{c}/o.dat"), noise(c, 77));
    }
    files
}

/// Where the frames of an S2 stream begin and end.
fn frame_places(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let len = u32::from_le_bytes([bytes[at + 1], bytes[at + 2], bytes[at + 3], 0]) as usize;
        if bytes[at] < 2 {
            out.push(at..at + 4 + len);
        }
        at += 4 + len;
    }
    out
}

#[test]
fn archives_of_servers_hold_what_other_readers_find() {
    for bytes in V1 {
        let plain = unframe(bytes);
        let want = oracle(plain.as_slice());
        assert!(want.len() > 5);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let gzip = gzip.finish().unwrap();
        for (bytes, hints) in [
            (bytes, false),
            (plain.as_slice(), true),
            (gzip.as_slice(), true),
        ] {
            let tree = tree(bytes);
            assert_eq!(files(&tree), (want.clone(), Vec::new()));
            let want_codes = if hints {
                vec![Code::RestoreHint]
            } else {
                vec![]
            };
            assert_eq!(codes(&tree.findings()), want_codes);
            let meta: serde_json::Value = serde_json::from_slice(&want["meta.inf"]).unwrap();
            assert_eq!(tree.stream_name().as_deref(), meta["name"].as_str());
        }
    }
}

#[test]
fn members_have_the_time_in_the_extended_header() {
    // Every member of a server's archive has the time of the backup, with nanoseconds.
    let tree = tree(V1[1]);
    let time = tree.stat(Path::new("meta.inf")).unwrap().modified;
    assert!(
        time > 1_700_000_000_000_000_000 && time % 1_000_000_000 != 0,
        "{time}"
    );
    assert_eq!(tree.stat(Path::new("msgs/1.blk")).unwrap().modified, time);
    assert!(tree.stat(Path::new("msgs/99.blk")).is_err());
    assert!(tree.children(Path::new("nothing")).is_err());
}

#[test]
fn a_gzip_archive_is_read_from_its_end_to_its_start() {
    // More than what all places that are kept stand for, so that some are given up.
    let mut seed = 7u64;
    let mut noise = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as u32
    };
    let mut want = Files::new();
    for n in 1..=12 {
        let mut block = Vec::new();
        while block.len() < 3 << 20 {
            block.extend_from_slice(format!("{{\"n\":{}}}", noise() % 100_000).as_bytes());
        }
        want.insert(format!("msgs/{n:02}.blk"), block);
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&make_tar(&want)).unwrap();
    let bytes = gzip.finish().unwrap();
    let whole = tree(&bytes);
    let mut buf = Vec::new();
    for n in [12, 11, 10, 9, 5, 6, 3, 12, 1, 2, 2] {
        let name = format!("msgs/{n:02}.blk");
        let faults = whole.read_into(Path::new(&name), &mut buf, 1 << 30);
        assert_eq!(faults.unwrap(), []);
        assert!(buf == want[&name], "{name}");
    }
    // Cut off in the middle: what comes before is whole, however often it is asked for.
    let torn = tree(&bytes[..bytes.len() / 2]);
    for n in [5, 4, 9, 3, 1, 5] {
        let name = format!("msgs/{n:02}.blk");
        match torn.read_into(Path::new(&name), &mut buf, 1 << 30) {
            Ok(faults) => assert!(faults.is_empty() && buf == want[&name], "{name}"),
            Err(_) => assert_eq!(n, 9),
        }
    }
}

#[test]
fn a_large_archive_is_read_in_any_order_and_in_pieces() {
    let want = large();
    let bytes = frame(&make_tar(&want));
    assert!(frame_places(&bytes).len() > 10);
    let tree = tree(&bytes);
    assert_eq!(tree.findings(), []);
    assert_eq!(files(&tree), (want.clone(), Vec::new()));
    std::thread::scope(|s| {
        for t in 0..4usize {
            let (tree, want) = (&tree, &want);
            s.spawn(move || {
                for (name, data) in want.iter().rev().cycle().skip(t * 11).take(want.len()) {
                    let mut buf = Vec::new();
                    assert_eq!(
                        tree.read_into(Path::new(name), &mut buf, 1 << 30).unwrap(),
                        []
                    );
                    assert!(&buf == data, "{name}");
                }
            });
        }
    });
    let data = &want["msgs/9.blk"];
    let mut piece = vec![0; 70_001];
    for at in (0..data.len() + 10).step_by(69_997) {
        let n = tree
            .read_at(Path::new("msgs/9.blk"), at as u64, &mut piece)
            .unwrap();
        let end = (at + piece.len()).min(data.len());
        assert!(piece[..n] == data[at.min(end)..end]);
    }
    assert!(matches!(
        tree.read_into(Path::new("msgs/9.blk"), &mut Vec::new(), 1000),
        Err(crate::source::tree::ReadError::TooLarge { ceiling: 1000, .. })
    ));
}

#[test]
fn a_damaged_frame_is_reported_and_the_rest_stays_right() {
    let want = large();
    let tar = make_tar(&want);
    let good = frame(&tar);
    let places = frame_places(&good);
    // In the checksum, in the middle, at the end; in the header: kind, each byte of the length.
    for (i, at) in [
        (2, 4),
        (3, 5000),
        (5, 200_000),
        (4, 0),
        (4, 1),
        (6, 2),
        (7, 3),
        (3, 8),
        (3, 9),
        (3, 10),
    ] {
        for bit in [1u8, 0x40] {
            let mut bytes = good.clone();
            bytes[places[i].start + at] ^= bit;
            let tree = tree(&bytes);
            let (got, faults) = files(&tree);
            let seen =
                !faults.is_empty() || codes(&tree.findings()).contains(&Code::ArchiveDamaged);
            assert!(seen, "frame {i} byte {at}");
            assert_eq!(
                got.keys().collect::<Vec<_>>(),
                want.keys().collect::<Vec<_>>(),
                "frame {i} byte {at}"
            );
            // Bytes outside of the damaged frame are right.
            let lost = (i << 20)..((i + 1) << 20);
            let mut pos = 0;
            for entry in ::tar::Archive::new(tar.as_slice()).entries().unwrap() {
                let entry = entry.unwrap();
                let name = entry.path().unwrap().to_str().unwrap().to_owned();
                pos = entry.raw_file_position() as usize;
                for (k, (a, b)) in got[&name].iter().zip(&want[&name]).enumerate() {
                    assert!(
                        a == b || lost.contains(&(pos + k)),
                        "{name} {k}, frame {i} byte {at}"
                    );
                }
            }
            assert!(pos > 0);
        }
    }
}

#[test]
fn damage_of_a_header_costs_that_member_only() {
    let want = large();
    let mut tar = make_tar(&want);
    let at = ::tar::Archive::new(tar.as_slice())
        .entries()
        .unwrap()
        .map(|e| e.unwrap())
        .find(|e| e.path().unwrap().to_str() == Some("msgs/4.blk"))
        .unwrap()
        .raw_header_position() as usize;
    tar[at + 20] ^= 0x11;
    for bytes in [frame(&tar), tar] {
        let tree = tree(&bytes);
        let (mut got, _) = files(&tree);
        assert!(codes(&tree.findings()).contains(&Code::ArchiveDamaged));
        assert!(!codes(&tree.findings()).contains(&Code::ArchiveTruncated));
        got.insert("msgs/4.blk".to_owned(), want["msgs/4.blk"].clone());
        assert!(got == want);
    }
}

#[test]
fn a_cut_archive_serves_what_is_before_the_cut() {
    let want = large();
    let tar = make_tar(&want);
    let good = frame(&tar);
    for cut in [
        30,
        5000,
        good.len() / 3,
        good.len() / 2,
        good.len() - 1000,
        good.len() - 1,
    ] {
        let bytes = &good[..cut];
        let tree = match open_bytes(bytes) {
            Ok(Opened::Tar(tree)) => tree,
            Err(e) => {
                assert!(e.code() == Code::ArchiveTruncated && cut < 10_000);
                continue;
            }
            Ok(Opened::V2(_)) => panic!("not v2"),
        };
        assert!(
            codes(&tree.findings()).contains(&Code::ArchiveTruncated),
            "{cut}"
        );
        let (got, _) = files(&tree);
        // Whole frames before the cut are there; of the last one what could be decoded.
        let whole = frame_places(&good).iter().filter(|f| f.end <= cut).count() << 20;
        let mut have = 0;
        for entry in ::tar::Archive::new(tar.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            let at = entry.raw_file_position() as usize;
            if at < whole {
                let n = want[&name].len().min(whole - at);
                assert!(got[&name][..n] == want[&name][..n], "{name} {cut}");
                have += n;
            }
        }
        assert!(have > 0 || whole == 0);
    }
    for len in 1..10 {
        assert_eq!(
            open_bytes(&good[..len]).unwrap_err().code(),
            Code::ArchiveTruncated
        );
    }
    let e = open_bytes(b"").unwrap_err();
    assert_eq!(
        (e.code(), e.to_string().as_str()),
        (Code::ArchiveTruncated, "empty: the backup was interrupted")
    );
}

#[test]
fn other_files_are_no_archives() {
    let zeros = vec![0; 4096];
    let text = b"hello\n".repeat(300);
    for bytes in [
        zeros.as_slice(),
        text.as_slice(),
        b"{\"config\":{}}",
        b"\xff",
        b"NATS",
        &noise(100_000, 1),
    ] {
        let e = open_bytes(bytes).map(|_| ()).unwrap_err();
        let ok = matches!(e, ArchiveError::NotAnArchive) || bytes == b"\xff";
        assert!(ok, "{e}");
    }
    let e = open_bytes(&frame(&text)).unwrap_err();
    assert!(matches!(e, ArchiveError::Damaged(_)));
    let e = open(Path::new("/nowhere/at/all")).unwrap_err();
    assert!(matches!(e, ArchiveError::Io(_)) && e.code() == Code::Unreadable);
}

/// Every flipped bit shows, or changes nothing (compressed bytes can say the same in two ways).
#[test]
fn no_flipped_bit_of_a_servers_archive_goes_unnoticed() {
    for good in [V1[0], V2] {
        let (want_files, want_messages) = match open_bytes(good).unwrap() {
            Opened::Tar(tree) => (files(&tree).0, Vec::new()),
            Opened::V2(v2) => (Files::new(), messages(&v2, 1).0),
        };
        for bit in 0..good.len() * 8 {
            let mut bytes = good.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let seen = match open_bytes(&bytes) {
                Err(_) => true,
                Ok(Opened::Tar(tree)) => {
                    let (got, faults) = files(&tree);
                    !tree.findings().is_empty() || !faults.is_empty() || got == want_files
                }
                Ok(Opened::V2(v2)) => {
                    let (got, end) = messages(&v2, 1);
                    assert!(got.iter().all(|m| want_messages.contains(m)), "bit {bit}");
                    !v2.findings().is_empty() || !end.findings.is_empty() || got == want_messages
                }
            };
            assert!(seen, "bit {bit}");
        }
    }
}

fn one(name: &str, edit: impl FnOnce(&mut ::tar::Header)) -> Vec<u8> {
    let mut header = ::tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(3);
    header.set_mode(0o600);
    edit(&mut header);
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend_from_slice(b"abc");
    out.resize(1024, 0);
    out
}

#[test]
fn members_that_a_restore_refuses_are_reported_and_not_served() {
    use ::tar::EntryType;
    let meta = one("meta.inf", |_| {});
    let end = [0; 1024];
    let kind = |name: &str, t: EntryType| one(name, |h| h.set_entry_type(t));
    for (bad, why) in [
        (one("../x", |_| {}), ".."),
        (one("msgs/../../x", |_| {}), ".."),
        (one("meta.inf", |_| {}), "second"),
        (one("meta.inf/x", |_| {}), "same name"),
        (one("./", |_| {}), "directory"),
        (kind("obs", EntryType::Directory), "directory"),
        (kind("obs/x", EntryType::Symlink), "symbolic"),
        (kind("obs/x", EntryType::Link), "hard link"),
        (kind("obs/x", EntryType::Char), "device"),
        (kind("obs/x", EntryType::Fifo), "pipe"),
        (kind("obs/x", EntryType::XGlobalHeader), "global"),
    ] {
        let bytes = frame(&[meta.as_slice(), &bad, &end].concat());
        let tree = tree(&bytes);
        let findings = tree.findings();
        assert_eq!(
            codes(&findings),
            [Code::ArchiveMember],
            "{why}: {findings:?}"
        );
        assert!(findings[0].detail.contains(why), "{findings:?}");
        assert_eq!(
            files(&tree).0.keys().collect::<Vec<_>>(),
            ["meta.inf"],
            "{why}"
        );
    }
    // These a server takes.
    let bytes = frame(
        &[
            one("./meta.inf", |_| {}),
            one("/meta.sum", |_| {}),
            one("obs\\C\\o.dat", |_| {}),
            end.to_vec(),
        ]
        .concat(),
    );
    let tree = tree(&bytes);
    assert_eq!(
        files(&tree).0.keys().collect::<Vec<_>>(),
        ["meta.inf", "meta.sum", "obs/C/o.dat"]
    );
    assert!(
        tree.findings()
            .iter()
            .all(|f| f.severity == crate::finding::Severity::Warning)
    );
    assert_eq!(tree.findings().len(), 2);
}

#[test]
fn what_is_after_the_end_and_errors_txt_are_reported() {
    let meta = one("meta.inf", |_| {});
    let good = frame(&[meta.as_slice(), &[0; 1024]].concat());
    assert_eq!(codes(&tree(&good).findings()), []);
    // 10 KiB padding in the same frame is fine, as servers take it.
    let padded = frame(&[meta.as_slice(), &[0; 9216]].concat());
    assert_eq!(codes(&tree(&padded).findings()), []);
    let trailing = [good.clone(), vec![0xfe, 3, 0, 0, 1, 2, 3]].concat();
    let found = tree(&trailing).findings();
    assert_eq!(codes(&found), [Code::ArchiveTrailing]);
    assert_eq!(found[0].offset, Some(good.len() as u64));
    let inside = frame(&[meta.as_slice(), &[0; 1024], b"more"].concat());
    assert_eq!(codes(&tree(&inside).findings()), [Code::ArchiveTrailing]);
    let cut = frame(&meta);
    assert_eq!(codes(&tree(&cut).findings()), [Code::ArchiveTruncated]);
    let mut text = one("errors.txt", |_| {});
    text[512..515].copy_from_slice(b"EIO");
    let failed = frame(&[meta.as_slice(), &text, &[0; 1024]].concat());
    let found = tree(&failed).findings();
    assert_eq!(codes(&found), [Code::ArchiveErrors]);
    assert!(found[0].detail.contains("EIO"));
}

#[test]
fn lying_sizes_do_no_harm() {
    for size in [1u64 << 20, 1 << 40, (1 << 62) + 7, u64::MAX - 600, u64::MAX] {
        let lie = one("msgs/1.blk", |h| h.set_size(size));
        let tar = [one("meta.inf", |_| {}), lie, vec![0; 1024]].concat();
        for bytes in [frame(&tar), tar] {
            let tree = tree(&bytes);
            let codes = codes(&tree.findings());
            assert!(
                codes.contains(&Code::ArchiveTruncated) || codes.contains(&Code::ArchiveDamaged),
                "{size}"
            );
            for (name, data) in files(&tree).0 {
                assert!(data.len() <= bytes.len().max(4096), "{name}");
            }
        }
    }
}

#[test]
fn many_members_and_findings_stay_bounded() {
    let mut tar = Vec::new();
    for n in 0..3000 {
        tar.extend_from_slice(&one(&format!("../{n}"), |_| {}));
    }
    tar.extend_from_slice(&[0; 1024]);
    let tree = tree(&frame(&tar));
    assert_eq!(tree.findings().len(), MAX_FINDINGS + 1);
    assert!(tree.findings().last().unwrap().detail.contains("2900 more"));
}

#[test]
fn endless_small_frames_are_walked_with_a_bounded_table() {
    // One byte a frame: the table is thinned, and bytes are still found.
    let tar = make_tar(&Files::from([("meta.inf".to_owned(), noise(20_000, 3))]));
    let mut bytes = b"\xff\x06\0\0S2sTwO".to_vec();
    for b in &tar {
        bytes.extend_from_slice(&[1, 5, 0, 0]);
        bytes.extend_from_slice(&crate::format::s2::masked_crc(&[*b]).to_le_bytes());
        bytes.push(*b);
        bytes.extend_from_slice(&[0xfe, 0, 0, 0]);
    }
    let tree = tree(&bytes);
    assert_eq!(files(&tree), (oracle(tar.as_slice()), Vec::new()));
}

// NATSARC1.

type Message = (u64, i64, Vec<u8>, Vec<u8>, Vec<u8>);

fn messages(v2: &super::V2, threads: usize) -> (Vec<Message>, V2End) {
    let mut out = Vec::new();
    let end = v2
        .visit(&Threads::new(threads).unwrap(), &mut |m| {
            out.push((
                m.seq,
                m.ts,
                m.subject.to_vec(),
                m.headers.to_vec(),
                m.payload.to_vec(),
            ));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(end.messages, out.len() as u64);
    (out, end)
}

#[test]
fn messages_and_consumers_are_what_clients_saw() {
    use base64::Engine as _;
    let truth: serde_json::Value = serde_json::from_slice(V2_TRUTH).unwrap();
    let bytes = |v: &serde_json::Value| {
        base64::engine::general_purpose::STANDARD
            .decode(v.as_str().unwrap_or(""))
            .unwrap()
    };
    let want: Vec<Message> = truth["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            let ts: jiff::Timestamp = m["time"].as_str().unwrap().parse().unwrap();
            let subject = m["subject"].as_str().unwrap().as_bytes().to_vec();
            let ts = i64::try_from(ts.as_nanosecond()).unwrap();
            (
                m["seq"].as_u64().unwrap(),
                ts,
                subject,
                bytes(&m["hdrs"]),
                bytes(&m["data"]),
            )
        })
        .collect();
    assert!(want.len() > 10);
    for bytes in [V2.to_vec(), unframe(V2)] {
        let v2 = v2(&bytes);
        let (got, end) = messages(&v2, 2);
        assert_eq!(got, want);
        assert!(end.complete && end.findings.is_empty());
        assert_eq!(
            v2.state().messages,
            truth["state"]["messages"].as_u64().unwrap()
        );
        assert_eq!(
            v2.state().last_seq,
            truth["state"]["last_seq"].as_u64().unwrap()
        );
        let infos = truth["consumers"].as_object().unwrap();
        assert_eq!(v2.consumers().len(), infos.len());
        assert!(!infos.is_empty());
        for c in v2.consumers() {
            let info = &infos[&c.name];
            assert_eq!(
                Some(c.state.delivered.stream),
                info["delivered"]["stream_seq"].as_u64()
            );
            assert_eq!(
                Some(c.state.ack_floor.consumer),
                info["ack_floor"]["consumer_seq"].as_u64()
            );
            assert_eq!(
                Some(c.state.pending.len() as u64),
                info["num_ack_pending"].as_u64()
            );
            assert_eq!(c.config["ack_policy"], info["config"]["ack_policy"]);
        }
    }
}

const BASE: i64 = 1_790_000_000_000_000_000;

fn put(out: &mut Vec<u8>, name: &str, ts: i64, seq: u64, headers: &[u8], payload: &[u8]) {
    use crate::format::bytes::{put_uvarint, put_varint};
    put_uvarint(out, name.len() as u64);
    put_varint(out, ts);
    put_uvarint(out, seq);
    put_uvarint(out, headers.len() as u64);
    put_uvarint(out, payload.len() as u64);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(headers);
    out.extend_from_slice(payload);
}

/// An archive of several frames, and its messages with where they end.
fn large_v2() -> (Vec<u8>, Vec<(Message, usize)>) {
    let mut out = b"NATSARC1".to_vec();
    let state = br#"{"messages":6000,"bytes":0,"first_seq":1,"last_seq":17998,"consumer_count":0}"#;
    put(&mut out, "state.json", BASE + 10_000_000_000, 0, b"", state);
    let mut want = Vec::new();
    for n in 0..6000u64 {
        let (seq, ts) = (n * 3 + 1, BASE + n as i64 * 1000);
        let headers = if n % 5 == 0 {
            b"NATS/1.0\r\nA: b\r\n\r\n".to_vec()
        } else {
            Vec::new()
        };
        let len = if n % 700 == 0 {
            1_300_000
        } else {
            (n % 1500) as usize
        };
        let payload = noise(len, n);
        let subject = format!("orders.{n}");
        put(&mut out, &subject, ts, seq, &headers, &payload);
        want.push(((seq, ts, subject.into_bytes(), headers, payload), out.len()));
    }
    out.extend_from_slice(&[0; 5]);
    (out, want)
}

#[test]
fn a_large_archive_is_read_in_order_on_any_number_of_threads() {
    let (plain, want) = large_v2();
    let want: Vec<Message> = want.into_iter().map(|(m, _)| m).collect();
    let framed = frame(&plain);
    assert!(frame_places(&framed).len() > 12);
    for (bytes, threads) in [(&framed, 1), (&framed, 3), (&plain, 2)] {
        let (got, end) = messages(&v2(bytes), threads);
        assert!(got == want);
        assert!(
            end.complete && end.findings.is_empty(),
            "{:?}",
            end.findings
        );
    }
    let mut seen = 0;
    let end = v2(&framed)
        .visit(&Threads::new(2).unwrap(), &mut |_| {
            seen += 1;
            if seen == 100 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap();
    assert_eq!((seen, end.messages, end.complete), (100, 100, false));
}

#[test]
fn a_damaged_frame_costs_its_own_messages_only() {
    let (plain, want) = large_v2();
    let good = frame(&plain);
    let places = frame_places(&good);
    for i in 0..places.len() {
        for at in [0, 2, 4, 9, 3000] {
            let mut bytes = good.clone();
            bytes[places[i].start + at.min(places[i].len() - 1)] ^= 0x10;
            let v2 = v2(&bytes);
            let (got, end) = messages(&v2, 2);
            assert_eq!(end.complete, got.len() == want.len(), "frame {i} byte {at}");
            let findings = [v2.findings(), end.findings].concat();
            assert!(
                codes(&findings).contains(&Code::ArchiveDamaged),
                "frame {i} byte {at}"
            );
            let lost = (i << 20)..((i + 1) << 20);
            let mut from = 0;
            let kept: Vec<&Message> = want
                .iter()
                .filter(|(_, to)| {
                    let hit = from < lost.end && *to > lost.start;
                    from = *to;
                    !hit
                })
                .map(|(m, _)| m)
                .collect();
            // All that is outside of the frame, nothing that is wrong.
            let missing = kept
                .iter()
                .filter(|m| got.binary_search(m).is_err())
                .count();
            assert_eq!(missing, 0, "frame {i} byte {at}: {findings:?}");
            for m in &got {
                assert!(
                    want.binary_search_by(|(w, _)| w.cmp(m)).is_ok(),
                    "frame {i} byte {at}: {}",
                    m.0
                );
            }
        }
    }
}

#[test]
fn a_cut_archive_gives_the_messages_before_the_cut() {
    let (plain, want) = large_v2();
    let good = frame(&plain);
    for cut in [good.len() - 1, good.len() / 2, good.len() / 5] {
        let v2 = v2(&good[..cut]);
        let (got, end) = messages(&v2, 2);
        let findings = [v2.findings(), end.findings].concat();
        assert!(!end.complete && codes(&findings).contains(&Code::ArchiveTruncated));
        let whole = frame_places(&good).iter().filter(|f| f.end <= cut).count() << 20;
        let least = want.iter().filter(|(_, to)| *to <= whole).count();
        assert!(got.len() >= least && least > 0);
        assert!(got.iter().zip(&want).all(|(g, (w, _))| g == w));
    }
    // Without the end marker, or with something after it.
    let (_, end) = messages(&v2(&frame(&plain[..plain.len() - 5])), 1);
    assert_eq!(
        (codes(&end.findings), end.complete),
        (vec![Code::ArchiveTruncated], false)
    );
    let (_, end) = messages(&v2(&frame(&[plain.as_slice(), b"more"].concat())), 1);
    assert_eq!(
        (codes(&end.findings), end.complete),
        (vec![Code::ArchiveTrailing], true)
    );
}

#[test]
fn what_servers_refuse_in_the_order_of_messages_is_found() {
    let archive = |entries: &[(u64, usize)], messages: u64| {
        let mut out = b"NATSARC1".to_vec();
        let state =
            format!(r#"{{"messages":{messages},"first_seq":5,"last_seq":90,"consumer_count":0}}"#);
        put(&mut out, "state.json", BASE, 0, b"", state.as_bytes());
        for (seq, len) in entries {
            put(&mut out, "a", BASE, *seq, b"", &noise(*len, 9));
        }
        out.extend_from_slice(&[0; 5]);
        let (got, end) = self::messages(&v2(&frame(&out)), 1);
        (
            got.iter().map(|m| m.0).collect::<Vec<_>>(),
            codes(&end.findings),
            end.complete,
        )
    };
    assert_eq!(archive(&[(5, 1), (9, 1)], 2), (vec![5, 9], vec![], true));
    assert_eq!(
        archive(&[(5, 1), (9, 1), (9, 1), (8, 1), (10, 1)], 3),
        (vec![5, 9, 10], vec![Code::ArchiveDamaged], false)
    );
    assert_eq!(archive(&[(4, 1), (9, 1)], 2).1, vec![Code::ArchiveDamaged]);
    // A message longer than any is passed over.
    let long = 65 << 20;
    assert_eq!(
        archive(&[(5, 1), (9, long), (10, 1)], 3),
        (vec![5, 10], vec![Code::TooLarge], false)
    );
}

#[test]
fn impossible_lengths_do_no_harm() {
    use crate::format::bytes::{put_uvarint, put_varint};
    for (name, headers, payload) in [
        (u64::MAX, 0, 0),
        (1 << 21, 0, 0),
        (1, u64::MAX, u64::MAX),
        (1, 1 << 63, 1 << 63),
        (1, 0, 1 << 61),
        (1, 0, 60 << 20),
    ] {
        let mut out = b"NATSARC1".to_vec();
        put(
            &mut out,
            "state.json",
            BASE,
            0,
            b"",
            br#"{"messages":4,"first_seq":1,"last_seq":9,"consumer_count":0}"#,
        );
        put(&mut out, "a", BASE, 1, b"", b"first");
        put_uvarint(&mut out, name);
        put_varint(&mut out, BASE);
        put_uvarint(&mut out, 2);
        put_uvarint(&mut out, headers);
        put_uvarint(&mut out, payload);
        for seq in 3..9 {
            put(&mut out, "a", BASE, seq, b"", b"later");
        }
        out.extend_from_slice(&[0; 5]);
        let (got, end) = messages(&v2(&frame(&out)), 1);
        assert!(!end.complete && !end.findings.is_empty());
        assert_eq!(got[0].0, 1);
        if headers != 0 || name > 1 {
            assert_eq!(
                got.iter().map(|m| m.0).collect::<Vec<_>>(),
                [1, 3, 4, 5, 6, 7, 8]
            );
        }
    }
}
