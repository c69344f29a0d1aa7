//! The client of one step: requests in order, with waits, repetitions and pages.

use std::time::Duration;

use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use url::Url;

use super::{
    exchange::{Github, Reply},
    locks::Hold,
};
use crate::{
    domain::{
        automation::{
            github_answer::{Cause, Refusal},
            github_host,
        },
        clock::{Clock, Timestamp},
    },
    telemetry::SystemClock,
};

/// The most executions of one request.
pub(super) const TRIES: u32 = 3;
/// The most redirects of one request.
const MAX_REDIRECTS: u32 = 3;
/// The wait before the first repetition of a request that reads; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Time between two creations of one key, as GitHub asks.
pub(super) const CREATION_GAP: Duration = Duration::from_secs(1);
/// The most pages of one list.
const MAX_PAGES: usize = 10;
/// Sizes of pages; the next one is used if a page is too large to be read.
const PAGE_SIZES: [usize; 3] = [100, 20, 4];

/// The address, the token and the limits of a client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access<'a> {
    /// Root of the API, such as `https://api.github.com` or `https://host/api/v3`.
    pub api_url: &'a str,
    pub token: &'a SecretString,
    /// Id of the installation to which the token belongs. Creations of one installation, else of one token, exclude each
    /// other.
    pub installation: Option<u64>,
    /// The longest time that the client waits for rate limits, all waits together.
    pub max_wait: Duration,
}

/// Sends the requests of one step, one after another. `Debug` shows no token.
#[derive(Debug)]
pub(crate) struct GithubClient {
    github: Github,
    base: Url,
    token: SecretString,
    /// Key of the lock for creations.
    key: String,
    /// The rest of [`Access::max_wait`].
    patience: Duration,
    rate_remaining: Option<u64>,
    scopes: Option<String>,
    /// The lock of the run, which a creation that is still under way keeps.
    run: Option<std::sync::Arc<Hold>>,
}

impl GithubClient {
    /// Makes a client without connecting.
    ///
    /// # Errors
    /// The address is malformed, or would send the token in clear to another machine.
    pub(crate) fn new(github: &Github, access: Access<'_>) -> Result<Self, Refusal> {
        let base =
            Url::parse(access.api_url).map_err(|_| Refusal::unusable("the address of the API is malformed"))?;
        if !github_host::is_safe(&base) || base.cannot_be_a_base() {
            return Err(Refusal::unusable("the address of the API must begin with https://"));
        }
        let key = match access.installation {
            Some(id) => format!("{} installation {id}", base.origin().ascii_serialization()),
            // The token itself is not kept as a key.
            None => format!("token {:x}", Sha256::digest(access.token.expose_secret())),
        };
        Ok(Self {
            github: github.clone(),
            base,
            token: access.token.clone(),
            key,
            patience: access.max_wait,
            rate_remaining: None,
            scopes: None,
            run: None,
        })
    }

    /// Keeps the lock of a run as long as this client lives, and as long as a creation of it is under way.
    pub(crate) fn keep(&mut self, hold: Hold) {
        self.run = Some(std::sync::Arc::new(hold));
    }

    /// Requests that GitHub permits until the reset, if an answer named them.
    pub(crate) fn rate_remaining(&self) -> Option<u64> {
        self.rate_remaining
    }

    /// The scopes of a classic token, separated by commas; `None` for other tokens, and before the first answer.
    pub(crate) fn scopes(&self) -> Option<&str> {
        self.scopes.as_deref()
    }

    /// The address of an operation. Slashes within a segment are escaped.
    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// Reads one object. Repeated up to 3 times after a lost connection or an error of the server, and after a rate limit
    /// that ends in time. Follows redirects on the same host, as for a renamed repository.
    ///
    /// # Errors
    /// [`Refusal`]; a later retry is safe. Cancel-safe.
    pub(crate) async fn get<T: DeserializeOwned>(&mut self, path: &[&str]) -> Result<T, Refusal> {
        self.read(self.url(path, &[])).await?.json()
    }

    /// As [`Self::get`], with a query, and not repeated: for what may be missed.
    ///
    /// # Errors
    /// [`Refusal`]. Cancel-safe.
    pub(crate) async fn get_with<T: DeserializeOwned>(
        &mut self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, Refusal> {
        let reply = self.send(Method::GET, self.url(path, query), None).await?;
        if reply.is_success() { reply.json() } else { Err(reply.refusal()) }
    }

    /// Reads a list from its start: at most `pages` pages, and never more than 10. Malformed entries are left out.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) async fn list<T: DeserializeOwned>(
        &mut self,
        path: &[&str],
        query: &[(&str, &str)],
        pages: usize,
    ) -> Result<Vec<T>, Refusal> {
        let (first, _) = self.first_page(path, query).await?;
        let mut entries = entries_of(&first)?;
        let mut next = self.linked(&first, "next");
        for _ in 1..pages.min(MAX_PAGES) {
            let Some(url) = next else { break };
            let page = self.read(url).await?;
            entries.extend(entries_of(&page)?);
            next = self.linked(&page, "next");
        }
        Ok(entries)
    }

