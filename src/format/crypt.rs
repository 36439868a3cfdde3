//! Encryption at rest: key files, sealed files and encrypted blocks.
//!
//! The server's key (`jetstream { key: "…" }`, the bytes as configured) never encrypts data itself.
//! For each stream, block, consumer and raft group it gives a key-encryption key
//!
//! `KEK = HMAC-SHA256(server key, info ++ context)` — plain concatenation, no separator:
//!
//! | object | info | context | key file |
//! |---|---|---|---|
//! | stream: `meta.inf`, `index.db` | account | `<stream>` | `meta.key` |
//! | block `n`, and its `n.idx` | account | `<stream>:<n>` | `msgs/<n>.key` |
//! | consumer: `meta.inf`, `o.dat` | account | `<stream>.<consumer>` | `obs/<consumer>/meta.key` |
//! | raft group: `meta.inf`, `index.db` | group | `<group>` | `meta.key` |
//! | raft group, block `n` | group | `<group>:<n>` | `msgs/<n>.key` |
//! | staged batch | account | `<hash>`, `<hash>:<n>` | as for a stream |
//!
//! A key file is `nonce ++ AEAD(KEK, nonce, seed)`, the seed 32 random bytes, the tag 16:
//!
//! | cipher | AEAD | nonce | blocks | key file |
//! |---|---|---|---|---|
//! | chacha | XChaCha20-Poly1305 | 24 | XChaCha20, counter 0 | 72 |
//! | aes | AES-256-GCM with a **16-byte** nonce | 16 | AES-256-CTR, 128-bit big-endian counter | 64 |
//!
//! What the seed then opens (there is never any additional data):
//!
//! | file | form |
//! |---|---|
//! | `n.blk` | XOR with the key stream of (seed, nonce **of the key file**); its position is the file offset; no authentication |
//! | `meta.inf`, `o.dat` | `nonce ++ AEAD(seed, nonce, plain)`, a fresh nonce for each write |
//! | `index.db` | the same, followed by the hash over it |
//! | `n.idx` (2.3–2.9) | `AEAD(seed, nonce of the key file, plain)`: no nonce in front |
//!
//! `n.fss`, `thw.db`, `sched.db`, `sources.db` and raft snapshots are never encrypted.
//!
//! Versions: 2.3 to 2.15; aes, and encrypted raft logs, since 2.9 — raft logs are always chacha, even
//! where streams use aes. A previous server key is accepted since 2.10 and blocks are re-keyed one by
//! one, so every file can need either key and either cipher.
//!
//! Traps: an `n.idx` was overwritten in place and not always cut, so a shorter authentic file can end
//! before the file does; a block whose key file is missing is plaintext; a meta.sum covers the
//! ciphertext.
//!
//! From the server's key generation and block loading code, tried on stores that 2.7.4, 2.10.29,
//! 2.14.5 and 2.15.2 wrote.

use std::fmt;

use aes_gcm::AesGcm;
use aes_gcm::aead::{Aead, Generate, KeyInit};
use chacha20::XChaCha20;
use chacha20::cipher::consts::U16;
use chacha20::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use chacha20poly1305::XChaCha20Poly1305;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::bytes::{Fault, FaultKind};

type Aes256Gcm16 = AesGcm<aes::Aes256, U16>;
type Aes256Ctr = ctr::Ctr128BE<aes::Aes256>;

const SEED_LEN: usize = 32;
const TAG_LEN: usize = 16;
const MAX_NONCE_LEN: usize = 24;
/// Bytes that may be authenticated in search of the end of an `idx` with a stale tail.
const PREFIX_BUDGET: usize = 256 << 20;

/// The cipher suite of a key file and of what its seed encrypts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Cipher {
    /// XChaCha20-Poly1305 and XChaCha20, the default.
    ChaCha,
    /// AES-256-GCM and AES-256-CTR, 2.9 and later.
    Aes,
}

