//! SSH keys that sign commits: an ed25519 key in OpenSSH's format, and signatures as git stores them.
//!
//! Signatures are made in memory, so that no key is written to a file and no other program gets it. They are the same for
//! the same content: a repeated step makes the same commit.

use std::fmt;

use aws_lc_rs::{
    digest::{SHA512, digest},
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine, prelude::BASE64_STANDARD};

const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END: &str = "-----END OPENSSH PRIVATE KEY-----";
const KIND: &[u8] = b"ssh-ed25519";
/// The purpose for which git signs; a signature for another one is invalid.
const NAMESPACE: &[u8] = b"git";
const HASH: &[u8] = b"sha512";
/// Characters of a line of a signature, as `ssh-keygen` writes it.
const LINE_CHARS: usize = 70;
/// Names of the headers of a commit that contain signatures.
const SIGNATURES: [&[u8]; 2] = [b"gpgsig ", b"gpgsig-sha256 "];

/// A key that signs commits. `Debug` shows only its kind.
pub(crate) struct SshKey {
    pair: Ed25519KeyPair,
}

impl fmt::Debug for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SshKey(ed25519)")
    }
}

/// Why a key is not usable: a part of a sentence whose subject is the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadKey {
    #[error("is not a private key in the format of OpenSSH; make one with `ssh-keygen -t ed25519 -N ''`")]
    Format,
    #[error("has a passphrase; use a key without one")]
    Passphrase,
    #[error("is not of the type ed25519; make one with `ssh-keygen -t ed25519 -N ''`")]
    Kind,
}

/// Reads the fields of SSH's binary formats.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn number(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*head))
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text)
    }
}

fn field(to: &mut Vec<u8>, text: &[u8]) {
    let length = u32::try_from(text.len()).unwrap_or_default();
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(text);
}

impl SshKey {
    /// Reads the text of a private key.
    ///
    /// # Errors
    /// [`BadKey`], which quotes no part of the key.
    pub(crate) fn parse(text: &str) -> Result<Self, BadKey> {
        let body = text.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END)).ok_or(BadKey::Format)?;
        let body: String = body.split_whitespace().collect();
        let bytes = BASE64_STANDARD.decode(body).map_err(|_| BadKey::Format)?;
        let mut outer = Fields(bytes.strip_prefix(b"openssh-key-v1\0").ok_or(BadKey::Format)?);
        let mut of_outer = || outer.text().ok_or(BadKey::Format);
        let (cipher, _kdf, _options) = (of_outer()?, of_outer()?, of_outer()?);
        if cipher != b"none" {
            return Err(BadKey::Passphrase);
        }
        if outer.number() != Some(1) {
            return Err(BadKey::Format);
        }
        let public = outer.text().ok_or(BadKey::Format)?;
        if Fields(public).text() != Some(KIND) {
            return Err(BadKey::Kind);
        }
        let mut inner = Fields(outer.text().ok_or(BadKey::Format)?);
        if inner.number() != inner.number() || inner.text() != Some(KIND) {
            return Err(BadKey::Format);
        }
        let (public, secret) = (inner.text().ok_or(BadKey::Format)?, inner.text().ok_or(BadKey::Format)?);
        let seed = secret.get(..32).ok_or(BadKey::Format)?;
        let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(|_| BadKey::Format)?;
        Ok(Self { pair })
    }

    /// The signature of a commit's text, as git stores it.
    fn signature(&self, message: &[u8]) -> String {
        let mut signed = b"SSHSIG".to_vec();
        for part in [NAMESPACE, b"", HASH, digest(&SHA512, message).as_ref()] {
            field(&mut signed, part);
        }
        let mut signature = Vec::new();
        field(&mut signature, KIND);
        field(&mut signature, self.pair.sign(&signed).as_ref());
        let mut public = Vec::new();
        field(&mut public, KIND);
        field(&mut public, self.pair.public_key().as_ref());
        let mut blob = b"SSHSIG\0\0\0\x01".to_vec();
        for part in [public.as_slice(), NAMESPACE, b"", HASH, &signature] {
            field(&mut blob, part);
        }
        let text = BASE64_STANDARD.encode(blob);
        let mut lines = vec!["-----BEGIN SSH SIGNATURE-----"];
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(LINE_CHARS));
            (rest, _) = (after, lines.push(line));
        }
        lines.push("-----END SSH SIGNATURE-----");
        lines.join("\n")
    }

    /// Signs a commit, given as git stores it. An older signature is replaced. `None` for a text that is no commit.
    pub(crate) fn sign_commit(&self, commit: &[u8]) -> Option<Vec<u8>> {
        let commit = without_signature(commit);
        let end = commit.windows(2).position(|two| two == b"\n\n")? + 1;
        let signature = self.signature(&commit).replace('\n', "\n ");
        let mut signed = commit[..end].to_vec();
        signed.extend_from_slice(format!("gpgsig {signature}\n").as_bytes());
        signed.extend_from_slice(&commit[end..]);
        Some(signed)
    }
}

