//! The hosts of a GitHub: that of its API, that of its repositories, and the domain of its noreply addresses.

use url::{Host, Url};

use super::repository_pattern::RepositoryName;

/// The path of the API of GitHub Enterprise Server.
const ENTERPRISE_PATH: &str = "/api/v3";

/// The host of the repositories of the GitHub whose API is at `api_url`: `github.com` for `https://api.github.com`, else
/// the host of the address. `None` if the address has no host.
pub(crate) fn web_host(api_url: &str) -> Option<String> {
    let url = Url::parse(api_url).ok()?;
    let host = url.host_str()?;
    let without_api = host.strip_prefix("api.").filter(|rest| rest.contains('.') && is_root(&url));
    Some(without_api.unwrap_or(host).to_owned())
}

/// The address from which a repository of the GitHub at `api_url` is cloned. `None` if the address has no host.
pub(crate) fn clone_address(api_url: &str, name: &RepositoryName) -> Option<String> {
    let url = Url::parse(api_url).ok()?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    Some(format!("{}://{}{port}/{name}.git", url.scheme(), web_host(api_url)?))
}

fn is_root(url: &Url) -> bool {
    url.path().trim_end_matches('/').is_empty()
}

/// The address of the GraphQL API beside the REST API at `base`: `https://host/api/graphql` on GitHub Enterprise Server.
pub(crate) fn graphql_url(base: &Url) -> Url {
    let mut url = base.clone();
    let path = base.path().trim_end_matches('/');
    let root = path.strip_suffix(ENTERPRISE_PATH).map(|root| format!("{root}/api"));
    url.set_path(&format!("{}/graphql", root.as_deref().unwrap_or(path)));
    url
}

/// The domain of the noreply addresses of users and bots: that of github.com, or that of a GitHub Enterprise Server.
/// `None` for every other address, since a commit must not name a domain that belongs to a stranger.
pub(crate) fn noreply_domain(api_url: &str) -> Option<String> {
    let url = Url::parse(api_url).ok()?;
    let Some(Host::Domain(host)) = url.host() else { return None };
    let is_enterprise = url.path().trim_end_matches('/') == ENTERPRISE_PATH && host.contains('.');
    match (host, is_root(&url)) {
        ("api.github.com", true) => Some("users.noreply.github.com".to_owned()),
        _ if is_enterprise => Some(format!("users.noreply.{host}")),
        _ => None,
    }
}

/// True if a repository is on the GitHub whose API is at `api_url`. `owner/name` without a host is; an address is if its
/// host is that of the repositories. Ports are not compared.
pub(crate) fn is_at(repository: &str, api_url: &str) -> bool {
    let host = if repository.contains("://") {
        Url::parse(repository).ok().and_then(|url| url.host_str().map(str::to_owned))
    } else if let Some((host, _)) = repository.strip_prefix("git@").and_then(|rest| rest.split_once(':')) {
        Some(host.to_owned())
    } else {
        return true;
    };
    let (Some(host), Some(web)) = (host, web_host(api_url)) else { return false };
    let host = host.to_ascii_lowercase();
    // ssh.github.com is GitHub's host for SSH over the port of HTTPS.
    let bare = host.strip_prefix("www.").or_else(|| host.strip_prefix("ssh.")).unwrap_or(&host);
    host == web || bare == web || (is_loopback(&host) && is_loopback(&web))
}

fn is_loopback(host: &str) -> bool {
    match Host::parse(host) {
        Ok(Host::Domain(name)) => name == "localhost",
        Ok(Host::Ipv4(address)) => address.is_loopback(),
        Ok(Host::Ipv6(address)) => address.is_loopback(),
        Err(_) => false,
    }
}

