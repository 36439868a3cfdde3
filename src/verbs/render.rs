//! Human output: sizes, times, tables, colours. Colours only where the style says so.

use crate::finding::{Finding, Severity};
use serde_json::Value;

/// How human output looks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Use colours.
    pub color: bool,
    /// Columns of the terminal; 0 for no limit.
    pub width: u16,
}

/// Bytes with a binary unit, as the `nats` CLI prints them: `1.5 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = n as f64;
    let mut unit = 0usize;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{value:.1} {name}")
    }
}

/// A number with thousands separated.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `1 block`, `2,000 blocks`.
pub fn number_of(n: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(n), if n == 1 { "" } else { "s" })
}

/// `3 ms`, `12.34 s`.
pub fn took(time: std::time::Duration) -> String {
    if time.as_secs() == 0 {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}

/// A time for people: `2026-11-20 12:34:56`, UTC; `-` for none.
pub fn time(ns: i64) -> String {
    if ns == 0 {
        return "-".to_owned();
    }
    let text = crate::time::rfc3339(ns);
    text.get(..19)
        .map_or(text.clone(), |t| t.replacen('T', " ", 1))
}

/// Text from input made safe for a terminal: control characters are shown escaped.
pub fn safe(text: &str) -> String {
    if text.chars().any(char::is_control) {
        text.chars()
            .flat_map(|c| {
                let escaped: Box<dyn Iterator<Item = char>> = if c.is_control() {
                    Box::new(c.escape_default())
                } else {
                    Box::new(std::iter::once(c))
                };
                escaped
            })
            .collect()
    } else {
        text.to_owned()
    }
}

/// A table with a header. Columns whose header starts with `>` are aligned to the right; a column that is
/// empty in every row is left out.
pub fn table(style: Style, header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|r| r.iter().map(|c| safe(c)).collect())
        .collect();
    let columns: Vec<(usize, &str, bool, usize)> = header
        .iter()
        .enumerate()
        .filter_map(|(i, h)| {
            let widest = rows
                .iter()
                .filter_map(|r| r.get(i))
                .map(|c| c.chars().count())
                .max()?;
            let title = h.trim_start_matches('>');
            (widest > 0).then(|| {
                (
                    i,
                    title,
                    h.starts_with('>'),
                    widest.max(title.chars().count()),
                )
            })
        })
        .collect();
    let line = |cell: &dyn Fn(usize, &str) -> String| {
        let cells: Vec<String> = columns
            .iter()
            .map(|(i, title, right, width)| {
                let text = cell(*i, title);
                let pad = " ".repeat(width.saturating_sub(text.chars().count()));
                if *right {
                    format!("{pad}{text}")
                } else {
                    format!("{text}{pad}")
                }
            })
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut out = vec![paint(
        style,
        &line(&|_, title| title.to_owned()),
        Color::Bold,
    )];
    out.extend(
        rows.iter()
            .map(|r| line(&|i, _| r.get(i).cloned().unwrap_or_default())),
    );
    out.join("\n")
}

/// A severity, coloured.
pub fn severity(style: Style, s: Severity) -> String {
    let (text, color) = match s {
        Severity::Error => ("error", Color::Red),
        Severity::Warning => ("warning", Color::Yellow),
        Severity::Note => ("note", Color::Cyan),
    };
    paint(style, text, color)
}

/// The colours in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Color {
    /// Errors.
    Red,
    /// Good.
    Green,
    /// Warnings.
    Yellow,
    /// Places and notes.
    Cyan,
    /// Headings.
    Bold,
}

/// Text in a colour, where the style has colours.
pub fn paint(style: Style, text: &str, color: Color) -> String {
    if !style.color {
        return text.to_owned();
    }
    let code = match color {
        Color::Red => 31,
        Color::Green => 32,
        Color::Yellow => 33,
        Color::Cyan => 36,
        Color::Bold => 1,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Where a finding is, in one piece of text.
pub fn place(f: &Finding) -> String {
    let mut out = String::new();
    if let Some(file) = &f.file {
        out.push_str(file);
    } else if let Some(stream) = &f.stream {
        if let Some(account) = &f.account {
            out.push_str(account);
            out.push('/');
        }
        out.push_str(stream);
        if let Some(consumer) = &f.consumer {
            out.push_str(" > ");
            out.push_str(consumer);
        }
    }
    if let Some(offset) = f.offset {
        out.push_str(&format!(" @{offset}"));
    }
    if let Some(seq) = f.seq {
        out.push_str(&format!(" seq {seq}"));
    }
    safe(&out)
}

/// A finding in one line.
pub fn finding_line(f: &Finding) -> String {
    format!("{}: {}: {}", place(f), f.code.as_str(), safe(&f.detail))
}

/// Two objects in one.
pub(super) fn joined(mut object: Value, more: Value) -> Value {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
    object
}