impl Cipher {
    /// Both suites.
    pub const ALL: [Cipher; 2] = [Cipher::ChaCha, Cipher::Aes];

    /// The name the server's configuration uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ChaCha => "chacha",
            Self::Aes => "aes",
        }
    }

    /// The suite of that name, also by the server's other spelling of it.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "chacha" | "chachapoly" => Some(Self::ChaCha),
            "aes" => Some(Self::Aes),
            _ => None,
        }
    }

    /// Length of a nonce.
    pub const fn nonce_len(self) -> usize {
        match self {
            Self::ChaCha => 24,
            Self::Aes => 16,
        }
    }

    /// Length of a key file.
    pub const fn key_file_len(self) -> usize {
        self.nonce_len() + SEED_LEN + TAG_LEN
    }

    /// The suite whose key files have this length.
    pub fn from_key_file_len(len: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.key_file_len() == len)
    }

    fn aead(self, key: &[u8; SEED_LEN]) -> Sealer {
        match self {
            Self::ChaCha => Sealer::ChaCha(XChaCha20Poly1305::new(key.into())),
            Self::Aes => Sealer::Aes(Box::new(Aes256Gcm16::new(key.into()))),
        }
    }
}

/// One keyed AEAD of either suite.
enum Sealer {
    ChaCha(XChaCha20Poly1305),
    Aes(Box<Aes256Gcm16>),
}

impl Sealer {
    /// `None` when the nonce has the wrong length or the bytes are not authentic.
    fn open(&self, nonce: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::ChaCha(aead) => aead.decrypt(nonce.try_into().ok()?, sealed).ok(),
            Self::Aes(aead) => aead.decrypt(nonce.try_into().ok()?, sealed).ok(),
        }
    }

    #[expect(clippy::expect_used, reason = "fails only for input of many gigabytes")]
    fn seal(&self, nonce: &[u8; MAX_NONCE_LEN], plain: &[u8]) -> Vec<u8> {
        match self {
            Self::ChaCha(aead) => aead.encrypt(nonce.into(), plain),
            Self::Aes(aead) => {
                let (nonce, _) = nonce.split_first_chunk::<16>().expect("16 of 24 bytes");
                aead.encrypt(nonce.into(), plain)
            }
        }
        .expect("meta files are small")
    }
}

/// A server's encryption key: the string of its configuration, as bytes.
#[derive(Clone)]
pub struct ServerKey(Zeroizing<Vec<u8>>);

impl ServerKey {
    /// The key exactly as configured; any trailing newline of the file it came from is the
    /// caller's to remove.
    pub fn new(key: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(key.into()))
    }
}

impl fmt::Debug for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerKey(…)")
    }
}

/// The server keys at hand.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    /// The key in use (`key`).
    pub current: Option<ServerKey>,
    /// The key before it (`prev_key`).
    pub previous: Option<ServerKey>,
}

impl KeyRing {
    /// True when there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.current.is_none() && self.previous.is_none()
    }

    /// The keys, the current one first.
    pub fn iter(&self) -> impl Iterator<Item = (WhichKey, &ServerKey)> {
        let current = self.current.iter().map(|k| (WhichKey::Current, k));
        current.chain(self.previous.iter().map(|k| (WhichKey::Previous, k)))
    }
}

/// Which key of the [`KeyRing`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum WhichKey {
    /// The key in use.
    Current,
    /// The one before it.
    Previous,
}

/// What a key file belongs to. Names are those of the directories.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Context<'a> {
    /// A stream, or a staged batch by its hash.
    Stream {
        /// Account name.
        account: &'a [u8],
        /// Stream name.
        stream: &'a [u8],
    },
    /// A block of a stream, of a staged batch or of a raft group.
    Block {
        /// Account name; for a raft group its own name.
        info: &'a [u8],
        /// Stream, batch or raft group.
        store: &'a [u8],
        /// Number of the block.
        n: u64,
    },
    /// A consumer.
    Consumer {
        /// Account name.
        account: &'a [u8],
        /// Stream name.
        stream: &'a [u8],
        /// Consumer name.
        consumer: &'a [u8],
    },
    /// A raft group.
    Group {
        /// Group name.
        group: &'a [u8],
    },
}

