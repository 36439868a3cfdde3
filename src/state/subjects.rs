//! Subjects: matching them against filters, and counting them in little memory.

use std::hash::{BuildHasher as _, RandomState};

/// Matches a literal subject against a filter with NATS wildcards: `*` for one token, a final `>` for
/// one or more.
pub fn matches(filter: &[u8], subject: &[u8]) -> bool {
    let mut tokens = subject.split(|b| *b == b'.');
    let mut filter = filter.split(|b| *b == b'.').peekable();
    while let Some(f) = filter.next() {
        if f == b">" && filter.peek().is_none() {
            return tokens.next().is_some();
        }
        match tokens.next() {
            Some(t) if f == b"*" || f == t => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Whether one literal subject can match both of these, which may have wildcards.
pub fn collide(a: &[u8], b: &[u8]) -> bool {
    let (mut a, mut b) = (a.split(|c| *c == b'.'), b.split(|c| *c == b'.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(b">"), Some(_)) | (Some(_), Some(b">")) => return true,
            (Some(x), Some(y)) if x == y || x == b"*" || y == b"*" => {}
            _ => return false,
        }
    }
}

/// Matches against any of `filters`; no filters match everything.
pub fn matches_any<F: AsRef<[u8]>>(filters: &[F], subject: &[u8]) -> bool {
    filters.is_empty() || filters.iter().any(|f| matches(f.as_ref(), subject))
}

const PAGE: usize = 1 << 20;
/// Bytes before a subject: its length.
const PREFIX: usize = 4;

#[derive(Debug, Clone, Copy)]
struct Entry {
    page: u32,
    offset: u32,
    value: u64,
}

/// A map from subjects to numbers: the subjects' own bytes plus about 32 bytes each.
///
/// A subject gets a dense id, in order of first appearance. A slot of the table has the id and half of the subject's hash,
/// so that a look-up reads one slot, and the subject only where it is most likely the one: with millions of them what
/// counts is how often memory is waited for.
#[derive(Debug)]
pub struct SubjectMap {
    pages: Vec<Vec<u8>>,
    entries: Vec<Entry>,
    /// The lower half of the hash and, below it, the id and one; 0 for a free slot.
    table: Vec<u64>,
    seed: u64,
}

impl Default for SubjectMap {
    fn default() -> Self {
        Self::new()
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a).wrapping_mul(u128::from(b));
    (wide as u64) ^ ((wide >> 64) as u64)
}

/// A seed for [`hash`], another each time.
pub(super) fn seed() -> u64 {
    RandomState::new().hash_one(0u8)
}

/// A hash of a subject that nobody can foresee who does not know the seed.
pub(super) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut h = seed ^ (bytes.len() as u64).wrapping_mul(K);
    let (words, tail) = bytes.as_chunks::<8>();
    for w in words {
        h = fold(h ^ u64::from_le_bytes(*w), K ^ seed.rotate_left(32));
    }
    let mut last = [0u8; 8];
    for (to, from) in last.iter_mut().zip(tail) {
        *to = *from;
    }
    fold(fold(h ^ u64::from_le_bytes(last), K), seed | 1)
}

impl SubjectMap {
    /// An empty map.
    pub fn new() -> Self {
        Self {
            pages: Vec::new(),
            entries: Vec::new(),
            table: Vec::new(),
            seed: seed(),
        }
    }

    /// How many subjects there are, with any value.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets everything but keeps the memory.
    pub fn clear(&mut self) {
        self.pages.truncate(1);
        if let Some(p) = self.pages.first_mut() {
            p.clear();
        }
        self.entries.clear();
        self.table.fill(0);
    }

    fn bytes(&self, e: &Entry) -> &[u8] {
        let page = self.pages.get(e.page as usize);
        let from = page.and_then(|p| p.get(e.offset as usize..));
        from.and_then(<[u8]>::split_first_chunk::<PREFIX>)
            .and_then(|(len, rest)| rest.get(..u32::from_le_bytes(*len) as usize))
            .unwrap_or_default()
    }

    fn find(&self, subject: &[u8]) -> (u32, Option<u32>) {
        let h = hash(self.seed, subject) as u32;
        if self.table.is_empty() {
            return (h, None);
        }
        let mask = self.table.len() - 1;
        let mut slot = (h as usize) & mask;
        while let Some(&at) = self.table.get(slot) {
            if at == 0 {
                break;
            }
            let id = (at as u32).wrapping_sub(1);
            if (at >> 32) as u32 == h
                && let Some(e) = self.entries.get(id as usize)
                && self.bytes(e) == subject
            {
                return (h, Some(id));
            }
            slot = (slot + 1) & mask;
        }
        (h, None)
    }

    fn place(table: &mut [u64], at: u64) {
        let mask = table.len().wrapping_sub(1);
        let mut slot = ((at >> 32) as usize) & mask;
        while let Some(free) = table.get_mut(slot) {
            if *free == 0 {
                *free = at;
                return;
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let mut table = vec![0; (self.table.len() * 2).max(64)];
        for &at in self.table.iter().filter(|at| **at != 0) {
            Self::place(&mut table, at);
        }
        self.table = table;
    }

    /// The id of a subject, which is added with value 0 if it is new.
    pub fn id(&mut self, subject: &[u8]) -> u32 {
        let (h, found) = self.find(subject);
        if let Some(id) = found {
            return id;
        }
        if (self.entries.len() + 1) * 4 > self.table.len() * 3 {
            self.grow();
        }
        let room = PREFIX + subject.len();
        if self
            .pages
            .last()
            .is_none_or(|p| p.len() + room > PAGE.max(room))
        {
            // The first page starts small: most blocks have few subjects.
            let capacity = if self.pages.is_empty() { 256 } else { PAGE };
            self.pages.push(Vec::with_capacity(capacity.max(room)));
        }
        let page = self.pages.len().saturating_sub(1);
        let offset = self.pages.last().map_or(0, Vec::len);
        if let Some(p) = self.pages.last_mut() {
            p.extend_from_slice(&(subject.len() as u32).to_le_bytes());
            p.extend_from_slice(subject);
        }
        let id = self.entries.len() as u32;
        self.entries.push(Entry {
            page: page as u32,
            offset: offset as u32,
            value: 0,
        });
        Self::place(&mut self.table, u64::from(h) << 32 | u64::from(id + 1));
        id
    }

    /// The value of a subject, to be changed; added with 0 if it is new.
    pub fn value_mut(&mut self, subject: &[u8]) -> &mut u64 {
        let id = self.id(subject);
        self.value_of_mut(id)
    }

    /// The value under an id.
    pub fn value_of_mut(&mut self, id: u32) -> &mut u64 {
        #[expect(clippy::indexing_slicing, reason = "ids come from this map alone")]
        &mut self.entries[id as usize].value
    }

    /// The value of a subject, if it is there.
    pub fn get(&self, subject: &[u8]) -> Option<u64> {
        self.find(subject)
            .1
            .and_then(|id| self.entries.get(id as usize))
            .map(|e| e.value)
    }

    /// The subject and value under an id.
    pub fn entry(&self, id: u32) -> Option<(&[u8], u64)> {
        self.entries
            .get(id as usize)
            .map(|e| (self.bytes(e), e.value))
    }

    /// All subjects and values, in order of first appearance.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.entries.iter().map(|e| (self.bytes(e), e.value))
    }

    /// How many subjects have a value above 0.
    pub fn count_live(&self) -> u64 {
        self.entries.iter().filter(|e| e.value > 0).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_that_can_be_the_same_collide() {
        for (a, b, want) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.*", "*.b", true),
            ("a.>", "a.b.c", true),
            (">", "x", true),
            ("a.>", "a", false),
            ("a.*", "a.b.c", false),
            ("a.b", "a.c", false),
            ("*.b", "a.c", false),
        ] {
            assert_eq!(collide(a.as_bytes(), b.as_bytes()), want, "{a} {b}");
            assert_eq!(collide(b.as_bytes(), a.as_bytes()), want, "{b} {a}");
        }
    }
    use std::collections::HashMap;

    #[test]
    fn wildcards() {
        for (f, s) in [
            ("a.b", "a.b"),
            ("a.*", "a.b"),
            ("*.b", "a.b"),
            (">", "a"),
            ("a.>", "a.b.c"),
            ("*.>", "a.b"),
            ("a.>.b", "a.>.b"),
        ] {
            assert!(matches(f.as_bytes(), s.as_bytes()), "{f} {s}");
        }
        for (f, s) in [
            ("a.b", "a"),
            ("a", "a.b"),
            ("a.*", "a"),
            ("a.>", "a"),
            ("*", "a.b"),
            ("a.*.c", "a.b.d"),
        ] {
            assert!(!matches(f.as_bytes(), s.as_bytes()), "{f} {s}");
        }
    }

    #[test]
    fn counts_like_a_hash_map() {
        let (mut map, mut model) = (SubjectMap::new(), HashMap::new());
        for round in 0..3u64 {
            for i in 0..50_000u64 {
                let s = format!("orders.{}.{}", i % 7919, "x".repeat((i % 40) as usize));
                *map.value_mut(s.as_bytes()) += round + 1;
                *model.entry(s).or_insert(0) += round + 1;
            }
        }
        assert_eq!(map.len(), model.len());
        for (s, v) in map.iter() {
            assert_eq!(model[std::str::from_utf8(s).unwrap()], v);
        }
        assert_eq!(map.get(b"nope"), None);
        let long = vec![b'a'; 65_535];
        *map.value_mut(&long) = 7;
        assert_eq!(map.get(&long), Some(7));
        map.clear();
        assert_eq!((map.len(), map.get(&long)), (0, None));
    }
}
