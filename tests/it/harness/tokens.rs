//! The tokens that servers made for themselves, so that raw clients of a test can send them.
//!
//! A program with a configured token is not listed: its tests are about tokens, and send what they want.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    path::Path,
    sync::{LazyLock, Mutex},
};

static TOKENS: LazyLock<Mutex<HashMap<SocketAddr, String>>> = LazyLock::new(Mutex::default);

/// The token in a data folder, as a program that was started with it made it.
pub(crate) fn of_folder(data_dir: &Path) -> Option<String> {
    fs::read_to_string(data_dir.join("token")).ok().map(|text| text.trim_end().to_owned())
}

/// Lists the token of the server at `address`.
pub(crate) fn add(address: SocketAddr, token: &str) {
    TOKENS.lock().expect("a lock").insert(address, token.to_owned());
}

/// Lists the token of `target` for `proxy` too.
pub(crate) fn forward(proxy: SocketAddr, target: SocketAddr) {
    if let Some(token) = of(target) {
        add(proxy, &token);
    }
}

/// The token of the server at `address`, if it made one.
pub(crate) fn of(address: SocketAddr) -> Option<String> {
    TOKENS.lock().expect("a lock").get(&address).cloned()
}

/// [`of`] for `http://ADDR:PORT`.
pub(crate) fn of_base(base: &str) -> Option<String> {
    of(base.strip_prefix("http://")?.parse().ok()?)
}

/// The variables with which the command line reaches the server at `base`.
pub(crate) fn variables(base: &str) -> Vec<(&'static str, String)> {
    let token = of_base(base).map(|token| ("LUMILINK_TOKEN", token));
    std::iter::once(("LUMILINK_URL", base.to_owned())).chain(token).collect()
}
