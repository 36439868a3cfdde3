//! The command line as users and scripts meet it: arguments, exit status, streams, the shape of JSON, filters,
//! and every form of a source.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Differences, Fixture, Jetsam, Ran, copy_tree, stream_dirs};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const PLAIN: &str = "2.14.5-basic";
const SEALED: &str = "2.14.5-aes-basic";

fn jetsam<const N: usize>(args: [&str; N]) -> Ran {
    Jetsam::new().args(args).run().no_panic()
}

fn verbs() -> Vec<String> {
    let help = jetsam(["--help"]).status(0).text();
    let verbs: Vec<String> = help
        .lines()
        .skip_while(|l| *l != "Commands:")
        .skip(1)
        .take_while(|l| l.starts_with("  "))
        // Lines that go on are indented further.
        .filter_map(|l| l.strip_prefix("  ")?.split(' ').next())
        .filter(|w| !w.is_empty())
        .map(str::to_owned)
        .collect();
    assert!(verbs.len() >= 8, "{verbs:?}");
    verbs
}

/// The first store of a fixture, in a place of its own.
fn own_store(fx: &Fixture) -> (tempfile::TempDir, PathBuf) {
    let work = tempfile::tempdir().unwrap();
    let store = work.path().join("store");
    copy_tree(&fx.stores()[0], &store);
    (work, store)
}

fn stream_dir(store: &Path, stream: &str) -> PathBuf {
    store.join("jetstream/$G/streams").join(stream)
}

// Help, versions, usage.

#[test]
fn help_has_examples_and_exit_codes() {
    let help = jetsam(["--help"]).status(0);
    assert_eq!(help.stderr, "");
    let text = help.text();
    for code in ["0 ", "1 ", "2 ", "3 ", "4 ", "130 "] {
        assert!(
            text.lines().any(|l| l.trim_start().starts_with(code)),
            "{code} in\n{text}"
        );
    }
    for verb in verbs() {
        let ran = Jetsam::new().args([&verb, "--help"]).run().status(0);
        assert_eq!(ran.stderr, "", "{verb}");
        let text = ran.text();
        assert!(text.contains("Example"), "{verb}: no example\n{text}");
        assert!(text.contains(&format!("jetsam {verb} ")), "{verb}\n{text}");
    }
}

#[test]
fn version_is_the_packages() {
    let want = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(jetsam(["--version"]).status(0).text(), want);
    assert_eq!(jetsam(["-V"]).status(0).text(), want);
}

#[test]
fn usage_errors_are_2_and_on_stderr() {
    for args in [
        &[][..],
        &["nonsense"],
        &["ls"],
        &["ls", "a", "b"],
        &["ls", "--nonsense", "."],
        &["view", ".", "--seq", "9..5"],
        &["view", ".", "--seq", "x"],
        &["view", ".", "--since", "yesterday"],
        &["view", ".", "--header", "=x"],
        &["view", ".", "--limit", "-1"],
        &["view", ".", "--raw", "--json"],
        &["view", ".", "--raw", "--out-dir", "x"],
        &["ls", ".", "--threads", "many"],
        &["ls", ".", "--color", "mauve"],
        &["ls", ".", "--key-file", "a", "--key-env", "B"],
        &["diff", "."],
        &["check"],
        &["inspect"],
        &["completions", "cmd"],
        &["man", "nonsense"],
    ] {
        let ran = Jetsam::new().args(args).run().no_panic().status(2);
        assert!(ran.stdout.is_empty(), "{}", ran.line);
        assert!(!ran.stderr.is_empty(), "{}", ran.line);
    }
}

#[test]
fn completions_and_manual() {
    for (shell, mark) in [
        ("bash", "complete"),
        ("zsh", "#compdef"),
        ("fish", "complete"),
    ] {
        let ran = jetsam(["completions", shell]).status(0);
        let text = ran.text();
        assert!(text.contains(mark) && ran.stderr.is_empty(), "{shell}");
        for verb in verbs() {
            assert!(text.contains(&verb), "{shell}: {verb}");
        }
        // Where the shell is installed, it has to parse its script.
        if let Ok(mut child) = Command::new(shell)
            .args(["-n"])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
        {
            child.stdin.take().unwrap().write_all(&ran.stdout).unwrap();
            assert!(child.wait().unwrap().success(), "{shell} -n");
        }
    }
    let page = jetsam(["man"]).status(0).text();
    assert!(
        page.contains(".TH jetsam") && page.contains("130"),
        "{page}"
    );
    for verb in verbs() {
        let page = Jetsam::new().args(["man", &verb]).run().status(0).text();
        assert!(
            page.contains(".SH SYNOPSIS") && page.contains("Example"),
            "{verb}\n{page}"
        );
    }
}

// Exit status, each by a real situation.

#[test]
fn exit_0_and_1() {
    let fx = Fixture::open(PLAIN);
    let (_work, store) = own_store(&fx);
    for verb in ["ls", "info", "view", "check"] {
        let ran = Jetsam::new().arg(verb).arg(&store).run().status(0);
        assert_eq!(ran.stderr, "", "{verb}");
    }
    // A byte of one message's payload.
    let block = stream_dir(&store, "ORDERS").join("msgs/1.blk");
    let mut bytes = fs::read(&block).unwrap();
    let at = bytes.windows(6).position(|w| w == b"\"who\":").unwrap();
    bytes[at + 8] ^= 1;
    fs::write(&block, bytes).unwrap();
    let check = Jetsam::new()
        .args(["check", "--json"])
        .arg(&store)
        .run()
        .status(1);
    let finding = &check.json()["findings"][0];
    assert_eq!(finding["file"], "jetstream/$G/streams/ORDERS/msgs/1.blk");
    assert_eq!(finding["severity"], "error");
    assert!(finding["offset"].as_u64().unwrap() < at as u64);
    let view = Jetsam::new()
        .args(["view", "--json"])
        .arg(&store)
        .run()
        .status(1);
    assert!(view.stderr.contains("ORDERS/msgs/1.blk"), "{}", view.stderr);
    // Every other message is there.
    assert_eq!(
        view.json_lines().len() + 1,
        Jetsam::new()
            .args(["view", "--json"])
            .arg(&fx.stores()[0])
            .run()
            .json_lines()
            .len()
    );
    Jetsam::new()
        .arg("diff")
        .arg(&store)
        .arg(&fx.stores()[0])
        .run()
        .status(1);
    // Not selected, it does not count.
    for verb in ["ls", "info", "view", "check"] {
        Jetsam::new()
            .args([verb, "-s", "WORK"])
            .arg(&store)
            .run()
            .status(0);
    }
    // Quiet is quiet, and changes nothing else.
    let quiet = Jetsam::new()
        .args(["view", "--json", "-q"])
        .arg(&store)
        .run()
        .status(1);
    assert_eq!((quiet.stderr.as_str(), &quiet.stdout), ("", &view.stdout));
}