    /// Reads the end of a list whose newest entries are last: its first page and its last two. Malformed entries are left
    /// out.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) async fn list_end<T: DeserializeOwned>(&mut self, path: &[&str]) -> Result<Vec<T>, Refusal> {
        let (first, size) = self.first_page(path, &[]).await?;
        let mut entries = entries_of(&first)?;
        let last = self.linked(&first, "last").and_then(|url| page_number(&url)).unwrap_or(1);
        for number in last.saturating_sub(1).max(2)..=last {
            let query = [("per_page", size.as_str()), ("page", &number.to_string())];
            let page = self.read(self.url(path, &query)).await?;
            entries.extend(entries_of(&page)?);
        }
        Ok(entries)
    }

    /// The first page, with the largest size that can be read.
    async fn first_page(&mut self, path: &[&str], query: &[(&str, &str)]) -> Result<(Reply, String), Refusal> {
        let mut refused = None;
        for size in PAGE_SIZES {
            let size = size.to_string();
            let query: Vec<_> = query.iter().copied().chain([("per_page", size.as_str())]).collect();
            match self.read(self.url(path, &query)).await {
                Ok(page) => return Ok((page, size)),
                Err(refusal) if refusal.cause == Cause::TooLarge => refused = Some(refusal),
                Err(refusal) => return Err(refusal),
            }
        }
        Err(refused.unwrap_or_else(|| Refusal::unusable("no page can be read")))
    }

    /// The target of a `Link`, on the host of the API: behind a proxy the server may name itself by another host.
    fn linked(&self, reply: &Reply, relation: &str) -> Option<Url> {
        let target = link(reply.header("link")?, relation)?;
        let target = self.base.join(target).ok()?;
        let mut url = self.base.clone();
        url.set_path(target.path());
        url.set_query(target.query());
        Some(url)
    }

    async fn read(&mut self, url: Url) -> Result<Reply, Refusal> {
        let (mut url, mut redirects, mut tries) = (url, 0, 0);
        loop {
            let refusal = match self.send(Method::GET, url.clone(), None).await {
                Ok(reply) => match reply.redirect().filter(|_| redirects < MAX_REDIRECTS) {
                    Some(target) => {
                        (url, redirects) = (target, redirects + 1);
                        continue;
                    }
                    None if reply.is_success() => return Ok(reply),
                    None => reply.refusal(),
                },
                Err(refusal) => refusal,
            };
            tries += 1;
            if tries == TRIES || !self.wait_after(&refusal, tries).await {
                return Err(refusal);
            }
        }
    }

    /// Waits before a repetition of a request that reads; false if it cannot help.
    async fn wait_after(&mut self, refusal: &Refusal, tries: u32) -> bool {
        match (refusal.limited_until(), &refusal.cause) {
            (Some(until), _) => self.wait_until(until).await,
            (None, Cause::Unavailable) => {
                tokio::time::sleep(FIRST_WAIT * 2_u32.saturating_pow(tries - 1)).await;
                true
            }
            (None, _) => false,
        }
    }

    /// Waits until a time if that is within the rest of [`Access::max_wait`]; otherwise returns false at once.
    pub(crate) async fn wait_until(&mut self, until: Timestamp) -> bool {
        let wait = until.since(SystemClock.now());
        let Some(rest) = self.patience.checked_sub(wait) else { return false };
        self.patience = rest;
        tokio::time::sleep(wait).await;
        true
    }

    async fn send(&mut self, method: Method, url: Url, body: Option<&Value>) -> Result<Reply, Refusal> {
        let mut request = self.github.request(method, url, &self.token)?;
        if let Some(body) = body {
            request = request.json(body);
        }
        let reply = request.send().await?;
        self.observe(&reply);
        Ok(reply)
    }

    fn observe(&mut self, reply: &Reply) {
        self.rate_remaining = reply.rate_remaining().or(self.rate_remaining);
        if let Some(scopes) = reply.header("x-oauth-scopes") {
            self.scopes = Some(scopes.to_owned());
        }
    }

    /// Creates something, by one POST: one at a time for each installation or token, at least 1 s after the one before.
    /// Never repeated.
    ///
    /// # Errors
    /// [`Refusal`]. If it [`is_uncertain`](Refusal::is_uncertain), look for what exists before a retry.
    ///
    /// # Cancel safety
    /// A dropped future leaves the request under way, with the locks of key and run, so that nothing is looked up
    /// meanwhile.
    pub(crate) async fn create<T: DeserializeOwned>(&mut self, path: &[&str], body: &Value) -> Result<T, Refusal> {
        self.write(Method::POST, self.url(path, &[]), body, CREATION_GAP).await?.json()
    }

    /// Sends one mutation to the GraphQL API, as [`Self::create`] sends a creation. Its errors arrive with status 200.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub(crate) async fn mutate<T: DeserializeOwned>(&mut self, query: &str, variables: &Value) -> Result<T, Refusal> {
        #[derive(serde::Deserialize)]
        struct Answer<T> {
            data: T,
        }
        let url = github_host::graphql_url(&self.base);
        let body = json!({"query": query, "variables": variables});
        self.write(Method::POST, url, &body, CREATION_GAP).await?.json::<Answer<T>>().map(|answer| answer.data)
    }

    /// Changes something in a way that can be repeated. Waits for creations under way, not for their pace.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub(crate) async fn change(&mut self, method: Method, path: &[&str], body: &Value) -> Result<(), Refusal> {
        self.write(method, self.url(path, &[]), body, Duration::ZERO).await.map(drop)
    }

    async fn write(&mut self, method: Method, url: Url, body: &Value, gap: Duration) -> Result<Reply, Refusal> {
        let mut pace = self.github.locks().lock(&self.key).await;
        if let Some(until) = pace.paused_until.take().filter(|until| *until > SystemClock.now()) {
            // Another creation of this key has just been refused until then.
            if !self.wait_until(until).await {
                pace.paused_until = Some(until);
                let message = "GitHub limits the rate of this token".to_owned();
                let cause = Cause::SecondaryLimit { until };
                return Err(Refusal { status: None, cause, message, errors: Vec::new() });
            }
        }
        tokio::time::sleep(pace.wait(gap)).await;
        let request = self.github.request(method, url, &self.token)?.json(body);
        let run = self.run.clone();
        let sent = tokio::spawn(async move {
            let reply = request.send().await;
            if !gap.is_zero() {
                pace.created();
            }
            let reply = reply.and_then(|reply| match reply.is_success() {
                true => reply.graphql_refusal().map_or(Ok(reply), Err),
                false => Err(reply.refusal()),
            });
            if let Err(refusal) = &reply {
                pace.paused_until = refusal.limited_until();
            }
            drop((pace, run));
            reply
        });
        let reply = sent.await.unwrap_or_else(|_| Err(Refusal::unavailable(None, "the request was interrupted")))?;
        self.observe(&reply);
        Ok(reply)
    }
}

