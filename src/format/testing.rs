//! The archives that servers made, from the fixtures, for the tests of several formats.

use std::io::Read as _;

/// Every file below `snapshots/` in the fixtures that ends in `ending`: the fixture's name,
/// `ACCOUNT/STREAM`, the file.
fn below_snapshots(ending: &str) -> Vec<(String, String, Vec<u8>)> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/stores");
    let mut out = Vec::new();
    for packed in std::fs::read_dir(dir).unwrap() {
        let path = packed.unwrap().path();
        let fixture = path.file_name().unwrap().to_str().unwrap().to_owned();
        let fixture = fixture.strip_suffix(".tar.xz").unwrap();
        let file = xz2::read::XzDecoder::new(std::fs::File::open(&path).unwrap());
        for entry in ::tar::Archive::new(file).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            let Some(stream) = name.strip_suffix(ending) else {
                continue;
            };
            if let Some((_, stream)) = stream.split_once("snapshots/") {
                let stream = stream.to_owned();
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                out.push((fixture.to_owned(), stream, bytes));
            }
        }
    }
    assert!(out.len() > 100);
    out
}

/// The archives.
pub(crate) fn snapshots() -> Vec<(String, String, Vec<u8>)> {
    below_snapshots(".tar.s2")
}

/// The replies that came with them.
pub(crate) fn replies() -> Vec<(String, String, Vec<u8>)> {
    below_snapshots(".json")
}

/// What is in an S2 stream, by another decoder.
pub(crate) fn unframe(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    minlz::s2::Reader::new(bytes).read_to_end(&mut out).unwrap();
    out
}

/// The lines of a packed file of JSON.
pub(crate) fn vector(packed: &[u8]) -> Vec<serde_json::Value> {
    let mut text = String::new();
    let mut gzip = flate2::read::GzDecoder::new(packed);
    gzip.read_to_string(&mut text).unwrap();
    let lines = text.lines();
    lines.map(|l| serde_json::from_str(l).unwrap()).collect()
}