#[test]
fn what_is_not_selected_does_not_count_in_backups_either() {
    let fx = Fixture::open(PLAIN);
    let work = tempfile::tempdir().unwrap();
    let dir = work.path();
    backup(&fx, "ORDERS", &dir.join("ORDERS"));
    backup(&fx, "WORK", &dir.join("WORK"));
    fs::write(dir.join("WORK/backup.json"), "{").unwrap();
    let archive = fs::read(dir.join("WORK/stream.tar.s2")).unwrap();
    fs::write(dir.join("WORK/stream.tar.s2"), &archive[..20]).unwrap();
    for verb in ["ls", "info", "view", "check"] {
        let ran = Jetsam::new().arg(verb).arg(dir).run().status(1);
        let said = ran.text() + &ran.stderr;
        for file in ["WORK/backup.json", "WORK/stream.tar.s2"] {
            assert!(said.contains(file), "{verb}: no word of {file}: {said}");
        }
        let ran = Jetsam::new()
            .args([verb, "-s", "ORDERS"])
            .arg(dir)
            .run()
            .status(0);
        assert_eq!(ran.stderr, "", "{verb}");
    }
}

#[test]
fn exit_2_when_nothing_can_be_done() {
    let work = tempfile::tempdir().unwrap();
    let missing = work.path().join("missing");
    for verb in ["ls", "info", "view", "check", "inspect"] {
        let ran = Jetsam::new()
            .arg(verb)
            .arg(&missing)
            .run()
            .no_panic()
            .status(2);
        assert!(
            ran.stderr.contains(missing.to_str().unwrap()),
            "{}",
            ran.stderr
        );
        assert!(ran.stdout.is_empty());
    }
    let fx = Fixture::open(PLAIN);
    let store = &fx.stores()[0];
    for args in [["-s", "NOSUCH"], ["-a", "NOSUCH"]] {
        let ran = Jetsam::new()
            .arg("ls")
            .arg(store)
            .args(args)
            .run()
            .status(2);
        assert!(ran.stderr.contains("no stream matches"), "{}", ran.stderr);
    }
    // The result cannot be written.
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    if let Ok(full) = full {
        let mut j = Jetsam::new().args(["view", "--json"]).arg(store);
        let ran = j
            .command
            .stdout(full)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(ran.status.code(), Some(2));
        assert!(!ran.stderr.is_empty());
    }
}

/// A process that has a file open for writing.
struct Writer(Child);

impl Writer {
    fn of(file: &Path) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "exec 3>>\"$0\"; echo ready; read x"])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Writer(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn exit_3_when_the_store_is_in_use() {
    let fx = Fixture::open(PLAIN);
    let (_work, store) = own_store(&fx);
    let writer = Writer::of(&stream_dir(&store, "ORDERS").join("msgs/1.blk"));
    let pid = writer.0.id().to_string();
    for verb in ["ls", "info", "view", "check"] {
        let ran = Jetsam::new()
            .args([verb, "--json"])
            .arg(&store)
            .run()
            .status(3);
        assert!(ran.stdout.is_empty(), "{verb}");
        assert!(
            ran.stderr.contains("in use") && ran.stderr.contains(&pid),
            "{}",
            ran.stderr
        );
        assert!(ran.stderr.contains("--live"), "{}", ran.stderr);
        let live = Jetsam::new()
            .args([verb, "--json", "--live"])
            .arg(&store)
            .run()
            .status(0);
        assert!(
            live.stderr.contains("warning") && live.stderr.contains("torn"),
            "{}",
            live.stderr
        );
        assert!(!live.stdout.is_empty());
    }
    Jetsam::new()
        .arg("diff")
        .arg(&store)
        .arg(&fx.stores()[0])
        .run()
        .status(3);
    Jetsam::new()
        .arg("diff")
        .arg(&fx.stores()[0])
        .arg(&store)
        .run()
        .status(3);
    drop(writer);
    Jetsam::new().arg("check").arg(&store).run().status(0);
}

/// A shell's background jobs ignore SIGINT, and so does what they start.
fn interrupts_are_ignored() -> bool {
    const SIGINT: u32 = 2;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok());
    mask.is_some_and(|m| m >> (SIGINT - 1) & 1 == 1)
}

/// `view` of much, its output into a pipe that is not read yet.
fn stuck_view(store: &Path) -> Child {
    let mut j = Jetsam::new();
    if interrupts_are_ignored() {
        let jetsam = j.command.get_program().to_owned();
        j.command = Command::new("env");
        j.command.arg("--default-signal=INT").arg(jetsam);
    }
    let child = j
        .command
        .args(["view", "--json", "--deleted"])
        .arg(store)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Written is what fits; then it waits.
    std::thread::sleep(std::time::Duration::from_millis(400));
    child
}

#[test]
fn exit_3_when_it_changes_while_it_is_read() {
    let fx = Fixture::open(PLAIN);
    let (_work, store) = own_store(&fx);
    let mut child = stuck_view(&store);
    assert!(
        child.try_wait().unwrap().is_none(),
        "the output fits into a pipe"
    );
    let block = stream_dir(&store, "WORK").join("msgs/1.blk");
    fs::OpenOptions::new()
        .append(true)
        .open(block)
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let out = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("changed while it was read"), "{stderr}");
}

