//! The App of the stand-in: its key, the check of its JSON Web Tokens, and tokens in the forms that GitHub issues.

use std::{path::Path, process::Command};

use base64::{Engine, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use sha2::{Digest, Sha256};

use super::{error, http::Response};
use crate::harness::Value;

/// Public half of a 2048-bit RSA key.
#[derive(Debug, Clone)]
pub(super) struct PublicKey {
    /// Big-endian.
    modulus: Vec<u8>,
}

/// Writes a new private key in PKCS #1 PEM, the form in which GitHub issues them, and returns its public half.
pub(super) fn write_key(path: &Path) -> PublicKey {
    let file = path.display().to_string();
    let made = Command::new("openssl").args(["genrsa", "-traditional", "-out", &file, "2048"]).output();
    let made = made.expect("openssl runs");
    assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    let pem = std::fs::read_to_string(path).expect("a key");
    assert!(pem.starts_with("-----BEGIN RSA PRIVATE KEY-----"), "openssl writes PKCS #1");
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(body).expect("base64");
    let (sequence, _) = element(&der);
    let (_version, rest) = element(sequence);
    let (modulus, _) = element(rest);
    PublicKey { modulus: modulus.iter().copied().skip_while(|byte| *byte == 0).collect() }
}

/// Content of the first DER element, and what follows it.
fn element(der: &[u8]) -> (&[u8], &[u8]) {
    let (start, length) = match der[1] {
        short @ 0..0x80 => (2, usize::from(short)),
        long => {
            let bytes = usize::from(long & 0x7f);
            (2 + bytes, der[2..2 + bytes].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
        }
    };
    (&der[start..start + length], &der[start + length..])
}

impl PublicKey {
    /// Checks an RS256 token of the App, as GitHub does.
    ///
    /// # Errors
    /// The answer of GitHub.
    pub(super) fn check(&self, token: &str, app_id: u64, now: i64) -> Result<(), Response> {
        let undecodable = || error(401, "A JSON web token could not be decoded");
        let (signed, signature) = token.rsplit_once('.').ok_or_else(undecodable)?;
        let (header, claims) = signed.split_once('.').ok_or_else(undecodable)?;
        let read = |part: &str| -> Option<Value> { serde_json::from_slice(&BASE64.decode(part).ok()?).ok() };
        let (header, claims) = read(header).zip(read(claims)).ok_or_else(undecodable)?;
        let signature = BASE64.decode(signature).map_err(|_| undecodable())?;
        if header["alg"] != "RS256" || !self.verifies(signed.as_bytes(), &signature) {
            return Err(undecodable());
        }
        let is_issuer = claims["iss"] == app_id || claims["iss"].as_str().is_some_and(|it| it.parse() == Ok(app_id));
        let (Some(issued), Some(expires), true) = (claims["iat"].as_i64(), claims["exp"].as_i64(), is_issuer) else {
            return Err(error(401, "'Issuer' claim ('iss') must be an Integer"));
        };
        match () {
            () if issued > now + 60 => Err(error(
                401,
                "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued",
            )),
            () if expires > now + 600 => Err(error(401, "'Expiration time' claim ('exp') is too far in the future")),
            () if expires <= now => Err(error(
                401,
                "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires",
            )),
            () => Ok(()),
        }
    }

    /// PKCS #1 v1.5 with SHA-256 and the exponent 65537.
    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        const PREFIX: [u8; 19] = [
            0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00,
            0x04, 0x20,
        ];
        if signature.len() != self.modulus.len() {
            return false;
        }
        let (base, modulus) = (limbs(signature), limbs(&self.modulus));
        let mut power = base.clone();
        for _ in 0..16 {
            power = product(&power, &power, &modulus);
        }
        power = product(&power, &base, &modulus);
        let digest = Sha256::digest(message);
        let filling = signature.len() - PREFIX.len() - digest.len() - 3;
        let mut expected = vec![0, 1];
        expected.extend(std::iter::repeat_n(0xff, filling));
        expected.push(0);
        expected.extend(PREFIX);
        expected.extend(digest);
        limbs(&expected) == power
    }
}

/// Little-endian digits of 32 bits.
fn limbs(bytes: &[u8]) -> Vec<u32> {
    bytes.rchunks(4).map(|chunk| chunk.iter().fold(0, |limb, byte| limb << 8 | u32::from(*byte))).collect()
}

/// `left · right mod modulus`, by doubling and adding; all have the same number of digits.
fn product(left: &[u32], right: &[u32], modulus: &[u32]) -> Vec<u32> {
    let mut sum = vec![0; modulus.len()];
    for limb in left.iter().rev() {
        for bit in (0..32).rev() {
            let copy = sum.clone();
            add(&mut sum, &copy, modulus);
            if limb >> bit & 1 == 1 {
                add(&mut sum, right, modulus);
            }
        }
    }
    sum
}

/// `sum = (sum + more) mod modulus`, for `sum` and `more` below the modulus or of the same length.
fn add(sum: &mut [u32], more: &[u32], modulus: &[u32]) {
    let mut carry = 0;
    for (digit, other) in sum.iter_mut().zip(more) {
        let total = u64::from(*digit) + u64::from(*other) + carry;
        *digit = total as u32;
        carry = total >> 32;
    }
    let is_greater = || sum.iter().rev().ge(modulus.iter().rev());
    if carry == 1 || is_greater() {
        let mut borrow = 0;
        for (digit, other) in sum.iter_mut().zip(modulus) {
            let (less, first) = digit.overflowing_sub(*other);
            let (less, second) = less.overflowing_sub(borrow);
            *digit = less;
            borrow = u32::from(first || second);
        }
    }
}

fn random(length: usize) -> String {
    let mut text = String::new();
    while text.len() < length {
        text += &BASE64.encode(uuid::Uuid::new_v4().as_bytes());
    }
    text.truncate(length);
    text
}

/// A token of an installation in GitHub's newer form: `ghs_<app>_<JWT>`, 520 characters.
pub(super) fn installation_token(app_id: u64) -> String {
    let start = format!("ghs_{app_id}_{}.{}.", BASE64.encode(r#"{"alg":"RS256","typ":"JWT"}"#), random(120));
    format!("{start}{}", random(520 - start.len()))
}

/// A personal token of 93 characters.
pub(super) fn user_token() -> String {
    let random = || uuid::Uuid::new_v4().simple().to_string();
    let body = random() + &random() + &random();
    format!("github_pat_{}_{}", &body[..22], &body[22..81])
}