fn entries_of<T: DeserializeOwned>(page: &Reply) -> Result<Vec<T>, Refusal> {
    let entries: Vec<Value> = page.json()?;
    Ok(entries.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect())
}

/// The target of a relation in a header `Link`, such as `<https://api.github.com/x?page=2>; rel="next"`.
fn link<'a>(header: &'a str, relation: &str) -> Option<&'a str> {
    header.split(',').find_map(|part| {
        let (target, parameters) = part.trim().strip_prefix('<')?.split_once('>')?;
        let mut parameters = parameters.split(';').map(str::trim);
        let is_relation = |parameter: &str| {
            parameter.strip_prefix("rel=").is_some_and(|value| value.trim_matches('"').eq_ignore_ascii_case(relation))
        };
        parameters.any(is_relation).then_some(target)
    })
}

fn page_number(url: &Url) -> Option<usize> {
    url.query_pairs().find(|(name, _)| name == "page").and_then(|(_, number)| number.parse().ok())
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::github::GithubLimits;

    #[test]
    fn link_header_names_the_next_and_the_last_page() {
        let header = "<https://api.github.com/repositories/1/issues?page=2>; rel=\"next\", \
                      <https://api.github.com/repositories/1/issues?page=9&a=%3E>; rel=\"last\"";
        assert_eq!(link(header, "next"), Some("https://api.github.com/repositories/1/issues?page=2"));
        assert_eq!(link(header, "last"), Some("https://api.github.com/repositories/1/issues?page=9&a=%3E"));
        for bad in ["", "<", "<x>", "x; rel=next", ", ,"] {
            assert_eq!(link(bad, "next"), None, "{bad}");
        }
        assert_eq!(page_number(&Url::parse("https://x/?per_page=100&page=9").unwrap()), Some(9));
    }

    #[test]
    fn path_segments_are_escaped_below_the_root_of_an_enterprise_server() {
        let token = SecretString::from("x");
        let access = |api_url| Access { api_url, token: &token, installation: None, max_wait: Duration::ZERO };
        let url = |api_url| {
            let client = GithubClient::new(&Github::new(GithubLimits::default()), access(api_url)).unwrap();
            client.url(&["git", "ref", "heads/a?#b"], &[("head", "octo:a/b")]).to_string()
        };
        let tail = "git/ref/heads%2Fa%3F%23b?head=octo%3Aa%2Fb";
        assert_eq!(url("https://api.github.com"), format!("https://api.github.com/{tail}"));
        assert_eq!(url("https://host.example/api/v3/"), format!("https://host.example/api/v3/{tail}"));
        for bad in ["", "api.github.com", "http://api.github.com", "ftp://127.0.0.1", "data:x"] {
            let refusal = GithubClient::new(&Github::new(GithubLimits::default()), access(bad)).unwrap_err();
            assert_eq!(refusal.cause, Cause::Unusable, "{bad}");
        }
    }
}
