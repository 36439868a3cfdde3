//! Times as the JetStream API writes them: RFC 3339 with as many decimals as needed, UTC.

use jiff::Timestamp;

/// What the API prints for "no time": Go's zero `time.Time`.
pub const ZERO: &str = "0001-01-01T00:00:00Z";

/// `ns` since the Unix epoch as the API prints it.
pub fn rfc3339(ns: i64) -> String {
    match Timestamp::from_nanosecond(i128::from(ns)) {
        Ok(t) => t.to_string(),
        // Every i64 of nanoseconds lies between 1677 and 2262.
        Err(_) => ZERO.to_owned(),
    }
}

/// Appends `ns` since the Unix epoch as the API prints it.
pub fn write_rfc3339(ns: i64, out: &mut Vec<u8>) {
    use std::io::Write as _;
    if let Ok(t) = Timestamp::from_nanosecond(i128::from(ns)) {
        // Writing to a Vec does not fail.
        let _ = write!(out, "{t}");
    } else {
        out.extend_from_slice(ZERO.as_bytes());
    }
}

/// A time as the API prints it: `ns` of 0 means "no time" in the server's state.
pub fn rfc3339_or_zero(ns: i64) -> String {
    if ns == 0 {
        ZERO.to_owned()
    } else {
        rfc3339(ns)
    }
}

/// The time now, ns since the Unix epoch.
pub fn now() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// Parses RFC 3339; `None` for anything else and for times that do not fit 64 bits of nanoseconds.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let t: Timestamp = text.parse().ok()?;
    i64::try_from(t.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_prints_it() {
        assert_eq!(
            rfc3339(1_763_685_393_977_766_461),
            "2025-11-21T00:36:33.977766461Z"
        );
        assert_eq!(
            rfc3339(1_763_685_393_979_674_300),
            "2025-11-21T00:36:33.9796743Z"
        );
        assert_eq!(rfc3339(1_763_685_393_000_000_000), "2025-11-21T00:36:33Z");
        assert_eq!(rfc3339_or_zero(0), ZERO);
        assert_eq!(
            parse_rfc3339("2025-11-21T00:36:33.9796743Z"),
            Some(1_763_685_393_979_674_300)
        );
        assert_eq!(
            parse_rfc3339("2025-11-21T01:36:33.9796743+01:00"),
            Some(1_763_685_393_979_674_300)
        );
    }
}
