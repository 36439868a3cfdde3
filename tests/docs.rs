//! The pages in `docs/format` are held to the data: the bytes in their examples are those of fixtures, jetsam's
//! decoders say of them what the page says, and the tests that a page names exist.
//!
//! `<!-- example: KIND NAME=VALUE… -->` stands above a `hex` block (which `from=FILE@OFFSET` finds in a fixture) and the
//! block with what it means. In a `hex` block `00*20` is a run and `;` begins a comment.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;
#[path = "docs/decode.rs"]
mod decode;

use jetsam::format::s2::decode_stream;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

struct Example {
    place: String,
    kind: String,
    args: BTreeMap<String, String>,
    bytes: Vec<u8>,
    meaning: Value,
}

impl Example {
    fn arg(&self, name: &str) -> &str {
        let value = self.args.get(name);
        value.unwrap_or_else(|| panic!("{}: no {name}=", self.place))
    }

    fn number(&self, name: &str) -> u64 {
        self.arg(name).parse().unwrap()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages: (name, text).
fn pages() -> Vec<(String, String)> {
    let dir = root().join("docs/format");
    let mut pages: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "md"))
        .map(|p| {
            (
                p.file_name().unwrap().to_string_lossy().into_owned(),
                fs::read_to_string(p).unwrap(),
            )
        })
        .collect();
    pages.sort();
    assert!(pages.len() >= 13, "pages are missing");
    pages
}

/// `tiny/2.14.9-plain:PATH` is in a packed store, `vectors/PATH` below `fixtures/`; `s2:` before either unpacks it.
fn path_of(spec: &str) -> PathBuf {
    match spec.split_once(':') {
        None => common::fixtures_dir().join(spec),
        Some((fixture, path)) => {
            let (kind, name) = fixture.split_once('/').unwrap();
            common::fixture(kind, name).join(path)
        }
    }
}

fn file(spec: &str) -> Vec<u8> {
    let Some(packed) = spec.strip_prefix("s2:") else {
        return fs::read(path_of(spec)).unwrap_or_else(|e| panic!("{spec}: {e}"));
    };
    let mut out = Vec::new();
    assert!(decode_stream(&file(packed), 0, &mut out, 1 << 24, false).is_clean());
    out
}

fn unhex(text: &str) -> Vec<u8> {
    let lines = text.lines().map(|l| l.split(';').next().unwrap());
    let mut out = Vec::new();
    for token in lines.flat_map(str::split_whitespace) {
        let (digits, times) = token.split_once('*').unwrap_or((token, "1"));
        let bytes = (0..digits.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap());
        out.extend(bytes.collect::<Vec<_>>().repeat(times.parse().unwrap()));
    }
    out
}

fn examples() -> Vec<Example> {
    let mut all = Vec::new();
    for (page, text) in pages() {
        let mut lines = text.lines().enumerate();
        while let Some((n, line)) = lines.next() {
            let Some(head) = line.strip_prefix("<!-- example: ") else {
                continue;
            };
            let mut words = head.strip_suffix(" -->").unwrap().split_whitespace();
            let kind = words.next().unwrap().to_owned();
            let args = words
                .map(|w| w.split_once('=').unwrap())
                .map(|(k, v)| (k.into(), v.into()))
                .collect();
            let place = format!("{page}:{}", n + 1);
            let mut block = || {
                let (_, fence) = lines.by_ref().find(|(_, l)| l.starts_with("```")).unwrap();
                let body = lines
                    .by_ref()
                    .map(|(_, l)| l)
                    .take_while(|l| *l != "```")
                    .collect::<Vec<_>>()
                    .join("\n");
                (fence.trim_start_matches('`'), body)
            };
            let (mut bytes, mut found) = (Vec::new(), block());
            if found.0 == "hex" {
                (bytes, found) = (unhex(&found.1), block());
            }
            let meaning = match found.0 {
                "json" => serde_json::from_str(&found.1).unwrap(),
                _ => Value::String(found.1),
            };
            all.push(Example {
                place,
                kind,
                args,
                bytes,
                meaning,
            });
        }
    }
    all
}

#[test]
fn examples_are_real_and_decode_to_what_the_pages_say() {
    let mut wrong = Vec::new();
    for e in examples() {
        if let Some((spec, at)) = e.args.get("from").and_then(|f| f.rsplit_once('@')) {
            let (file, at) = (file(spec), at.parse::<usize>().unwrap());
            let there = file.get(at..at + e.bytes.len());
            assert!(
                !e.bytes.is_empty() && there == Some(&e.bytes),
                "{}: not the bytes of {spec}",
                e.place
            );
        } else {
            assert!(e.bytes.is_empty(), "{}: bytes from nowhere", e.place);
        }
        let got = decode::decode(&e);
        if got != e.meaning {
            let got = got.as_str().map_or_else(|| got.to_string(), str::to_owned);
            wrong.push(format!("{}: {} is\n{got}", e.place, e.kind));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn pages_have_examples_and_name_tests_that_exist() {
    let index = fs::read_to_string(root().join("docs/README.md")).unwrap();
    for (page, text) in pages() {
        assert!(text.contains("<!-- example: "), "{page}: no example");
        assert!(
            index.contains(&format!("(format/{page})")),
            "{page}: not in the index"
        );
        assert!(text.contains("## Comes from"), "{page}: comes from nowhere");
        let proofs = text
            .split("## Proved by")
            .nth(1)
            .unwrap_or_else(|| panic!("{page}: not proved"));
        let mut named = 0;
        for line in proofs
            .split("\n## ")
            .next()
            .unwrap()
            .lines()
            .filter(|l| l.starts_with("- `"))
        {
            let mut names = line.split('`').skip(1).step_by(2);
            let path = names.next().unwrap();
            let mut source = fs::read_to_string(root().join(path))
                .unwrap_or_else(|e| panic!("{page}: {path}: {e}"));
            // Tests of each fixture are named by one list.
            if source.contains("every_store!(") {
                source += &fs::read_to_string(root().join("tests/common/mod.rs")).unwrap();
            }
            for name in names {
                let there = [
                    format!("fn {name}("),
                    format!("func {name}("),
                    format!(" {name} = \""),
                ];
                assert!(
                    there.iter().any(|t| source.contains(t)),
                    "{page}: no {name} in {path}"
                );
                named += 1;
            }
        }
        assert!(named > 0, "{page}: names no test");
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|l| l.split([')', '#']).next())
        {
            let there = link.is_empty()
                || link.starts_with("https:")
                || root().join("docs/format").join(link).exists();
            assert!(there, "{page}: {link} leads nowhere");
        }
    }
}