#[test]
fn interrupted_is_130() {
    let fx = Fixture::open(PLAIN);
    let mut child = stuck_view(&fx.stores()[0]);
    assert!(
        child.try_wait().unwrap().is_none(),
        "the output fits into a pipe"
    );
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    let status = child.wait().unwrap();
    // A shell says 130 for both.
    assert!(
        status.code() == Some(130) || status.signal() == Some(2),
        "{status:?}"
    );
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let fx = Fixture::open(PLAIN);
    for args in [
        &["view", "--json"][..],
        &["view"],
        &["view", "--raw"],
        &["info", "--json", "--deleted", "--subjects"],
        &["ls"],
        &["check"],
    ] {
        for threads in ["1", "2"] {
            let mut j = Jetsam::new()
                .args(args)
                .args(["--threads", threads])
                .arg(&fx.stores()[0]);
            let mut child = j
                .command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut some = [0];
            child.stdout.take().unwrap().read_exact(&mut some).unwrap();
            let out = child.wait_with_output().unwrap();
            assert_eq!(
                (
                    out.status.code(),
                    String::from_utf8_lossy(&out.stderr).as_ref()
                ),
                (Some(0), ""),
                "{args:?}"
            );
        }
    }
}

// Keys.

/// A call for the encrypted fixture; `Err` is what went wrong.
fn sealed(args: &[&str], env: &[(&str, &str)]) -> Ran {
    let fx = Fixture::open(SEALED);
    let mut j = Jetsam::new().args(args).arg(&fx.stores()[0]);
    j.command
        .env_remove("JETSAM_PREV_KEY")
        .envs(env.iter().copied());
    j.run().no_panic()
}

#[test]
fn exit_4_without_the_right_key() {
    let fx = Fixture::open(SEALED);
    let key = fx.key().unwrap();
    let work = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = work.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (right, newline) = (file("right", key), file("newline", &format!("{key}\n")));
    let (two, wrong) = (file("two", &format!("{key}\n\n")), file("wrong", "no"));
    let empty = file("empty", "\n");
    let missing = work.path().join("missing");
    let missing = missing.to_str().unwrap();

    for verb in ["ls", "info", "view", "check"] {
        let ran = sealed(&[verb], &[]).status(4);
        assert!(
            (ran.text() + &ran.stderr).contains("no key was given"),
            "{verb}: {}",
            ran.stderr
        );
        let ran = sealed(&[verb], &[("JETSAM_KEY", "no")]).status(4);
        assert!(
            (ran.text() + &ran.stderr).contains("no given key opens it"),
            "{verb}: {}",
            ran.stderr
        );
        sealed(&[verb, "--key-file", &two], &[]).status(4);
        sealed(&[verb, "--key-file", &wrong], &[("JETSAM_KEY", key)]).status(4);
    }
    for path in [missing, &empty] {
        let ran = sealed(&["ls", "--key-file", path], &[("JETSAM_KEY", key)]).status(4);
        assert!(
            ran.stderr.contains(path) && !ran.stderr.contains(key),
            "{}",
            ran.stderr
        );
    }
    let ran = sealed(
        &["ls", "--key-env", "JETSAM_TEST_NONE"],
        &[("JETSAM_KEY", key)],
    )
    .status(4);
    assert!(ran.stderr.contains("JETSAM_TEST_NONE"), "{}", ran.stderr);

    let want = Fixture::open(SEALED).view_lines("$G", "ORDERS");
    for (args, env) in [
        (&["--key-file", &right][..], &[][..]),
        (&["--key-file", &newline], &[]),
        (&["--key-file", &right], &[("JETSAM_KEY", "no")]),
        (
            &["--key-env", "MY_KEY"],
            &[("MY_KEY", key), ("JETSAM_KEY", "no")],
        ),
        (&[], &[("JETSAM_KEY", key)]),
        (&["--prev-key-file", &newline], &[("JETSAM_KEY", "no")]),
        (
            &["--prev-key-env", "OLD"],
            &[("JETSAM_KEY", "no"), ("OLD", key)],
        ),
        (&[], &[("JETSAM_KEY", "no"), ("JETSAM_PREV_KEY", key)]),
    ] {
        let mut all = vec!["view", "--json", "-s", "ORDERS"];
        all.extend(args);
        let ran = sealed(&all, env).status(0);
        assert_eq!(ran.stderr, "", "{args:?}");
        let mut d = Differences::default();
        d.lines("ORDERS", &ran.json_lines(), &want);
        d.none(&format!("{args:?} {env:?}"));
    }
}

#[test]
fn a_key_is_needed_only_for_what_is_selected() {
    let sealed = Fixture::open(SEALED);
    let plain = Fixture::open("2.12.15-accounts");
    let (_work, store) = own_store(&sealed);
    copy_tree(
        &plain.stores()[0].join("jetstream/ACME"),
        &store.join("jetstream/ACME"),
    );
    for verb in ["ls", "info", "view", "check"] {
        let ran = Jetsam::new()
            .args([verb, "-a", "ACME"])
            .arg(&store)
            .run()
            .status(0);
        assert_eq!(ran.stderr, "", "{verb}");
        Jetsam::new()
            .args([verb, "-a", "$G"])
            .arg(&store)
            .run()
            .status(4);
        // What needs no key is shown all the same.
        let ran = Jetsam::new().arg(verb).arg(&store).run().status(4);
        if verb != "check" {
            assert!(ran.text().contains("EVENTS"), "{verb}");
        }
        sealed.jetsam().arg(verb).arg(&store).run().status(0);
    }
    // A key that nothing needs does no harm.
    let mut j = Jetsam::new().arg("check").arg(&plain.stores()[0]);
    j.command.env("JETSAM_KEY", "whatever");
    j.run().status(0);
}

// Where output goes.

#[test]
fn results_on_stdout_messages_on_stderr() {
    let fx = Fixture::open(PLAIN);
    let store = &fx.stores()[0];
    for args in [
        &["check", "--json"][..],
        &["view", "--json"],
        &["diff", "--json"],
        &["ls"],
    ] {
        let run = |extra: &[&str]| {
            let mut j = Jetsam::new().args(args).args(extra).arg(store);
            if args[0] == "diff" {
                j = j.arg(store);
            }
            j.run().no_panic().status(0)
        };
        let plain = run(&[]);
        assert_eq!(
            plain.stderr, "",
            "{args:?}: a bar where there is no terminal"
        );
        let lines = run(&["--no-progress"]);
        assert_eq!(plain.stdout, lines.stdout, "{args:?}");
        if args[0] != "ls" {
            // index.db answers `ls`.
            assert!(
                lines.stderr.lines().count() > 3,
                "{args:?}: {}",
                lines.stderr
            );
        }
        assert!(!lines.stderr.contains('\r') && !lines.stderr.contains('\x1b'));
        let quiet = run(&["--no-progress", "-q"]);
        assert_eq!((quiet.stderr.as_str(), &quiet.stdout), ("", &plain.stdout));
    }
}