/// True if the API may be used at this address: over TLS, or on this machine. Everything else would send tokens in clear.
pub(crate) fn is_safe(api_url: &Url) -> bool {
    match api_url.scheme() {
        "https" => true,
        "http" => api_url.host_str().is_some_and(is_loopback),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noreply_domain_is_known_for_github_and_enterprise_servers_only() {
        for (api_url, web, domain) in [
            ("https://api.github.com", "github.com", Some("users.noreply.github.com")),
            ("https://api.github.com/", "github.com", Some("users.noreply.github.com")),
            ("https://git.example.org/api/v3", "git.example.org", Some("users.noreply.git.example.org")),
            ("https://api.octo.ghe.com", "octo.ghe.com", None),
            ("https://api.example.org/api/v3", "api.example.org", Some("users.noreply.api.example.org")),
            ("https://git.example.org", "git.example.org", None),
            ("http://127.0.0.1:3000", "127.0.0.1", None),
            ("http://127.0.0.1:3000/api/v3", "127.0.0.1", None),
            ("http://localhost:3000/api/v3", "localhost", None),
        ] {
            assert_eq!(web_host(api_url).as_deref(), Some(web), "{api_url}");
            assert_eq!(noreply_domain(api_url).as_deref(), domain, "{api_url}");
        }
    }

    #[test]
    fn clone_address_is_on_the_host_of_the_repositories() {
        let name = RepositoryName::parse("octo/hello").unwrap();
        for (api_url, address) in [
            ("https://api.github.com", "https://github.com/octo/hello.git"),
            ("https://git.example.org/api/v3", "https://git.example.org/octo/hello.git"),
            ("https://git.example.org:8443/api/v3/", "https://git.example.org:8443/octo/hello.git"),
            ("https://api.octo.ghe.com", "https://octo.ghe.com/octo/hello.git"),
            ("http://127.0.0.1:3000/api/v3", "http://127.0.0.1:3000/octo/hello.git"),
        ] {
            assert_eq!(clone_address(api_url, &name).as_deref(), Some(address), "{api_url}");
        }
    }

    #[test]
    fn repository_on_another_host_is_not_looked_up_by_its_name() {
        for repository in [
            "octo/hello",
            "https://github.com/octo/hello.git",
            "https://www.github.com/octo/hello",
            "git@github.com:octo/hello.git",
            "ssh://git@ssh.github.com:443/octo/hello.git",
        ] {
            assert!(is_at(repository, "https://api.github.com"), "{repository}");
        }
        for repository in [
            "https://gitlab.com/octo/hello",
            "git@gitlab.com:octo/hello.git",
            "https://github.com.evil.org/octo/hello",
            "https://api.github.com/octo/hello",
            "http://127.0.0.1:3000/octo/hello",
        ] {
            assert!(!is_at(repository, "https://api.github.com"), "{repository}");
        }
        assert!(is_at("https://git.example.org:8443/octo/hello", "https://git.example.org/api/v3"));
        assert!(is_at("http://127.0.0.1:3000/octo/hello", "http://localhost:4000"));
    }

    #[test]
    fn token_is_sent_over_tls_or_to_this_machine_only() {
        let is_safe = |url: &str| is_safe(&Url::parse(url).unwrap());
        assert!(is_safe("https://api.github.com") && is_safe("http://127.0.0.1:1") && is_safe("http://[::1]:1"));
        assert!(!is_safe("http://git.example.org/api/v3") && !is_safe("ftp://127.0.0.1"));
    }

    #[test]
    fn graphql_is_beside_the_rest_api() {
        for (api, graphql) in [
            ("https://api.github.com", "https://api.github.com/graphql"),
            ("https://api.octo.ghe.com/", "https://api.octo.ghe.com/graphql"),
            ("https://git.example.com/api/v3", "https://git.example.com/api/graphql"),
            ("https://git.example.com/x/api/v3/", "https://git.example.com/x/api/graphql"),
            ("http://127.0.0.1:3000", "http://127.0.0.1:3000/graphql"),
        ] {
            assert_eq!(graphql_url(&Url::parse(api).unwrap()).as_str(), graphql, "{api}");
        }
    }
}
