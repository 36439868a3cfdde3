//! Header blocks of messages, and the headers that a server keeps files about.
//!
//! | bytes | |
//! |---|---|
//! | `NATS/1.0` | version, perhaps with a status behind it |
//! | CR LF | |
//! | per header | name, `:`, spaces, value, CR LF |
//! | CR LF | the end |
//!
//! | header | value |
//! |---|---|
//! | `Nats-TTL` | seconds as a number, a duration as Go writes it (`1h30m`), or `never` (2.11 and later) |
//! | `Nats-Schedule` | when to publish (2.12 and later); only whether there is one matters here |
//! | `Nats-Stream-Source` | `<stream> <sequence> <filter> <transform> <subject> [<identity>]` (2.10 and later) |

/// The value of the first header `name`, as servers look for it: case counts, the name stands at the
/// start of a line, spaces before the value do not belong to it.
pub fn get<'a>(block: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut rest = block;
    loop {
        let (_, after) = split_line(rest)?;
        rest = after;
        if let Some(value) = rest
            .strip_prefix(name)
            .and_then(|after| after.strip_prefix(b":"))
        {
            let spaces = value.iter().take_while(|b| **b == b' ').count();
            let value = value.get(spaces..).unwrap_or_default();
            return Some(split_line(value).map_or(value, |(line, _)| line));
        }
    }
}

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut from = 0;
    loop {
        let found = bytes.get(from..)?.iter().position(|b| *b == b'\r')?;
        let at = from.saturating_add(found);
        if bytes.get(at.saturating_add(1)) == Some(&b'\n') {
            return Some((bytes.get(..at)?, bytes.get(at.saturating_add(2)..)?));
        }
        from = at.saturating_add(1);
    }
}

/// A message's time to live in whole seconds; `None` where it never expires or the value is none.
pub fn ttl(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    if let Some(ns) = go_duration(text) {
        return (ns >= 1_000_000_000).then_some(ns / 1_000_000_000);
    }
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits
        .then(|| text.parse().ok())?
        .filter(|seconds| *seconds > 0)
}

/// A duration as Go's `time.ParseDuration` reads it, in nanoseconds.
pub fn go_duration(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.as_bytes().first()? {
        b'-' => (-1i64, text.get(1..)?),
        b'+' => (1, text.get(1..)?),
        _ => (1, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0i64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let unit: i64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: i64 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        let mut part = whole.checked_mul(unit)?;
        let mut scale = unit;
        for digit in fraction.bytes() {
            scale /= 10;
            part = part.checked_add(i64::from(digit.wrapping_sub(b'0')).checked_mul(scale)?)?;
        }
        total = total.checked_add(part)?;
        rest = next;
    }
    total.checked_mul(sign)
}

/// `Nats-Stream-Source`: the index name of the source, the sequence there, the source's identity.
pub fn stream_source(value: &[u8]) -> Option<(Vec<u8>, u64, &[u8])> {
    let mut fields = value.split(|b| *b == b' ');
    let stream = fields.next()?;
    let seq = fields.next()?;
    let (filter, transform) = (fields.next()?, fields.next()?);
    let identity = fields.nth(1).unwrap_or_default();
    let seq = std::str::from_utf8(seq).ok()?.parse().ok()?;
    Some(([stream, filter, transform].join(&b' '), seq, identity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_as_servers_find_them() {
        let block =
            b"NATS/1.0\r\nA-Nats-TTL: 1\r\nNats-TTL:  5\r\nnats-ttl: 9\r\nX:\r\nY: a\rb\r\n\r\n";
        assert_eq!(get(block, b"Nats-TTL"), Some(&b"5"[..]));
        assert_eq!(get(block, b"X"), Some(&b""[..]));
        assert_eq!(get(block, b"Y"), Some(&b"a\rb"[..]));
        assert_eq!(get(block, b"NATS/1.0"), None);
        assert_eq!(get(b"Nats-TTL: 5\r\n", b"Nats-TTL"), None);
        assert_eq!(get(b"", b"X"), None);
        assert_eq!(get(b"NATS/1.0\r\nX: cut", b"X"), Some(&b"cut"[..]));
    }

    #[test]
    fn durations_as_go_reads_them() {
        for (text, want) in [
            ("1s", Some(1_000_000_000)),
            ("1h30m", Some(5_400_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            (".5m", Some(30_000_000_000)),
            ("-2us", Some(-2_000)),
            ("0", Some(0)),
            ("", None),
            ("5", None),
            ("1y", None),
            (".s", None),
            ("1.2.3s", None),
            ("9223372036854775808ns", None),
            ("never", None),
        ] {
            assert_eq!(go_duration(text), want, "{text}");
        }
        for (text, want) in [
            ("5", Some(5)),
            ("1h", Some(3600)),
            ("1.9s", Some(1)),
            ("500ms", None),
            ("0", None),
            ("never", None),
            ("-5", None),
            ("", None),
        ] {
            assert_eq!(ttl(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn sources() {
        assert_eq!(
            stream_source(b"ORDERS 38 o.2 > o.2 Tt63OhTB"),
            Some((b"ORDERS o.2 >".to_vec(), 38, &b"Tt63OhTB"[..]))
        );
        assert_eq!(
            stream_source(b"ORDERS 38 > > o.2"),
            Some((b"ORDERS > >".to_vec(), 38, &b""[..]))
        );
        for bad in [&b""[..], b"ORDERS 38", b"ORDERS x > > a"] {
            assert_eq!(stream_source(bad), None);
        }
    }
}