impl Context<'_> {
    /// The `info` and `context` strings of the key derivation.
    pub fn parts(&self) -> (Vec<u8>, Vec<u8>) {
        match self {
            Self::Stream { account, stream } => (account.to_vec(), stream.to_vec()),
            Self::Block { info, store, n } => {
                (info.to_vec(), [*store, format!(":{n}").as_bytes()].concat())
            }
            Self::Consumer {
                account,
                stream,
                consumer,
            } => (account.to_vec(), [*stream, b".", *consumer].concat()),
            Self::Group { group } => (group.to_vec(), group.to_vec()),
        }
    }
}

/// The key that encrypts the key file of `ctx`.
pub fn kek(key: &ServerKey, ctx: &Context<'_>) -> Zeroizing<[u8; 32]> {
    let (info, context) = ctx.parts();
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&key.0).expect("any length");
    mac.update(&info);
    mac.update(&context);
    Zeroizing::new(mac.finalize().into_bytes().into())
}

/// Why a key file does not open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// No server key was given.
    #[error("encrypted, and no key was given")]
    NoKey,
    /// The length is that of neither cipher.
    #[error("key file of {found} bytes: 72 (chacha) or 64 (aes) expected")]
    Length {
        /// Its length.
        found: usize,
    },
    /// No given key opens it with either cipher.
    #[error("no given key opens the key file: wrong key or damaged file")]
    Wrong,
}

/// What an opened key file gives: the key of one stream, block, consumer or raft group.
#[derive(Clone)]
pub struct SealKey {
    /// The cipher suite.
    pub cipher: Cipher,
    /// The server key that opened the file.
    pub which: WhichKey,
    /// Bytes of the key file behind the key: no server writes any, nor opens such a file.
    pub excess: usize,
    seed: Zeroizing<[u8; SEED_LEN]>,
    nonce: [u8; MAX_NONCE_LEN],
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cipher,
            which,
            excess,
            ..
        } = self;
        write!(f, "SealKey({cipher:?}, {which:?}, excess {excess}, …)")
    }
}

/// Opens a key file with whichever key and cipher fit.
///
/// A file of another length than 72 or 64 is tried as one with bytes behind its end.
pub fn open_key_file(bytes: &[u8], keys: &KeyRing, ctx: &Context<'_>) -> Result<SealKey, KeyError> {
    let found = bytes.len();
    if found < Cipher::Aes.key_file_len() {
        return Err(KeyError::Length { found });
    }
    if keys.is_empty() {
        return Err(KeyError::NoKey);
    }
    let ciphers = match Cipher::from_key_file_len(found) {
        Some(Cipher::Aes) => [Cipher::Aes, Cipher::ChaCha],
        _ => Cipher::ALL,
    };
    for (which, key) in keys.iter() {
        let kek = kek(key, ctx);
        for cipher in ciphers {
            let Some((file, rest)) = bytes.split_at_checked(cipher.key_file_len()) else {
                continue;
            };
            let Some((nonce, sealed)) = file.split_at_checked(cipher.nonce_len()) else {
                continue;
            };
            let Some(plain) = cipher.aead(&kek).open(nonce, sealed).map(Zeroizing::new) else {
                continue;
            };
            let Ok(seed) = <[u8; SEED_LEN]>::try_from(plain.as_slice()) else {
                continue;
            };
            return Ok(SealKey {
                cipher,
                which,
                excess: rest.len(),
                seed: Zeroizing::new(seed),
                nonce: widen(nonce),
            });
        }
    }
    match Cipher::from_key_file_len(found) {
        Some(_) => Err(KeyError::Wrong),
        None => Err(KeyError::Length { found }),
    }
}

