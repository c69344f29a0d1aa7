//! Checks repository addresses and branch names before they are passed to git.

use std::net::IpAddr;

use url::{Host, Url};

use crate::domain::{
    turn::outcome::{ErrorCode, Failure},
    words::words,
};

/// Longest address or branch name, in bytes. git's own limits are higher; real names are far shorter.
const MAX_LENGTH: usize = 512;

/// Checked repository address. Never begins with `-`, names an allowed host and contains no credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repository {
    url: String,
    scheme: Scheme,
}

words! {
    /// Protocol to reach a repository; all others are refused.
    Scheme {
        Https = "https",
        /// Only for a loopback host in `[workspaces] git_hosts`.
        Http = "http",
        /// Uses the keys of the runtime's user.
        Ssh = "ssh",
    }
}

/// Refusal that names scheme and host of the address: other parts may be credentials, and the text reaches the caller and the
/// log.
fn bad(text: &str, why: &str) -> Failure {
    Failure::new(ErrorCode::InvalidRequest, format!("repository `{}`: {why}", shown(text)))
}

fn shown(text: &str) -> String {
    if text.contains("://") {
        let parsed = Url::parse(text).ok();
        let origin = parsed.as_ref().and_then(|url| Some((url.scheme(), url.host_str()?, url.port())));
        return match origin {
            Some((scheme, host, Some(port))) => format!("{scheme}://{host}:{port}/…"),
            Some((scheme, host, None)) => format!("{scheme}://{host}/…"),
            None => "…".to_owned(),
        };
    }
    match text.strip_prefix("git@").unwrap_or(text).contains(['@', '?', '#']) {
        true => "…".to_owned(),
        false => text.to_owned(),
    }
}

impl Repository {
    /// Parses `owner/name` (on the first of `hosts`), `https://…`, `ssh://git@…` or `git@host:owner/name`.
    /// An entry of `hosts` may include a port, which an address must then name too.
    ///
    /// # Errors
    /// `invalid_request` for anything else.
    pub(crate) fn parse(text: &str, hosts: &[String]) -> Result<Self, Failure> {
        if text.len() > MAX_LENGTH || text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
            return Err(bad("…", "is too long or contains a character that is not allowed in an address"));
        }
        let url = if text.contains("://") {
            text.to_owned()
        } else if let Some((host, path)) = text.strip_prefix("git@").and_then(|rest| rest.split_once(':')) {
            format!("ssh://git@{host}/{path}")
        } else {
            short_form(text, hosts)?
        };
        let url = Url::parse(&url).map_err(|cause| bad(text, &cause.to_string()))?;
        Self::check(text, &url, hosts)
    }

    fn check(text: &str, url: &Url, hosts: &[String]) -> Result<Self, Failure> {
        let host = url.host().ok_or_else(|| bad(text, "has no host"))?;
        let scheme = match url.scheme() {
            "https" => Scheme::Https,
            "ssh" => Scheme::Ssh,
            "http" if is_loopback(&host) => Scheme::Http,
            _ => return Err(bad(text, "only https and ssh addresses are supported")),
        };
        let named = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_string(),
        };
        if !hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(&named)) {
            return Err(bad(text, &format!("`{named}` is not one of `[workspaces] git_hosts`")));
        }
        let user_allowed = url.username().is_empty() || (scheme == Scheme::Ssh && url.username() == "git");
        if !user_allowed || url.password().is_some() {
            return Err(bad(text, "must not contain credentials"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad(text, "must not have a query or a fragment"));
        }
        let parts: Vec<&str> = url.path_segments().map(Iterator::collect).unwrap_or_default();
        let plain = parts.iter().all(|part| is_plain_name(part));
        if parts.len() < 2 || !plain {
            return Err(bad(text, "its path must be two or more names of A-Z a-z 0-9 . _ ~ - without a leading `-`"));
        }
        Ok(Self { url: url.as_str().to_owned(), scheme })
    }

    /// Address as it is passed to git.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Address for requests with a token: HTTPS in place of ssh, on the default port. HTTP only on loopback.
    pub(crate) fn upstream(&self) -> Url {
        let parsed = Url::parse(&self.url).unwrap_or_else(|cause| unreachable!("the address was parsed: {cause}"));
        if self.scheme != Scheme::Ssh {
            return parsed;
        }
        let address = format!("https://{}{}", parsed.host_str().unwrap_or_default(), parsed.path());
        Url::parse(&address).unwrap_or(parsed)
    }

    /// True for a host on this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        Url::parse(&self.url).is_ok_and(|url| url.host().is_some_and(|host| is_loopback(&host)))
    }
}

/// Expands `owner/name` to an address on the first of `hosts`.
fn short_form(text: &str, hosts: &[String]) -> Result<String, Failure> {
    let (owner, name) = text.split_once('/').ok_or_else(|| bad(text, "is neither `owner/name` nor an address"))?;
    if !is_plain_name(owner) || !is_plain_name(name) {
        return Err(bad(text, "is neither `owner/name` nor an address"));
    }
    let host = hosts.first().ok_or_else(|| bad(text, "`[workspaces] git_hosts` is empty"))?;
    let probe = Url::parse(&format!("https://{host}/")).map_err(|cause| bad(text, &cause.to_string()))?;
    let scheme = if probe.host().is_some_and(|host| is_loopback(&host)) { "http" } else { "https" };
    Ok(format!("{scheme}://{host}/{owner}/{}.git", name.strip_suffix(".git").unwrap_or(name)))
}

