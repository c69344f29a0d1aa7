//! Random secrets of the API: tickets and tokens. Only their hashes are stored.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Characters of a secret: 32 bytes as base64url.
pub(super) const SECRET_CHARS: usize = 43;

/// Makes a secret of 244 random bits.
pub(super) fn random() -> String {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(Uuid::new_v4().as_bytes());
    bytes[16..].copy_from_slice(Uuid::new_v4().as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// True for a text that [`random`] can have made.
pub(super) fn is_well_formed(secret: &str) -> bool {
    secret.len() == SECRET_CHARS && BASE64_URL_SAFE_NO_PAD.decode(secret).is_ok()
}

/// The persisted form of a secret, from which it cannot be derived. No salt is needed: secrets are random.
pub(super) fn hash_of(secret: &str) -> String {
    Sha256::digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_their_hash_does_not_contain_them() {
        let (one, two) = (random(), random());
        assert!(one != two && is_well_formed(&one) && !is_well_formed(&one[1..]));
        assert!(hash_of(&one).len() == 64 && !hash_of(&one).contains(&one));
    }
}