/// Makes a new key file for `ctx`, with a random seed and nonce.
pub fn make_key_file(key: &ServerKey, cipher: Cipher, ctx: &Context<'_>) -> (Vec<u8>, SealKey) {
    make_key_file_with(
        key,
        cipher,
        ctx,
        Zeroizing::new(Generate::generate()),
        Generate::generate(),
    )
}

/// Makes the key file for `ctx` with this seed and nonce (of which aes takes the first 16 bytes).
/// Neither may ever be used for another key file.
pub fn make_key_file_with(
    key: &ServerKey,
    cipher: Cipher,
    ctx: &Context<'_>,
    seed: Zeroizing<[u8; 32]>,
    nonce: [u8; 24],
) -> (Vec<u8>, SealKey) {
    let mut file: Vec<u8> = nonce.iter().copied().take(cipher.nonce_len()).collect();
    let sealed = cipher.aead(&kek(key, ctx)).seal(&nonce, seed.as_slice());
    let seal_key = SealKey {
        cipher,
        which: WhichKey::Current,
        excess: 0,
        seed,
        nonce: widen(&file),
    };
    file.extend_from_slice(&sealed);
    (file, seal_key)
}

impl SealKey {
    /// Encrypts or decrypts block bytes in place; `offset` is where in the file `buf` begins.
    ///
    /// Nothing is done past 256 GiB, where XChaCha20's key stream ends.
    pub fn apply_keystream(&self, offset: u64, buf: &mut [u8]) {
        fn apply(mut stream: impl StreamCipher + StreamCipherSeek, offset: u64, buf: &mut [u8]) {
            if stream.try_seek(offset).is_ok() {
                let _ = stream.try_apply_keystream(buf);
            }
        }
        let seed: &[u8; SEED_LEN] = &self.seed;
        match self.cipher {
            Cipher::ChaCha => {
                apply(
                    XChaCha20::new(seed.into(), (&self.nonce).into()),
                    offset,
                    buf,
                );
            }
            Cipher::Aes => {
                if let Some((iv, _)) = self.nonce.split_first_chunk::<16>() {
                    apply(Aes256Ctr::new(seed.into(), iv.into()), offset, buf);
                }
            }
        }
    }

    /// Opens `nonce ++ AEAD`: `meta.inf`, `o.dat`, and `index.db` without its last eight bytes.
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, Fault> {
        let nonce_len = self.cipher.nonce_len();
        match sealed.split_at_checked(nonce_len) {
            Some((nonce, body)) if body.len() >= TAG_LEN => self
                .cipher
                .aead(&self.seed)
                .open(nonce, body)
                .ok_or(Fault::new(0, FaultKind::Sealed)),
            _ => Err(Fault::new(
                0,
                FaultKind::Truncated {
                    need: (nonce_len + TAG_LEN) as u64,
                    have: sealed.len() as u64,
                },
            )),
        }
    }

    /// Seals `plain` as `nonce ++ AEAD`. `nonce` must have [`Cipher::nonce_len`] bytes and be used
    /// once only: take [`random_nonce`](Self::random_nonce).
    pub fn seal(&self, plain: &[u8], nonce: &[u8]) -> Vec<u8> {
        debug_assert_eq!(nonce.len(), self.cipher.nonce_len());
        let nonce = widen(nonce);
        let mut out: Vec<u8> = nonce
            .iter()
            .copied()
            .take(self.cipher.nonce_len())
            .collect();
        out.extend_from_slice(&self.cipher.aead(&self.seed).seal(&nonce, plain));
        out
    }

    /// A fresh nonce for [`seal`](Self::seal), from the system.
    pub fn random_nonce(&self) -> Vec<u8> {
        let mut nonce = <[u8; MAX_NONCE_LEN]>::generate().to_vec();
        nonce.truncate(self.cipher.nonce_len());
        nonce
    }

