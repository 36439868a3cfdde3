//! Key files and what they seal; `meta.sum`. Input: flags, block number, server key, account, stream,
//! consumer, key file, sealed bytes.
#![no_main]

use jetsam::format::crypt::{
    Cipher, Context, KeyRing, ServerKey, make_key_file_with, open_key_file,
};
use jetsam::format::{index_db, meta};
use jetsam_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use zeroize::Zeroizing;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (flags, n) = (input.u8(), input.u8());
    let (secret, account, stream, consumer) =
        (input.short(), input.short(), input.short(), input.short());
    let file = input.long();
    let sealed = input.rest();
    let context = match flags & 3 {
        0 => Context::Stream { account, stream },
        1 => Context::Block {
            info: account,
            store: stream,
            n: n.into(),
        },
        2 => Context::Consumer {
            account,
            stream,
            consumer,
        },
        _ => Context::Group { group: stream },
    };
    let ring = |key: &[u8]| KeyRing {
        current: Some(ServerKey::new(key)),
        previous: Some(ServerKey::new(consumer)),
    };

    if let Ok(seal) = open_key_file(file, &ring(secret), &context) {
        let whole = seal.open(sealed);
        if let Ok(plain) = &whole {
            let nonce = &sealed[..seal.cipher.nonce_len()];
            assert_eq!(seal.seal(plain, nonce), sealed);
        }
        let _ = index_db::check_hash(sealed, stream).map(|body| seal.open(body));
        if let Ok((plain, used)) = seal.open_with_own_nonce(&sealed[..sealed.len().min(512)]) {
            assert!(used <= sealed.len() && plain.len() < used);
        }
        keystream(sealed, |at, buf| seal.apply_keystream(at, buf));
    }

    // A key file made here opens with its own key and context alone, and its seals hold.
    let cipher = Cipher::ALL[usize::from(flags >> 2 & 1)];
    let mut bytes = [0; 56];
    let have = sealed.len().min(56);
    bytes[..have].copy_from_slice(&sealed[..have]);
    let (seed, nonce) = (
        *bytes.first_chunk::<32>().unwrap(),
        *bytes.last_chunk::<24>().unwrap(),
    );
    let (made, own) = make_key_file_with(
        &ServerKey::new(secret),
        cipher,
        &context,
        Zeroizing::new(seed),
        nonce,
    );
    assert_eq!(made.len(), cipher.key_file_len());
    let opened = open_key_file(&made, &ring(secret), &context).expect("opens");
    assert_eq!((opened.cipher, opened.excess), (cipher, 0));
    let mut wrong = made.clone();
    wrong[usize::from(n) % made.len()] ^= 1 << (flags >> 5);
    assert!(open_key_file(&wrong, &ring(secret), &context).is_err());

    let iv = &nonce[..cipher.nonce_len()];
    let mut closed = own.seal(sealed, iv);
    assert_eq!(opened.open(&closed).unwrap(), sealed);
    let at = usize::from(n) % closed.len();
    closed[at] ^= 1 << (flags >> 5);
    assert!(opened.open(&closed).is_err());
    keystream(sealed, |at, buf| opened.apply_keystream(at, buf));

    // `meta.sum`: only the right sum passes.
    let text = meta::sum(&String::from_utf8_lossy(stream), sealed);
    let name = String::from_utf8_lossy(stream);
    meta::check_sum(name.as_bytes(), sealed, text.as_bytes()).unwrap();
    if file != text.as_bytes() {
        meta::check_sum(name.as_bytes(), sealed, file).unwrap_err();
    }
});

/// Twice is nothing, and in two pieces is as in one.
fn keystream(bytes: &[u8], apply: impl Fn(u64, &mut [u8])) {
    let mut whole = bytes.to_vec();
    apply(0, &mut whole);
    let mut pieces = bytes.to_vec();
    let (a, b) = pieces.split_at_mut(bytes.len() / 3);
    apply(a.len() as u64, b);
    apply(0, a);
    assert_eq!(pieces, whole);
    apply(0, &mut whole);
    assert_eq!(whole, bytes);
    apply(u64::MAX - 5, &mut whole);
}
