//! Collects the settings that break a rule, so that one run reports all of them.

use std::{fmt::Display, net::SocketAddr, ops::RangeInclusive};

use secrecy::{ExposeSecret, SecretString};

use crate::{
    config::error::{BadSetting, ConfigError, Origin},
    domain::share::FULL_BP,
};

/// The longest time a setting may name, in seconds: ten years. A longer one is a mistake, and sums of times must
/// not overflow.
pub(super) const MAX_SECONDS: u64 = 10 * 366 * 24 * 3600;
/// The largest limit in bytes, 1 GiB: a message is held in memory several times on its way.
pub(super) const MAX_BYTES: usize = 1024 * 1024 * 1024;

pub(super) struct Check<'a> {
    origin_of: &'a dyn Fn(&str) -> Origin,
    problems: Vec<BadSetting>,
}

impl<'a> Check<'a> {
    pub(super) fn new(origin_of: &'a dyn Fn(&str) -> Origin) -> Self {
        Self { origin_of, problems: Vec::new() }
    }

    /// # Errors
    /// Lists every setting that was reported.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        if self.problems.is_empty() { Ok(()) } else { Err(ConfigError { problems: self.problems }) }
    }

    /// Reports `setting` unless `holds`; `what` completes "setting …": `must be …`.
    pub(super) fn require(&mut self, holds: bool, setting: impl Into<String>, what: impl Into<String>) {
        if !holds {
            let setting = setting.into();
            let origin = (self.origin_of)(&setting);
            self.problems.push(BadSetting { setting, origin, what: what.into() });
        }
    }

    pub(super) fn range<T: PartialOrd + Display>(&mut self, setting: &str, value: T, range: RangeInclusive<T>) {
        self.range_of(setting, value, range, "");
    }

    /// A time of 1 second to [`MAX_SECONDS`].
    pub(super) fn seconds(&mut self, setting: &str, value: u64) {
        self.range_of(setting, value, 1..=MAX_SECONDS, " seconds");
    }

    /// A time that may be 0, which switches something off.
    pub(super) fn seconds_or_0(&mut self, setting: &str, value: u64) {
        self.range_of(setting, value, 0..=MAX_SECONDS, " seconds");
    }

    /// A share in hundredths of a percent.
    pub(super) fn share(&mut self, setting: &str, value: u32) {
        self.range_of(setting, value, 0..=FULL_BP, " hundredths of a percent");
    }

    pub(super) fn range_of<T: PartialOrd + Display>(
        &mut self,
        setting: &str,
        value: T,
        range: RangeInclusive<T>,
        unit: &str,
    ) {
        let what = format!("is {value}, must be {} to {}{unit}", range.start(), range.end());
        self.require(range.contains(&value), setting, what);
    }

    /// A token of the listener of `section`; `is_served` is whether this command opens it at all.
    pub(super) fn token(&mut self, section: &str, listen: SocketAddr, token: &SecretString, is_served: bool) {
        let token = token.expose_secret();
        let setting = format!("{section}.token");
        // A token that a header cannot carry would lock everybody out.
        let is_usable = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        self.require(is_usable, &setting, "must be visible ASCII characters without spaces, or left out");
        let is_long = token.len() >= MIN_TOKEN || !is_served || !is_reachable(listen);
        let what = format!(
            "has {} characters, must have {MIN_TOKEN} or more because other machines can reach {listen}",
            token.len()
        );
        self.require(is_long || !is_usable, setting, what);
    }
}

/// The shortest token on an address that other machines can reach, in characters: 24 of base64 are 144 bits, and 24 of
/// hexadecimal, the weakest usual alphabet, are 96, which cannot be guessed over a network.
const MIN_TOKEN: usize = 24;

/// True if other machines can reach the address.
pub(super) fn is_reachable(listen: SocketAddr) -> bool {
    !listen.ip().to_canonical().is_loopback()
}

/// True if `text` is a host name or address without scheme and port.
pub(super) fn is_host(text: &str) -> bool {
    let labels_fine = text.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    });
    labels_fine && text.len() <= 253
}