    /// Opens an `n.idx` of 2.3–2.9, which was sealed with the key file's own nonce and may end
    /// before the file does; returns the bytes it took.
    ///
    /// Prefixes are tried from both ends, cheap short ones as well as nearly whole ones, until one
    /// is authentic or 256 MiB have been read: all of them for files up to about 22 kB.
    pub fn open_with_own_nonce(&self, sealed: &[u8]) -> Result<(Vec<u8>, usize), Fault> {
        let len = sealed.len();
        if len < TAG_LEN {
            let (need, have) = (TAG_LEN as u64, len as u64);
            return Err(Fault::new(0, FaultKind::Truncated { need, have }));
        }
        let aead = self.cipher.aead(&self.seed);
        let nonce = self
            .nonce
            .get(..self.cipher.nonce_len())
            .unwrap_or_default();
        // The two walks share the budget evenly, so the short prefixes are not starved.
        let (mut lo, mut hi, mut lo_cost, mut hi_cost) = (TAG_LEN, len, 0usize, 0usize);
        while lo <= hi && lo_cost.saturating_add(hi_cost) <= PREFIX_BUDGET {
            let end = if hi_cost <= lo_cost {
                hi_cost = hi_cost.saturating_add(hi);
                hi -= 1;
                hi + 1
            } else {
                lo_cost = lo_cost.saturating_add(lo);
                lo += 1;
                lo - 1
            };
            if let Some(plain) = sealed
                .get(..end)
                .and_then(|prefix| aead.open(nonce, prefix))
            {
                return Ok((plain, end));
            }
        }
        Err(Fault::new(0, FaultKind::Sealed))
    }
}

