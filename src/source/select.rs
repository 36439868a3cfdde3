//! Choosing accounts, streams and consumers by name, with `*` for any run of characters.

/// Matches `name` against `pattern`, in which `*` stands for any run of characters.
pub fn glob(pattern: &str, name: &str) -> bool {
    let (p, n) = (pattern.as_bytes(), name.as_bytes());
    let (mut pi, mut ni) = (0usize, 0usize);
    // Where to go back to: the last `*`, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while ni < n.len() {
        match p.get(pi) {
            Some(b'*') => {
                star = Some((pi, ni));
                pi += 1;
            }
            Some(c) if Some(c) == n.get(ni) => {
                pi += 1;
                ni += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    pi = at + 1;
                    ni = taken + 1;
                }
                None => return false,
            },
        }
    }
    p.get(pi..).unwrap_or_default().iter().all(|c| *c == b'*')
}

/// The `-a`, `-s`, `-c` options. An empty list selects everything.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    /// Accounts.
    pub accounts: Vec<String>,
    /// Streams.
    pub streams: Vec<String>,
    /// Consumers.
    pub consumers: Vec<String>,
}

fn any(patterns: &[String], name: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|p| glob(p, name))
}

/// The only pattern, if it names exactly one thing.
fn exact(patterns: &[String]) -> Option<String> {
    match patterns {
        [one] if !one.contains('*') => Some(one.clone()),
        _ => None,
    }
}

impl Selector {
    /// Whether a stream is selected. A source that does not tell the account matches every `-a`.
    pub fn stream(&self, account: &str, stream: &str) -> bool {
        (account.is_empty() || any(&self.accounts, account)) && any(&self.streams, stream)
    }

    /// Whether a consumer is selected.
    pub fn consumer(&self, name: &str) -> bool {
        any(&self.consumers, name)
    }

    /// The one account that was named.
    pub fn exact_account(&self) -> Option<String> {
        exact(&self.accounts)
    }

    /// The one stream that was named.
    pub fn exact_stream(&self) -> Option<String> {
        exact(&self.streams)
    }
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn globs() {
        for (p, n) in [
            ("*", ""),
            ("*", "a"),
            ("KV_*", "KV_x"),
            ("a*b*c", "a1b2b3c"),
            ("$G", "$G"),
        ] {
            assert!(glob(p, n), "{p} {n}");
        }
        for (p, n) in [("", "a"), ("KV_*", "KV"), ("a*b", "a1c"), ("a", "aa")] {
            assert!(!glob(p, n), "{p} {n}");
        }
        assert!(!glob(&"*a".repeat(50), &"b".repeat(10_000)));
    }
}