/// A commit, given as git stores it, without its signatures.
pub(crate) fn without_signature(commit: &[u8]) -> Vec<u8> {
    let (mut kept, mut is_header, mut is_signature) = (Vec::new(), true, false);
    for line in commit.split_inclusive(|byte| *byte == b'\n') {
        is_header &= line != b"\n";
        let continues = line.starts_with(b" ");
        is_signature = is_header && (SIGNATURES.iter().any(|it| line.starts_with(it)) || (is_signature && continues));
        if !is_signature {
            kept.extend_from_slice(line);
        }
    }
    kept
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::Command;

    use super::*;

    /// Makes a key, and returns the texts of its private and its public half.
    pub(crate) fn new_key(folder: &std::path::Path, options: &[&str]) -> (String, String) {
        let file = folder.join("key");
        let made = Command::new("ssh-keygen").args(["-q", "-C", "test", "-f"]).arg(&file).args(options).output();
        let made = made.expect("ssh-keygen runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        (read("key"), read("key.pub"))
    }

    #[test]
    fn only_an_ed25519_key_without_passphrase_is_accepted_and_no_error_quotes_it() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str, options: &[&str]| {
            let place = folder.path().join(name);
            std::fs::create_dir(&place).unwrap();
            new_key(&place, options).0
        };
        let good = of("good", &["-t", "ed25519", "-N", ""]);
        assert!(SshKey::parse(&good).is_ok() && SshKey::parse(&format!("\n{good}\n")).is_ok());
        for (text, why) in [
            (of("locked", &["-t", "ed25519", "-N", "secret"]), BadKey::Passphrase),
            (of("rsa", &["-t", "rsa", "-b", "2048", "-N", ""]), BadKey::Kind),
            (good.replace('\n', "").replace(BEGIN, ""), BadKey::Format),
            (good[..200].to_owned() + "\n" + END, BadKey::Format),
            (String::new(), BadKey::Format),
            ("/etc/key".to_owned(), BadKey::Format),
        ] {
            assert_eq!(SshKey::parse(&text).unwrap_err(), why);
        }
    }

    #[test]
    fn signature_of_a_commit_is_removed_with_all_of_its_lines() {
        let plain = b"tree 1\nparent 2\nauthor a\ncommitter b\n\nSubject\n\n gpgsig of the text\ngpgsig stays\n";
        let folder = tempfile::tempdir().unwrap();
        let key = SshKey::parse(&new_key(folder.path(), &["-t", "ed25519", "-N", ""]).0).unwrap();
        let signed = key.sign_commit(plain).unwrap();
        assert!(String::from_utf8_lossy(&signed).contains("committer b\ngpgsig -----BEGIN SSH SIGNATURE-----\n "));
        assert_eq!(without_signature(&signed), plain);
        assert_eq!(key.sign_commit(&signed).unwrap(), signed, "the same content has the same signature");
        assert_eq!(key.sign_commit(b"tree 1"), None);
        assert_eq!(format!("{key:?}"), "SshKey(ed25519)");
    }
}