#[test]
fn colours() {
    let fx = Fixture::open(PLAIN);
    for args in [
        &["ls"][..],
        &["view", "-s", "ORDERS"],
        &["check"],
        &["info"],
    ] {
        let run = |color: Option<&str>| {
            let mut j = Jetsam::new().args(args).arg(&fx.stores()[0]);
            j.command.env_remove("NO_COLOR");
            if let Some(when) = color {
                j = j.args(["--color", when]);
            }
            j.run().status(0).stdout
        };
        let has = |out: &[u8]| out.contains(&0x1b);
        assert!(has(&run(Some("always"))), "{args:?}");
        assert!(!has(&run(Some("never"))), "{args:?}");
        assert!(!has(&run(None)), "{args:?}: no terminal");
    }
}

// JSON.

fn keys(v: &Value) -> BTreeSet<String> {
    v.as_object()
        .unwrap_or_else(|| panic!("no object: {v}"))
        .keys()
        .cloned()
        .collect()
}

/// Fails unless `v` has these keys, and no others but those that are allowed in addition.
#[track_caller]
fn shape(v: &Value, want: &str, more: &str) {
    let set = |s: &str| {
        s.split_whitespace()
            .map(str::to_owned)
            .collect::<BTreeSet<_>>()
    };
    let (got, want) = (keys(v), set(want));
    let missing: Vec<_> = want.difference(&got).collect();
    assert!(missing.is_empty(), "{missing:?} missing in {v}");
    let allowed = &want | &set(more);
    let strange: Vec<_> = got.difference(&allowed).collect();
    assert!(strange.is_empty(), "{strange:?} in {v}");
}

#[test]
fn shape_of_ls_and_info() {
    for name in [PLAIN, "2.14.5-chacha-compress", "2.12.15-accounts"] {
        let fx = Fixture::open(name);
        let store = &fx.stores()[0];
        let ls = fx
            .jetsam()
            .args(["ls", "--json"])
            .arg(store)
            .run()
            .status(0)
            .json();
        let info = fx
            .jetsam()
            .args(["info", "--json"])
            .arg(store)
            .run()
            .status(0)
            .json();
        let more = fx
            .jetsam()
            .args(["info", "--json", "--deleted", "--subjects"])
            .arg(store)
            .run()
            .status(0)
            .json();
        let names = fx.stream_names();
        let mut d = Differences::default();
        for (i, (account, stream)) in names.iter().enumerate() {
            let truth = &fx.truth["accounts"][account][stream];
            let line = &ls[i];
            shape(
                line,
                "account stream path messages bytes first_seq last_seq consumers blocks cipher compression",
                "last_ts problems",
            );
            let path = format!("jetstream/{account}/streams/{stream}");
            let state = &truth["state"];
            let mut want = json!({
                "account": account, "stream": stream, "path": path,
                "messages": state["messages"], "bytes": state["bytes"],
                "first_seq": state["first_seq"], "last_seq": state["last_seq"],
                "consumers": state["consumer_count"],
                "blocks": fs::read_dir(store.join(&path).join("msgs")).unwrap()
                    .filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().ends_with(".blk")).count(),
                "cipher": fx.truth["cipher"].as_str().unwrap_or("none"),
                "compression": truth["config"]["compression"],
                "problems": 0,
            });
            if line.get("last_ts").is_some() {
                want["last_ts"] = state["last_ts"].clone();
            }
            d.json(stream, line, &want);

            for (one, state_extra) in [(&info[i], ""), (&more[i], "deleted subjects")] {
                shape(
                    one,
                    "account path config created state consumers storage",
                    "",
                );
                assert_eq!(
                    (&one["account"], &one["path"]),
                    (&json!(account), &json!(path))
                );
                shape(
                    &one["state"],
                    &format!(
                        "messages bytes first_seq first_ts last_seq last_ts num_subjects num_deleted consumer_count {state_extra}"
                    ),
                    "",
                );
                shape(
                    &one["storage"],
                    "blocks files_bytes cipher compression written_by",
                    "",
                );
                for c in one["consumers"].as_array().unwrap() {
                    shape(
                        c,
                        "stream_name name created config delivered ack_floor num_ack_pending num_redelivered num_pending",
                        "",
                    );
                    shape(&c["delivered"], "consumer_seq stream_seq", "");
                    shape(&c["ack_floor"], "consumer_seq stream_seq", "");
                }
            }
        }
        assert_eq!(ls.as_array().unwrap().len(), names.len(), "{name}");
        d.none(name);
    }
}