fn is_plain_name(part: &str) -> bool {
    let plain = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte));
    plain && !part.is_empty() && !part.starts_with('-') && part != "." && part != ".."
}

fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => name.eq_ignore_ascii_case("localhost"),
        Host::Ipv4(address) => IpAddr::from(*address).is_loopback(),
        Host::Ipv6(address) => IpAddr::from(*address).is_loopback(),
    }
}

/// Checks a branch name: a subset of the names that git accepts, without option and revision syntax.
///
/// # Errors
/// `invalid_request`.
pub(crate) fn check_branch(branch: &str) -> Result<(), Failure> {
    let plain = branch.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/+=@#-".contains(&byte));
    let parts = branch.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"));
    let bad_form = branch.starts_with('-') || branch.ends_with('.') || branch.contains("..") || branch == "@";
    if plain && parts && !bad_form && branch.len() <= MAX_LENGTH {
        Ok(())
    } else {
        Err(Failure::new(ErrorCode::InvalidRequest, "branch: is not a valid branch name"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Vec<String> {
        ["github.com", "git.example.org:8443", "127.0.0.1:3000"].map(str::to_owned).to_vec()
    }

    #[test]
    fn allowed_addresses_are_parsed_to_urls() {
        for (text, url) in [
            ("octo/hello", "https://github.com/octo/hello.git"),
            ("octo/hello.git", "https://github.com/octo/hello.git"),
            ("https://github.com/octo/hello", "https://github.com/octo/hello"),
            ("https://GITHUB.com/octo/hello.git", "https://github.com/octo/hello.git"),
            ("https://git.example.org:8443/a/b/c", "https://git.example.org:8443/a/b/c"),
            ("ssh://git@github.com/octo/hello.git", "ssh://git@github.com/octo/hello.git"),
            ("git@github.com:octo/hello.git", "ssh://git@github.com/octo/hello.git"),
            ("http://127.0.0.1:3000/a/b", "http://127.0.0.1:3000/a/b"),
        ] {
            assert_eq!(Repository::parse(text, &hosts()).unwrap().url(), url);
        }
        let local = Repository::parse("a/b", &["127.0.0.1:3000".to_owned()]).unwrap();
        assert_eq!((local.url(), local.scheme()), ("http://127.0.0.1:3000/a/b.git", Scheme::Http));
    }

    #[test]
    fn all_other_addresses_are_refused() {
        for text in [
            "",
            "hello",
            "-u/hello",
            "octo/-hello",
            "octo/..",
            "../octo",
            "octo/a b",
            "/etc/passwd",
            "file:///etc",
            "ext::sh -c id",
            "git://github.com/a/b",
            "http://github.com/a/b",
            "http://localhost/a/b",
            "https://evil.org/a/b",
            "https://github.com.evil.org/a/b",
            "https://github.com@evil.org/a/b",
            "https://user:pass@github.com/a/b",
            "https://token@github.com/a/b",
            "ssh://root@github.com/a/b",
            "ssh://-oProxyCommand=x/a/b",
            "git@-oProxyCommand=x:a/b",
            "https://github.com:444/a/b",
            "https://github.com/a/b?x=1",
            "https://github.com/a/b#x",
            "https://github.com/a/%2e%2e",
            "https://github.com/a//b",
            "https://github.com/a/--upload-pack=x",
            "https://github.com/a\n/b",
            "--upload-pack=touch",
        ] {
            assert!(Repository::parse(text, &hosts()).is_err(), "{text}");
        }
    }

    #[test]
    fn credentials_in_a_refused_address_are_never_quoted() {
        for text in [
            "https://user:secret@evil.org/a/b",
            "https://secret@github.com:444/a/b",
            "ftp://user:secret@github.com/a/b",
            "http://secret@github.com/a/b",
            "https://[secret@github.com/a/b",
            "user:secret@github.com/a",
            "ssh://git@user:secret@github.com/a/b",
            "https://evil.org/a/b?token=secret",
            "https://evil.org/a/b#secret",
        ] {
            let failure = Repository::parse(text, &hosts()).unwrap_err();
            assert!(!format!("{failure:?}").contains("secret"), "{text}: {failure:?}");
        }
        let named = Repository::parse("git@evil.org:a/b", &hosts()).unwrap_err();
        assert!(format!("{named:?}").contains("git@evil.org:a/b"), "an address without credentials is quoted");
    }

    #[test]
    fn branch_names_are_accepted_and_revision_syntax_is_refused() {
        for good in ["main", "feature/x-1", "v1.2", "a_b+c"] {
            assert!(check_branch(good).is_ok(), "{good}");
        }
        for bad in ["", "-x", "a..b", "a b", "/a", "a/", "a//b", ".a", "a.lock", "@", "a~1", "a:b", "a^", "a."] {
            assert!(check_branch(bad).is_err(), "{bad}");
        }
    }
}
