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

    /// An address to listen on. Other machines may reach it only with a token; `is_served` is whether this command
    /// opens it at all.
    pub(super) fn listener(
        &mut self,
        section: &str,
        listen: SocketAddr,
        token: Option<&SecretString>,
        is_served: bool,
    ) {
        // A token that a header cannot carry would lock everybody out.
        let usable = token.is_none_or(|token| {
            let token = token.expose_secret();
            !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
        });
        let what = "must be one or more visible ASCII characters without spaces; leave it out for no token";
        self.require(usable, format!("{section}.token"), what);
        let is_open = is_served && !listen.ip().to_canonical().is_loopback() && token.is_none();
        let upper = section.to_ascii_uppercase();
        let what = format!(
            "{listen} is reachable from other machines and no token is configured; set {section}.token \
             (LUMILINK_{upper}__TOKEN) or listen on 127.0.0.1"
        );
        self.require(!is_open, format!("{section}.listen"), what);
    }
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