#[test]
fn shape_of_view_check_diff_inspect() {
    let fx = Fixture::open(PLAIN);
    let (_work, store) = own_store(&fx);
    let block = stream_dir(&store, "BLOCKS").join("msgs/1.blk");
    let view = Jetsam::new()
        .args(["view", "--json", "--deleted"])
        .arg(&store)
        .run()
        .status(0);
    for line in view.json_lines() {
        shape(
            &line,
            "account stream seq subject time",
            "hdrs data deleted",
        );
    }
    let mut kinds = BTreeSet::new();
    for (_, _, dir) in stream_dirs(&store) {
        let mut records = Vec::new();
        for entry in fs::read_dir(dir.join("msgs")).unwrap() {
            let path = entry.unwrap().path();
            let ran = Jetsam::new()
                .args(["inspect", "--json"])
                .arg(&path)
                .run()
                .status(0);
            if path.extension().unwrap() == "blk" {
                let lines = ran.json_lines();
                let total: u64 = lines.iter().map(|l| l["length"].as_u64().unwrap()).sum();
                assert_eq!(
                    total,
                    fs::metadata(&path).unwrap().len(),
                    "{}",
                    path.display()
                );
                records.extend(lines);
            } else {
                assert!(ran.json().is_object());
            }
        }
        for r in records {
            let kind = r["kind"].as_str().unwrap().to_owned();
            shape(
                &r,
                "offset length seq kind time hash",
                "subject header_length data_length",
            );
            if kind == "message" {
                shape(
                    &r,
                    "offset length seq kind time subject header_length data_length hash",
                    "",
                );
            }
            assert_eq!(r["hash"], "ok");
            kinds.insert(kind);
        }
    }
    assert!(
        kinds.iter().any(|k| k == "message") && kinds.iter().any(|k| k == "tombstone"),
        "{kinds:?}"
    );
    assert!(
        kinds
            .iter()
            .all(|k| ["message", "tombstone", "erased", "skip"].contains(&k.as_str()))
    );

    let sound = Jetsam::new()
        .args(["check", "--json"])
        .arg(&store)
        .run()
        .status(0)
        .json();
    let messages: usize = fx
        .stream_names()
        .iter()
        .map(|(a, s)| fx.view_lines(a, s).len())
        .sum();
    shape(&sound, "findings summary", "");
    shape(
        &sound["summary"],
        "streams consumers blocks records messages bytes errors warnings",
        "",
    );
    assert_eq!(sound["summary"]["streams"], fx.stream_names().len());
    assert_eq!(sound["summary"]["messages"], messages);

    let mut bytes = fs::read(&block).unwrap();
    let at = bytes.len() - 60;
    bytes[at] ^= 0xff;
    fs::write(&block, bytes).unwrap();
    let report = Jetsam::new()
        .args(["check", "--json"])
        .arg(&store)
        .run()
        .status(1)
        .json();
    let findings = report["findings"].as_array().unwrap();
    assert!(!findings.is_empty());
    for f in findings {
        shape(
            f,
            "code severity detail action",
            "account stream consumer file offset seq on_start repairable",
        );
        assert!(["error", "warning", "note"].contains(&f["severity"].as_str().unwrap()));
        assert!(f["action"].as_str().is_some_and(|a| !a.is_empty()));
    }
    let errors = findings.iter().filter(|f| f["severity"] == "error").count();
    assert_eq!(report["summary"]["errors"], errors);

    let diff = Jetsam::new()
        .args(["diff", "--json"])
        .arg(&fx.stores()[0])
        .arg(&store)
        .run()
        .status(1);
    let lines = diff.json_lines();
    assert!(!lines.is_empty());
    for l in &lines {
        shape(
            l,
            "account stream what key",
            "consumer seq last_seq count a b",
        );
        assert_eq!(l["stream"], "BLOCKS");
    }
    let inspect = Jetsam::new()
        .args(["inspect", "--json"])
        .arg(&block)
        .run()
        .status(1);
    assert!(
        inspect
            .json_lines()
            .iter()
            .any(|r| r["hash"] == "bad" || r["kind"] == "garbage")
    );
}

// Filters of `view`, by the truth.

