//! Defences against hostile pages in browsers that supervisor and runtime share: headers of every answer, the name in a
//! `Host`, and requests of another site.

use std::net::{IpAddr, Ipv6Addr};

/// Headers of every answer, refusals included.
pub(crate) const EVERYWHERE: [(&str, &str); 4] = [
    ("x-content-type-options", "nosniff"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
];
/// Value of `Cache-Control` of every answer that is no documentation.
pub(crate) const NO_STORE: &str = "no-store";
/// Policy of answers that no browser shows as a page.
pub(crate) const POLICY_OF_DATA: &str =
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Policy of the documentation, whose pages load only files of this server. Swagger UI sets styles and images inline.
pub(crate) const POLICY_OF_PAGES: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// The name or address in a `Host`, without its port; `None` if it is malformed.
pub(crate) fn host_name(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            (address, port)
        }
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok();
    let fine = !name.is_empty() && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    fine.then_some(name)
}

/// True for a name that DNS cannot make another machine's: an address, and `localhost`.
pub(crate) fn is_fixed_name(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// Header in which browsers say which site a request comes from.
pub(crate) const SEC_FETCH_SITE: &str = "sec-fetch-site";
/// Its value for a request that a page of another site made.
pub(crate) const CROSS_SITE: &str = "cross-site";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_with_text_behind_its_address_or_port_is_malformed() {
        for (host, name) in [
            ("localhost", "localhost"),
            ("localhost:8080", "localhost"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]", "::1"),
            ("[::1]:80", "::1"),
            ("acp.example.com:443", "acp.example.com"),
        ] {
            assert_eq!(host_name(host), Some(name), "{host}");
        }
        for host in [
            "",
            ":80",
            "[::1]evil.com",
            "[::1].evil.com:80",
            "[evil.com]",
            "[::1",
            "::1",
            "localhost:evil.com",
            "localhost:80:80",
            "localhost:",
            "localhost:99999",
            "localhost:+80",
        ] {
            assert_eq!(host_name(host), None, "{host}");
        }
        assert!(is_fixed_name("LOCALHOST") && is_fixed_name("10.0.0.7") && is_fixed_name("::1"));
        assert!(!is_fixed_name("evil.example") && !is_fixed_name("localhost.evil.example"));
    }
}