/// A nonce in the space of the longer one.
fn widen(nonce: &[u8]) -> [u8; MAX_NONCE_LEN] {
    let mut wide = [0; MAX_NONCE_LEN];
    for (to, from) in wide.iter_mut().zip(nonce) {
        *to = *from;
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::hash::HashKey;
    use crate::format::{meta, o_dat};

    const KEY: &str = "s3cr3t-fixture-key";

    /// Files of one encrypted stream or raft group, as its server left them.
    macro_rules! vector {
        ($dir:literal, $file:literal) => {
            include_bytes!(concat!("../../fixtures/vectors/crypt/", $dir, "/", $file)).as_slice()
        };
    }

    const WORK: Context<'_> = Context::Stream {
        account: b"$G",
        stream: b"WORK",
    };
    const BLOCK: Context<'_> = Context::Block {
        info: b"$G",
        store: b"WORK",
        n: 1,
    };
    const WORKER: Context<'_> = Context::Consumer {
        account: b"$G",
        stream: b"WORK",
        consumer: b"WORKER",
    };
    const GROUP: Context<'_> = Context::Group {
        group: b"C-R3F-A2nB7gNe",
    };
    const GROUP_BLOCK: Context<'_> = Context::Block {
        info: b"C-R3F-A2nB7gNe",
        store: b"C-R3F-A2nB7gNe",
        n: 1,
    };

    const CHACHA_KEYS: [(&[u8], Context<'_>); 3] = [
        (vector!("2.7.4-chacha", "meta.key"), WORK),
        (vector!("2.7.4-chacha", "1.key"), BLOCK),
        (vector!("2.7.4-chacha", "WORKER/meta.key"), WORKER),
    ];
    const AES_KEYS: [(&[u8], Context<'_>); 3] = [
        (vector!("2.14.5-aes", "meta.key"), WORK),
        (vector!("2.14.5-aes", "1.key"), BLOCK),
        (vector!("2.14.5-aes", "WORKER/meta.key"), WORKER),
    ];
    const RAFT_KEYS: [(&[u8], Context<'_>); 2] = [
        (vector!("2.14.5-aes-raft", "meta.key"), GROUP),
        (vector!("2.14.5-aes-raft", "1.key"), GROUP_BLOCK),
    ];

    fn every_key_file() -> impl Iterator<Item = (&'static [u8], Context<'static>, Cipher)> {
        let chacha = CHACHA_KEYS
            .into_iter()
            .chain(RAFT_KEYS)
            .map(|(f, c)| (f, c, Cipher::ChaCha));
        chacha.chain(AES_KEYS.into_iter().map(|(f, c)| (f, c, Cipher::Aes)))
    }

    fn ring(current: &str) -> KeyRing {
        KeyRing {
            current: Some(ServerKey::new(current)),
            previous: None,
        }
    }

    fn open((file, ctx): (&[u8], Context<'_>)) -> SealKey {
        open_key_file(file, &ring(KEY), &ctx).unwrap()
    }

    /// Walks plain records, checks every hash, returns how many there are.
    fn records(hash: &HashKey, mut block: &[u8]) -> usize {
        let mut count = 0;
        while let Some(len) = block.first_chunk::<4>() {
            let len = u32::from_le_bytes(*len);
            let (record, rest) = block.split_at((len & 0x7fff_ffff) as usize);
            let subject = 22 + usize::from(u16::from_le_bytes([record[20], record[21]]));
            let data = if len >> 31 == 1 { subject + 4 } else { subject };
            let (body, sum) = record.split_at(record.len() - 8);
            assert_eq!(
                hash.sum_parts(&[&body[4..20], &body[22..subject], &body[data..]]),
                sum
            );
            block = rest;
            count += 1;
        }
        count
    }

    #[test]
    fn key_files_of_both_ciphers_open() {
        for (file, ctx, cipher) in every_key_file() {
            let key = open_key_file(file, &ring(KEY), &ctx).unwrap();
            assert_eq!(
                (key.cipher, key.which, key.excess),
                (cipher, WhichKey::Current, 0)
            );
            assert_eq!(Cipher::from_key_file_len(file.len()), Some(cipher));

            let rotated = KeyRing {
                current: Some(ServerKey::new("newer")),
                previous: Some(ServerKey::new(KEY)),
            };
            let key = open_key_file(file, &rotated, &ctx).unwrap();
            assert_eq!((key.cipher, key.which), (cipher, WhichKey::Previous));
        }
    }

    #[test]
    fn key_files_do_not_open_with_anything_else() {
        for (file, ctx, _) in every_key_file() {
            let none = KeyRing::default();
            assert_eq!(
                open_key_file(file, &none, &ctx).unwrap_err(),
                KeyError::NoKey
            );
            for wrong in ["", "s3cr3t-fixture-key\n", "S3cr3t-fixture-key"] {
                let error = open_key_file(file, &ring(wrong), &ctx).unwrap_err();
                assert_eq!(error, KeyError::Wrong);
            }
            let other = Context::Block {
                info: b"$G",
                store: b"WORK",
                n: 2,
            };
            assert_eq!(
                open_key_file(file, &ring(KEY), &other).unwrap_err(),
                KeyError::Wrong
            );
            for bit in 0..file.len() * 8 {
                let mut damaged = file.to_vec();
                damaged[bit / 8] ^= 1 << (bit % 8);
                let error = open_key_file(&damaged, &ring(KEY), &ctx).unwrap_err();
                assert_eq!(error, KeyError::Wrong, "bit {bit}");
            }
        }
    }

    #[test]
    fn key_files_of_odd_lengths() {
        for (file, ctx, cipher) in every_key_file() {
            for len in 0..file.len() {
                let error = open_key_file(&file[..len], &ring(KEY), &ctx).unwrap_err();
                // A chacha file cut to the length of an aes one can only be told to be wrong.
                let odd = len != Cipher::Aes.key_file_len();
                assert_eq!(
                    error,
                    if odd {
                        KeyError::Length { found: len }
                    } else {
                        KeyError::Wrong
                    }
                );
            }
            for excess in [1, 8, 100] {
                let mut longer = file.to_vec();
                longer.resize(file.len() + excess, 0);
                let key = open_key_file(&longer, &ring(KEY), &ctx).unwrap();
                assert_eq!((key.cipher, key.excess), (cipher, excess));
            }
        }
    }

    #[test]
    fn metadata_opens_and_damage_is_noticed() {
        let cases = [
            (
                open(CHACHA_KEYS[0]),
                vector!("2.7.4-chacha", "meta.inf"),
                "WORK",
            ),
            (open(AES_KEYS[0]), vector!("2.14.5-aes", "meta.inf"), "WORK"),
            (
                open(RAFT_KEYS[0]),
                vector!("2.14.5-aes-raft", "meta.inf"),
                "C-R3F-A2nB7gNe",
            ),
        ];
        for (key, file, name) in cases {
            let plain = key.open(file).unwrap();
            assert_eq!(
                meta::decode_stream(&plain).unwrap().name.as_deref(),
                Some(name)
            );
            // The server's own bytes come out of sealing with the server's nonce.
            assert_eq!(key.seal(&plain, &file[..key.cipher.nonce_len()]), file);
            let sealed = key.seal(&plain, &key.random_nonce());
            assert_ne!(sealed, file);
            assert_eq!(key.open(&sealed).unwrap(), plain);
            for bit in 0..file.len() * 8 {
                let mut damaged = file.to_vec();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(
                    key.open(&damaged).unwrap_err(),
                    Fault::new(0, FaultKind::Sealed)
                );
            }
            for len in 0..file.len() {
                assert!(key.open(&file[..len]).is_err());
            }
        }
    }

    #[test]
    fn consumers_open() {
        let cases = [
            (
                open(CHACHA_KEYS[2]),
                vector!("2.7.4-chacha", "WORKER/meta.inf"),
                vector!("2.7.4-chacha", "WORKER/meta.sum"),
                vector!("2.7.4-chacha", "WORKER/o.dat"),
                "2026-11-21T00:39:36.199",
            ),
            (
                open(AES_KEYS[2]),
                vector!("2.14.5-aes", "WORKER/meta.inf"),
                vector!("2.14.5-aes", "WORKER/meta.sum"),
                vector!("2.14.5-aes", "WORKER/o.dat"),
                "2026-11-21T00:39:32.391",
            ),
        ];
        for (key, inf, sum, state, created) in cases {
            meta::check_sum(b"WORK/WORKER", inf, sum).unwrap();
            let plain = key.open(inf).unwrap();
            let config = meta::decode_consumer(&plain).unwrap();
            assert_eq!(config.name.as_deref(), Some("WORKER"));
            // CONSUMER.INFO can be some microseconds earlier than the file.
            assert!(config.created.unwrap().starts_with(created));

            let plain = key.open(state).unwrap();
            let (state, used) = o_dat::decode(&plain, 0).unwrap();
            assert_eq!(used, plain.len());
            // What the server answered to CONSUMER.INFO.
            assert_eq!(
                state.delivered,
                o_dat::SeqPair {
                    consumer: 25,
                    stream: 25
                }
            );
            assert_eq!(state.ack_floor, o_dat::SeqPair::default());
            let pending: Vec<u64> = state.pending.keys().copied().collect();
            assert_eq!(pending, [1, 4, 12, 13, 14, 17, 20]);
            assert!(state.pending.iter().all(|(seq, p)| p.consumer_seq == *seq));
        }
    }

    #[test]
    fn blocks_decrypt_from_any_offset() {
        let cases = [
            (
                open(CHACHA_KEYS[1]),
                vector!("2.7.4-chacha", "1.blk"),
                "WORK",
                60,
            ),
            (
                open(AES_KEYS[1]),
                vector!("2.14.5-aes", "1.blk"),
                "WORK",
                78,
            ),
            (
                open(RAFT_KEYS[1]),
                vector!("2.14.5-aes-raft", "1.blk"),
                "C-R3F-A2nB7gNe",
                21,
            ),
        ];
        for (key, file, name, count) in cases {
            let mut plain = file.to_vec();
            key.apply_keystream(0, &mut plain);
            assert_eq!(records(&HashKey::block(name, 1), &plain), count, "{name}");

            for piece in [1, 7, 16, 64, 1000] {
                let mut pieces = file.to_vec();
                for (i, chunk) in pieces.chunks_mut(piece).enumerate() {
                    key.apply_keystream((i * piece) as u64, chunk);
                }
                assert!(pieces == plain, "pieces of {piece}");
            }
            key.apply_keystream(u64::MAX, &mut plain);
        }
    }

    #[test]
    fn index_db_opens_without_its_hash() {
        let file = vector!("2.14.5-aes", "index.db");
        let (sealed, hash) = file.split_at(file.len() - 8);
        assert_eq!(HashKey::new("WORK").sum(sealed), hash);
        // Magic, version 4, 42 messages of 5145 bytes, first sequence 1.
        let plain = open(AES_KEYS[0]).open(sealed).unwrap();
        assert_eq!(plain[..6], [11, 4, 42, 0x99, 0x28, 1]);
        assert!(open(AES_KEYS[0]).open(file).is_err());
    }

    #[test]
    fn idx_opens_under_a_stale_tail() {
        let file = vector!("2.7.4-chacha", "1.idx");
        let key = open(CHACHA_KEYS[1]);
        let (plain, used) = key.open_with_own_nonce(file).unwrap();
        assert_eq!(used, file.len());
        // Magic, version 1, 42 messages of 5145 bytes, first sequence 1.
        assert_eq!(plain[..6], [22, 1, 42, 0x99, 0x28, 1]);
        for tail in [1, 2, 60, 3000, 1 << 20] {
            let mut stale = file.to_vec();
            stale.extend((0..tail).map(|i| (i * 31 % 251) as u8));
            assert_eq!(
                key.open_with_own_nonce(&stale).unwrap(),
                (plain.clone(), file.len())
            );
        }
        let mut damaged = file.to_vec();
        damaged[20] ^= 1;
        let sealed = Fault::new(0, FaultKind::Sealed);
        assert_eq!(key.open_with_own_nonce(&damaged).unwrap_err(), sealed);
        damaged.resize(2 << 20, 0);
        assert_eq!(key.open_with_own_nonce(&damaged).unwrap_err(), sealed);
        for len in 0..16 {
            assert!(key.open_with_own_nonce(&file[..len]).is_err());
        }
    }

    #[test]
    fn a_long_authentic_prefix_is_found() {
        for cipher in Cipher::ALL {
            let (_, key) = make_key_file(&ServerKey::new(KEY), cipher, &BLOCK);
            let plain: Vec<u8> = (0..40_000u32).map(|i| i as u8).collect();
            let sealed = cipher.aead(&key.seed).seal(&key.nonce, &plain);
            let mut stale = sealed.clone();
            stale.extend([7; 500]);
            assert_eq!(
                key.open_with_own_nonce(&stale).unwrap(),
                (plain, sealed.len())
            );
        }
    }

    #[test]
    fn key_files_are_made_as_the_server_makes_them() {
        for (file, ctx, cipher) in every_key_file() {
            let opened = open((file, ctx));
            let server_key = ServerKey::new(KEY);
            let (seed, nonce) = (opened.seed.clone(), opened.nonce);
            let (made, _) = make_key_file_with(&server_key, cipher, &ctx, seed, nonce);
            assert_eq!(made, file);

            let (one, key) = make_key_file(&server_key, cipher, &ctx);
            assert_eq!(one.len(), cipher.key_file_len());
            let reopened = open((&one, ctx));
            assert_eq!((reopened.seed, reopened.nonce), (key.seed, key.nonce));
            let (other, _) = make_key_file(&server_key, cipher, &ctx);
            assert_ne!(one, other);
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let mut key = open(AES_KEYS[0]);
        *key.seed = [0xab; 32];
        let text = format!("{:?} {key:?}", ring("hunter2"));
        assert!(!text.contains("hunter2") && !text.contains("171") && !text.contains("ab, "));
    }
}