fn subject_matches(filter: &str, subject: &str) -> bool {
    let (mut f, mut s) = (filter.split('.'), subject.split('.'));
    loop {
        match (f.next(), s.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

fn headers(m: &Value) -> Vec<(String, String)> {
    let Some(h) = m["hdrs"].as_str() else {
        return Vec::new();
    };
    String::from_utf8(STANDARD.decode(h).unwrap())
        .unwrap()
        .split("\r\n")
        .skip(1)
        .filter_map(|l| l.split_once(':'))
        .map(|(k, v)| (k.to_owned(), v.trim().to_owned()))
        .collect()
}

fn payload(m: &Value) -> Vec<u8> {
    STANDARD
        .decode(m["data"].as_str().unwrap_or_default())
        .unwrap()
}

fn last_per_subject(lines: &[Value]) -> Vec<Value> {
    let mut last = BTreeMap::new();
    for l in lines {
        last.insert(l["subject"].as_str().unwrap(), l["seq"].as_u64().unwrap());
    }
    lines
        .iter()
        .filter(|l| last[l["subject"].as_str().unwrap()] == l["seq"].as_u64().unwrap())
        .cloned()
        .collect()
}

#[test]
fn every_filter_of_view() {
    for name in [PLAIN, "2.2.6-basic", "2.15.2-basic", SEALED] {
        let fx = Fixture::open(name);
        let all = fx.view_lines("$G", "ORDERS");
        assert!(all.len() > 200);
        let seq = |l: &Value| l["seq"].as_u64().unwrap();
        let time = |l: &Value| common::instant(&l["time"]).unwrap();
        let subject = |l: &Value, f: &str| subject_matches(f, l["subject"].as_str().unwrap());
        let keep =
            |f: &dyn Fn(&Value) -> bool| all.iter().filter(|l| f(l)).cloned().collect::<Vec<_>>();
        let (early, late) = (
            all[50]["time"].as_str().unwrap(),
            all[100]["time"].as_str().unwrap(),
        );
        let (t0, t1) = (time(&all[50]), time(&all[100]));
        let (key, value) = all
            .iter()
            .flat_map(headers)
            .find(|(k, _)| k == "X-Trace")
            .unwrap();
        let one = format!("{key}={value}");
        let one_subject = all[7]["subject"].as_str().unwrap();
        let reversed: Vec<Value> = all.iter().rev().cloned().collect();

        let cases: Vec<(Vec<&str>, Vec<Value>)> = vec![
            (vec![], all.clone()),
            (
                vec!["--subject", "orders.new.>"],
                keep(&|l| subject(l, "orders.new.>")),
            ),
            (
                vec!["--subject", "orders.*.1"],
                keep(&|l| subject(l, "orders.*.1")),
            ),
            (
                vec!["--subject", "*.new.*"],
                keep(&|l| subject(l, "*.new.*")),
            ),
            (vec!["--subject", ">"], all.clone()),
            (vec!["--subject", "orders"], vec![]),
            (vec!["--subject", "orders.new"], vec![]),
            (vec!["--subject", "orders.*"], vec![]),
            (
                vec!["--subject", one_subject],
                keep(&|l| subject(l, one_subject)),
            ),
            (
                vec!["--subject", "orders.new.*", "--subject", "orders.paid.3"],
                keep(&|l| subject(l, "orders.new.*") || subject(l, "orders.paid.3")),
            ),
            (vec!["--seq", "7"], keep(&|l| seq(l) == 7)),
            // Mostly deleted.
            (vec!["--seq", "2..5"], keep(&|l| (2..=5).contains(&seq(l)))),
            (
                vec!["--seq", "5..20"],
                keep(&|l| (5..=20).contains(&seq(l))),
            ),
            (vec!["--seq", "290.."], keep(&|l| seq(l) >= 290)),
            (vec!["--seq", "..9"], keep(&|l| seq(l) <= 9)),
            (vec!["--seq", "0..18446744073709551615"], all.clone()),
            (vec!["--seq", "5000.."], vec![]),
            (vec!["--since", early], keep(&|l| time(l) >= t0)),
            (vec!["--until", late], keep(&|l| time(l) <= t1)),
            (
                vec!["--since", early, "--until", late],
                keep(&|l| time(l) >= t0 && time(l) <= t1),
            ),
            (vec!["--since", "90000d"], all.clone()),
            (vec!["--until", "90000d"], vec![]),
            (
                vec!["--header", "X-Trace"],
                keep(&|l| headers(l).iter().any(|(k, _)| k == "X-Trace")),
            ),
            (
                vec!["--header", &one],
                keep(&|l| headers(l).contains(&(key.clone(), value.clone()))),
            ),
            (vec!["--header", "X-Trace=no"], vec![]),
            (vec!["--header", "No"], vec![]),
            (
                vec!["--header", "X-Trace", "--header", "Nats-Msg-Id=id-300"],
                keep(&|l| headers(l).contains(&("Nats-Msg-Id".into(), "id-300".into()))),
            ),
            (vec!["--last-per-subject"], last_per_subject(&all)),
            (
                vec!["--last-per-subject", "--seq", "..150"],
                last_per_subject(&keep(&|l| seq(l) <= 150)),
            ),
            (vec!["--limit", "0"], vec![]),
            (vec!["--limit", "3"], all[..3].to_vec()),
            (vec!["--limit", "100000"], all.clone()),
            (vec!["--reverse"], reversed.clone()),
            (vec!["--reverse", "--limit", "4"], reversed[..4].to_vec()),
            (
                vec!["--reverse", "--last-per-subject", "--limit", "5"],
                last_per_subject(&all).into_iter().rev().take(5).collect(),
            ),
            (
                vec![
                    "--subject",
                    "orders.paid.>",
                    "--since",
                    early,
                    "--seq",
                    "..250",
                    "--limit",
                    "10",
                ],
                keep(&|l| subject(l, "orders.paid.>") && time(l) >= t0 && seq(l) <= 250)
                    .into_iter()
                    .take(10)
                    .collect(),
            ),
        ];
        let mut d = Differences::default();
        for (args, want) in cases {
            let ran = fx
                .jetsam()
                .args(["view", "--json", "-s", "ORDERS"])
                .args(&args)
                .arg(&fx.stores()[0])
                .run()
                .status(0);
            d.lines(&format!("{args:?}"), &ran.json_lines(), &want);
        }
        d.none(name);
    }
}

#[test]
fn deleted_messages_are_marked() {
    for name in [PLAIN, "2.2.6-basic", "2.9.25-basic", SEALED] {
        let fx = Fixture::open(name);
        for stream in ["ORDERS", "LIMITED", "BLOCKS"] {
            let deleted: BTreeSet<u64> = fx.truth["accounts"]["$G"][stream]["state"]["deleted"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|v| v.as_u64().unwrap())
                .collect();
            let state = &fx.truth["accounts"]["$G"][stream]["state"];
            let first = state["first_seq"].as_u64().unwrap();
            let ran = fx
                .jetsam()
                .args(["view", "--json", "--deleted", "-s", stream])
                .arg(&fx.stores()[0])
                .run()
                .status(0);
            let (dead, live): (Vec<_>, Vec<_>) = ran
                .json_lines()
                .into_iter()
                .partition(|l| l.get("deleted").is_some());
            let mut d = Differences::default();
            d.lines("live", &live, &fx.view_lines("$G", stream));
            d.none(&format!("{name} {stream}"));
            for l in &dead {
                let seq = l["seq"].as_u64().unwrap();
                assert!(deleted.contains(&seq) || seq < first, "{name} {stream} {l}");
                assert!(l["deleted"].as_str().is_some_and(|w| !w.is_empty()));
            }
            if stream == "ORDERS" {
                assert!(dead.len() > 5, "{name}: {}", dead.len());
            }
        }
    }
}

#[test]
fn payloads_raw_and_as_files() {
    let fx = Fixture::open(PLAIN);
    let want = fx.view_lines("$G", "ORDERS");
    let raw = Jetsam::new()
        .args(["view", "--raw", "-s", "ORDERS"])
        .arg(&fx.stores()[0])
        .run()
        .status(0);
    assert_eq!(
        raw.stdout,
        want.iter().flat_map(payload).collect::<Vec<u8>>()
    );

    let (work, store) = own_store(&fx);
    let out = work.path().join("out/deep");
    let export = |dir: &Path| {
        Jetsam::new()
            .args(["view", "-s", "ORDERS", "--out-dir"])
            .arg(dir)
            .arg(&store)
            .run()
            .no_panic()
    };
    export(&out).status(0);
    let dir = out.join("$G/ORDERS");
    let mut names: Vec<u64> = fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        want.iter()
            .map(|l| l["seq"].as_u64().unwrap())
            .collect::<Vec<_>>()
    );
    for l in &want {
        assert_eq!(
            fs::read(dir.join(l["seq"].to_string())).unwrap(),
            payload(l),
            "{l}"
        );
    }
    // What is there is not replaced, and nothing is written into the source.
    let before = common::fingerprint(&out);
    let again = export(&out).status(2);
    assert!(again.stderr.contains("$G/ORDERS/1"), "{}", again.stderr);
    fs::read_dir(&dir).unwrap().for_each(|e| {
        let name = e.unwrap().file_name();
        assert!(!name.to_str().unwrap().starts_with('.'), "{name:?} is left");
    });
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        common::fingerprint(&out).keys().collect::<Vec<_>>()
    );
    let before = common::fingerprint(&store);
    export(&store.join("out")).status(2);
    export(&stream_dir(&store, "ORDERS").join("msgs")).status(2);
    assert_eq!(before, common::fingerprint(&store));
}

// Selectors.

#[test]
fn selectors_take_globs() {
    let fx = Fixture::open("2.12.15-accounts");
    let list = |args: &[&str]| -> Vec<String> {
        let ran = Jetsam::new()
            .args(["ls", "--json"])
            .args(args)
            .arg(&fx.stores()[0])
            .run()
            .status(0);
        ran.json()
            .as_array()
            .unwrap()
            .iter()
            .map(|l| {
                format!(
                    "{}/{}",
                    l["account"].as_str().unwrap(),
                    l["stream"].as_str().unwrap()
                )
            })
            .collect()
    };
    let all: Vec<String> = fx
        .stream_names()
        .into_iter()
        .map(|(a, s)| format!("{a}/{s}"))
        .collect();
    assert_eq!(list(&[]), all);
    assert_eq!(list(&["-s", "*"]), all);
    assert_eq!(list(&["-a", "ACME"]), ["ACME/EVENTS", "ACME/ONLY_A"]);
    assert_eq!(list(&["--account", "B*"]), ["BETA/EVENTS"]);
    assert_eq!(list(&["-s", "EV*"]), ["ACME/EVENTS", "BETA/EVENTS"]);
    assert_eq!(
        list(&["-s", "*_A", "-s", "EVENTS", "-a", "ACME"]),
        ["ACME/EVENTS", "ACME/ONLY_A"]
    );
    assert_eq!(
        list(&["-a", "ACME", "-a", "BETA", "-s", "*EVENTS"]),
        ["ACME/EVENTS", "BETA/EVENTS"]
    );
    // Before the verb too.
    let ran = Jetsam::new()
        .args(["-a", "BETA", "--json", "ls"])
        .arg(&fx.stores()[0])
        .run()
        .status(0);
    assert_eq!(ran.json().as_array().unwrap().len(), 1);

    let fx = Fixture::open(PLAIN);
    let consumers = |args: &[&str]| -> Vec<String> {
        let ran = Jetsam::new()
            .args(["info", "--json", "-s", "ORDERS"])
            .args(args)
            .arg(&fx.stores()[0])
            .run()
            .status(0);
        let json = ran.json();
        let names = json[0]["consumers"].as_array().unwrap();
        names
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(consumers(&[]), ["ALL", "NEW", "NOACK", "PUSH", "UNUSED"]);
    assert_eq!(consumers(&["-c", "N*"]), ["NEW", "NOACK"]);
    assert_eq!(
        consumers(&["-c", "PUSH", "--consumer", "*LL"]),
        ["ALL", "PUSH"]
    );
}

// Sources.

/// A backup directory as the nats CLI makes it.
fn backup(fx: &Fixture, stream: &str, to: &Path) {
    let from = fx.dir.join("snapshots/$G");
    fs::create_dir_all(to).unwrap();
    fs::copy(
        from.join(format!("{stream}.tar.s2")),
        to.join("stream.tar.s2"),
    )
    .unwrap();
    fs::copy(from.join(format!("{stream}.json")), to.join("backup.json")).unwrap();
}

struct Form {
    what: &'static str,
    path: PathBuf,
    args: Vec<&'static str>,
    account: &'static str,
    /// Exit status of `check`.
    check: i32,
    /// It has no configuration (and with it no creation time), or no consumers.
    config: bool,
    consumers: bool,
}

fn forms(fx: &Fixture, dir: &Path) -> Vec<Form> {
    let store = dir.join("store");
    copy_tree(&fx.stores()[0], &store);
    let orders = stream_dir(&store, "ORDERS");
    let place = |name: &str| dir.join(name);
    copy_tree(&orders, &place("moved"));
    copy_tree(&orders, &place("bare"));
    fs::remove_file(dir.join("bare/meta.inf")).unwrap();
    fs::create_dir(place("loose")).unwrap();
    fs::copy(orders.join("msgs/1.blk"), dir.join("loose/1.blk")).unwrap();
    backup(fx, "ORDERS", &place("backup"));
    for name in ["ORDERS", "WORK", "LIMITED"] {
        backup(fx, name, &dir.join("account-backup").join(name));
        backup(fx, name, &dir.join("backups/$G").join(name));
    }
    let archive = fx.dir.join("snapshots/$G/ORDERS.tar.s2");
    let form = |what, path: PathBuf| Form {
        what,
        path,
        args: vec!["-s", "ORDERS"],
        account: "$G",
        check: 0,
        config: true,
        consumers: true,
    };
    let nameless = |what, path| Form {
        account: "",
        args: vec![],
        ..form(what, path)
    };
    let v2 = fx.version() >= (2, 15, 0);
    let mut forms = vec![
        form("store directory", store.clone()),
        form("jetstream directory", store.join("jetstream")),
        form("account directory", store.join("jetstream/$G")),
        form("streams directory", store.join("jetstream/$G/streams")),
        Form {
            args: vec![],
            ..form("stream directory", orders.clone())
        },
        nameless("stream directory, moved", place("moved")),
        Form {
            check: 1,
            config: false,
            args: vec!["-s", "ORDERS"],
            ..nameless("without meta.inf", place("bare"))
        },
        Form {
            args: vec![],
            config: false,
            consumers: false,
            ..form("msgs directory", orders.join("msgs"))
        },
        Form {
            args: vec![],
            config: false,
            consumers: false,
            ..form("one block", orders.join("msgs/1.blk"))
        },
        Form {
            args: vec!["-s", "ORDERS"],
            config: false,
            consumers: false,
            ..nameless("a loose block", dir.join("loose/1.blk"))
        },
        nameless("backup directory", place("backup")),
        Form {
            args: vec!["-s", "ORDERS"],
            ..nameless("account backup", place("account-backup"))
        },
        form("ACCOUNT/STREAM", place("backups")),
        Form {
            config: !v2,
            ..nameless("archive", archive.clone())
        },
    ];
    if !v2 {
        let mut tar = Vec::new();
        minlz::Reader::new(fs::File::open(archive).unwrap())
            .read_to_end(&mut tar)
            .unwrap();
        fs::write(place("ORDERS.tar"), &tar).unwrap();
        let tgz = fs::File::create(place("ORDERS.tgz")).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(tgz, flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        gzip.finish().unwrap();
        forms.push(nameless("plain tar", place("ORDERS.tar")));
        forms.push(nameless("gzip tar", place("ORDERS.tgz")));
    }
    forms
}

#[test]
fn the_same_answers_from_every_form() {
    for name in ["2.9.25-basic", PLAIN, "2.15.2-basic"] {
        let fx = Fixture::open(name);
        let work = tempfile::tempdir().unwrap();
        let truth = &fx.truth["accounts"]["$G"]["ORDERS"];
        let mut d = Differences::default();
        for f in forms(&fx, work.path()) {
            let what = format!("{name}: {}", f.what);
            let run = |args: &[&str]| {
                Jetsam::new()
                    .args(args)
                    .args(&f.args)
                    .arg(&f.path)
                    .run()
                    .no_panic()
            };
            let fine = |ran: Ran| {
                assert!(
                    ran.status == Some(0) || f.check == 1,
                    "{what}: {:?} {}",
                    ran.status,
                    ran.stderr
                );
                ran
            };
            let view = fine(run(&["view", "--json"]));
            let want: Vec<Value> = fx
                .view_lines("$G", "ORDERS")
                .into_iter()
                .map(|mut l| {
                    l["account"] = f.account.into();
                    l
                })
                .collect();
            let mut got = view.json_lines();
            if f.what.ends_with("block") && fx.version() < (2, 10, 0) {
                // Deletes of before 2.10 are in the .idx beside the block: without it all are live.
                got.retain(|l| want.iter().any(|w| w["seq"] == l["seq"]));
                d.lines(&what, &got, &want);
                continue;
            }
            d.lines(&what, &got, &want);

            let info = fine(run(&["info", "--json", "--deleted", "--subjects"])).json();
            assert_eq!(info.as_array().unwrap().len(), 1, "{what}");
            let info = &info[0];
            let mut state = truth["state"].clone();
            if !f.consumers {
                state["consumer_count"] = 0.into();
            }
            d.json(&format!("{what} state"), &info["state"], &state);
            assert_eq!(info["account"], f.account, "{what}");
            assert_eq!(
                info["config"] != json!({}),
                f.config,
                "{what}: {}",
                info["config"]
            );
            if f.config {
                d.json(
                    &format!("{what} subjects"),
                    &info["config"]["subjects"],
                    &truth["config"]["subjects"],
                );
            }
            let consumers: Vec<&str> = info["consumers"]
                .as_array()
                .unwrap()
                .iter()
                .map(|c| c["name"].as_str().unwrap())
                .collect();
            let names: Vec<&str> = truth["consumers"]
                .as_object()
                .unwrap()
                .keys()
                .map(String::as_str)
                .collect();
            assert_eq!(
                consumers,
                if f.consumers { names } else { vec![] },
                "{what}"
            );

            let ls = fine(run(&["ls", "--json"])).json();
            assert_eq!(
                (&ls[0]["stream"], &ls[0]["messages"]),
                (&json!("ORDERS"), &truth["state"]["messages"]),
                "{what}"
            );
            run(&["check"]).status(f.check);
            if f.config && f.consumers {
                let diff = Jetsam::new()
                    .args(["diff", "--json", "-s", "ORDERS"])
                    .arg(&fx.stores()[0])
                    .arg(&f.path)
                    .run()
                    .no_panic();
                assert!(
                    diff.stdout.is_empty() && diff.status == Some(0),
                    "{what}: {}\n{}",
                    diff.text(),
                    diff.stderr
                );
            }
        }
        d.none(name);
    }
}

#[test]
fn a_store_and_its_own_snapshots_do_not_differ() {
    for name in [
        "2.2.6-basic",
        "2.9.25-basic",
        "2.14.5-compress",
        "2.15.2-kv",
        "2.12.15-accounts",
        SEALED,
    ] {
        let fx = Fixture::open(name);
        let mut seen = 0;
        for (account, stream, dir) in stream_dirs(&fx.stores()[0]) {
            let archive = fx
                .dir
                .join("snapshots")
                .join(&account)
                .join(format!("{stream}.tar.s2"));
            if !archive.exists() {
                continue;
            }
            seen += 1;
            let ran = fx
                .jetsam()
                .args(["diff", "--json"])
                .arg(&dir)
                .arg(&archive)
                .run()
                .no_panic();
            assert!(
                ran.status == Some(0) && ran.stdout.is_empty(),
                "{name} {account}/{stream}: {:?}\n{}{}",
                ran.status,
                ran.text(),
                ran.stderr
            );
        }
        assert!(seen > 0, "{name}");
    }
}

#[test]
fn threads_change_nothing() {
    for name in [PLAIN, "2.14.5-chacha-compress", "2.9.25-kill-basic"] {
        let fx = Fixture::open(name);
        let store = &fx.stores()[0];
        let (_, _, dir) = &stream_dirs(store)[0];
        let block = dir.join("msgs/1.blk");
        let other = Fixture::open("2.15.2-basic").stores()[0].clone();
        for (args, paths) in [
            (&["ls", "--consumers"][..], vec![store]),
            (&["ls", "--json"], vec![store]),
            (&["info", "--json", "--deleted", "--subjects"], vec![store]),
            (&["info"], vec![store]),
            (&["view", "--json", "--deleted"], vec![store]),
            (&["view", "--reverse"], vec![store]),
            (
                &["view", "--json", "--last-per-subject", "--limit", "40"],
                vec![store],
            ),
            (&["check", "--json"], vec![store]),
            (&["diff", "--json"], vec![store, &other]),
            (&["diff"], vec![store, &other]),
            (&["inspect", "--json"], vec![&block]),
            (&["inspect"], vec![&block]),
        ] {
            let run = |n: &str| {
                let ran = fx
                    .jetsam()
                    .args(args)
                    .args(["--threads", n])
                    .args(&paths)
                    .run()
                    .no_panic();
                (ran.status, ran.stdout, ran.stderr)
            };
            let one = run("1");
            assert!(matches!(one.0, Some(0 | 1)), "{name} {args:?}: {}", one.2);
            for n in ["2", "5", "0"] {
                assert!(
                    one == run(n),
                    "{name} {args:?}: {n} threads differ from one"
                );
            }
        }
    }
}
