//! Authentication of a GitHub App: tokens for one repository, minted when they are needed.

use std::{collections::BTreeMap, fmt, time::Duration};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use parking_lot::Mutex;
use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::{Value, json};
use url::Url;

use super::{
    client::TRIES,
    exchange::{Github, Reply},
    model::{Installation, MintedToken},
};
use crate::{
    config::Reloadable,
    contract::steps::AppInstallation,
    domain::{
        automation::{
            github_answer::{Cause, Refusal},
            github_host,
            repository_pattern::RepositoryName,
            skip::SkipDetail,
            step::{Remedy, StepFailure},
        },
        clock::Timestamp,
    },
};

/// Life of a token with which the App identifies itself. GitHub takes at most 10 minutes, and clocks differ.
const JWT_LIFE: Duration = Duration::from_secs(8 * 60);
/// Time before `now` from which that token is valid, for a clock that is ahead of GitHub's.
const JWT_SKEW: Duration = Duration::from_secs(60);
/// A cached token is not used in this time before its expiry, which a long push may take.
const EXPIRY_MARGIN: Duration = Duration::from_secs(5 * 60);
/// Life of a token whose answer does not name it; GitHub's is an hour.
const TOKEN_LIFE: Duration = Duration::from_secs(60 * 60);
/// The most tokens that are cached. The one that expires first is dropped for another.
const MAX_TOKENS: usize = 1024;
/// The permission without which a token is of no use.
const CONTENTS: &str = "contents";
/// The wait before the first repetition of a request; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// The permission without which a run misses nothing but a remark.
const OPTIONAL: &str = "actions";

/// A GitHub App as it is configured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AppOptions<'a> {
    /// Root of the API, as in `[github] api_url`.
    pub api_url: &'a str,
    /// The App's id or client id.
    pub app_id: &'a str,
    /// The private key as PEM (PKCS #1 or PKCS #8).
    pub private_key: &'a SecretString,
}

/// The permissions that a token needs beside `contents: write` and `metadata: read`. With pull requests it gets `actions: read`,
/// if the installation grants that: to see whether checks wait for approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    pub issues: bool,
    pub pull_requests: bool,
    /// For a change of `.github/workflows/`. Left out if the installation does not grant it; the preflight reports that.
    pub workflows: bool,
}

impl Scope {
    fn permissions(self) -> BTreeMap<String, String> {
        let wanted = [
            ("metadata", "read", true),
            (CONTENTS, "write", true),
            ("issues", "write", self.issues),
            ("pull_requests", "write", self.pull_requests),
            ("workflows", "write", self.workflows),
            (OPTIONAL, "read", self.pull_requests),
        ];
        let wanted = wanted.into_iter().filter(|permission| permission.2);
        wanted.map(|(name, level, _)| (name.to_owned(), level.to_owned())).collect()
    }
}

/// A token of an installation for one repository.
#[derive(Debug, Clone)]
pub(crate) struct AppToken {
    pub token: SecretString,
    pub expires_at: Timestamp,
    pub installation: AppInstallation,
}

/// A private key that can sign.
pub(crate) struct AppKey(EncodingKey);

impl AppKey {
    /// Reads a key, an RSA key as PEM (PKCS #1 or PKCS #8), and tries it.
    ///
    /// # Errors
    /// It is no such key, or it cannot sign.
    pub(crate) fn parse(pem: &SecretString) -> Result<Self, BadApp> {
        let key = EncodingKey::from_rsa_pem(pem.expose_secret().trim().as_bytes())
            .map_err(|_| BadApp("the private key is not an RSA key in PEM format"))?;
        sign(&Claims { iat: 0, exp: 0, iss: "" }, &key).map_err(|_| BadApp("the private key cannot sign"))?;
        Ok(Self(key))
    }
}

fn sign(claims: &Claims<'_>, key: &EncodingKey) -> jsonwebtoken::errors::Result<String> {
    encode(&Header::new(Algorithm::RS256), claims, key)
}

/// Mints tokens, and caches them until 5 minutes before their expiry. `Debug` shows no key and no token.
pub(crate) struct App {
    github: Github,
    base: Url,
    app_id: String,
    key: Reloadable<EncodingKey>,
    tokens: Mutex<BTreeMap<TokenKey, AppToken>>,
}

/// Repository in lower case, and permissions. The installation is that of the token.
type TokenKey = (String, Vec<String>);

/// The configuration of an App is not usable. The text names no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadApp(&'static str);

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.base.origin().ascii_serialization();
        f.debug_struct("App").field("origin", &origin).field("app_id", &self.app_id).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    iat: i64,
    exp: i64,
    iss: &'a str,
}

impl App {
    /// Makes an App without connecting.
    ///
    /// # Errors
    /// The key is no RSA key in PEM, or the address is malformed or unsafe.
    pub(crate) fn new(github: Github, options: AppOptions<'_>) -> Result<Self, BadApp> {
        let base = Url::parse(options.api_url).map_err(|_| BadApp("the address of the API is malformed"))?;
        if !github_host::is_safe(&base) {
            return Err(BadApp("the address of the API must begin with https://"));
        }
        let key = Reloadable::new(AppKey::parse(options.private_key)?.0);
        Ok(Self { github, base, app_id: options.app_id.to_owned(), key, tokens: Mutex::default() })
    }

    /// Identifies itself with another key of the same App from now on. Cached tokens remain valid.
    pub(crate) fn use_key(&self, key: AppKey) {
        self.key.set(key.0);
    }

    /// Returns a token for one repository, with the permissions of `scope` that the installation grants. Calls for the
    /// same repository wait for each other, so that one token is minted. `is_bound` decides about the installation: true
    /// if an administrator bound it to the tenant; it is asked for cached tokens, too.
    ///
    /// # Errors
    /// `no-installation` if the App is not installed on the repository, or `is_bound` is false; otherwise as
    /// [`Refusal::failure`]. A later retry is safe, since an unused token expires by itself. Cancel-safe.
    pub(crate) async fn token(
        &self,
        repository: &RepositoryName,
        scope: Scope,
        is_bound: impl Fn(u64) -> bool,
        now: Timestamp,
    ) -> Result<AppToken, StepFailure> {
        self.token_with(repository, scope.permissions(), is_bound, now).await
    }

    /// As [`Self::token`], with the permission to read the contents and no other.
    ///
    /// # Errors
    /// As [`Self::token`].
    pub(crate) async fn clone_token(
        &self,
        repository: &RepositoryName,
        is_bound: impl Fn(u64) -> bool,
        now: Timestamp,
    ) -> Result<AppToken, StepFailure> {
        let wanted = [("metadata", "read"), (CONTENTS, "read")];
        let wanted = wanted.map(|(name, level)| (name.to_owned(), level.to_owned())).into();
        self.token_with(repository, wanted, is_bound, now).await
    }

    async fn token_with(
        &self,
        repository: &RepositoryName,
        wanted: BTreeMap<String, String>,
        is_bound: impl Fn(u64) -> bool,
        now: Timestamp,
    ) -> Result<AppToken, StepFailure> {
        let permissions = wanted.iter().map(|(name, level)| format!("{name}={level}")).collect();
        let key = (repository.to_string().to_ascii_lowercase(), permissions);
        let _flight = self.github.locks().lock(&format!("mint {}", key.0)).await;
        let cached = self.tokens.lock().get(&key).filter(|token| token.expires_at > now.plus(EXPIRY_MARGIN)).cloned();
        if let Some(token) = cached {
            return if is_bound(token.installation.id) { Ok(token) } else { Err(unbound(repository)) };
        }
        let token = self.mint(repository, wanted.clone(), &is_bound, now).await?;
        // A token that lacks a needed permission is minted again, so that it is there as soon as it is granted.
        if wanted
            .keys()
            .filter(|name| *name != OPTIONAL)
            .all(|name| token.installation.permissions.contains_key(name))
        {
            self.keep(key, token.clone(), now);
        }
        Ok(token)
    }

    /// Drops a token from the cache after GitHub refused it with 401, so that the next call mints another. Does nothing
    /// if another token has replaced it.
    pub(crate) fn invalidate(&self, token: &SecretString) {
        self.tokens.lock().retain(|_, cached| cached.token.expose_secret() != token.expose_secret());
    }

    fn keep(&self, key: TokenKey, token: AppToken, now: Timestamp) {
        let mut tokens = self.tokens.lock();
        tokens.retain(|_, cached| cached.expires_at > now);
        if tokens.len() >= MAX_TOKENS {
            let first = tokens.iter().min_by_key(|(_, token)| token.expires_at).map(|(key, _)| key.clone());
            first.and_then(|first| tokens.remove(&first));
        }
        tokens.insert(key, token);
    }

    async fn mint(
        &self,
        repository: &RepositoryName,
        wanted: BTreeMap<String, String>,
        is_bound: impl Fn(u64) -> bool,
        now: Timestamp,
    ) -> Result<AppToken, StepFailure> {
        let identity = self.identity(now).map_err(|refusal| refusal.failure(true))?;
        let failed = |refusal: Refusal| match refusal.cause {
            // Not the token of a repository, but the App itself is refused.
            Cause::Unauthorised => misconfigured(&refusal),
            // The same text for both, so that no tenant learns about repositories of another.
            Cause::NotFound => unbound(repository),
            _ => refusal.failure(true),
        };
        let path = ["repos", repository.owner(), repository.name(), "installation"];
        let reply = self.call(Method::GET, &path, None, &identity).await.map_err(failed)?;
        let installation: Installation = reply.json().map_err(failed)?;
        if !is_bound(installation.id) {
            return Err(unbound(repository));
        }
        if installation.suspended_at.is_some() {
            return Err(no_installation("The installation of the GitHub App is suspended. Unsuspend it"));
        }
        let granted = words_of(installation.permissions);
        let level = wanted.get(CONTENTS).cloned().unwrap_or_default();
        let permissions = granted_of(wanted, &granted);
        if !permissions.contains_key(CONTENTS) {
            return Err(without_contents(&level));
        }
        let path = ["app", "installations", &installation.id.to_string(), "access_tokens"];
        let mut body = json!({"permissions": permissions});
        match id_of_renamed(&reply.url) {
            Some(id) => body["repository_ids"] = json!([id]),
            None => body["repositories"] = json!([repository.name()]),
        }
        let reply = self.call(Method::POST, &path, Some(&body), &identity).await.map_err(|refusal| {
            // `There is at least one repository that does not exist or is not accessible to the parent installation.`
            match refusal.mentions("not accessible to the parent installation") {
                true => unbound(repository),
                false => failed(refusal),
            }
        })?;
        let minted: MintedToken = reply.json().map_err(failed)?;
        let expires_at = minted.expires_at.as_deref().and_then(Timestamp::parse);
        let granted = minted.permissions.map_or(permissions, |granted| words_of(Some(granted)));
        let installation = AppInstallation { id: installation.id, slug: installation.app_slug, permissions: granted };
        let expires_at = expires_at.unwrap_or_else(|| now.plus(TOKEN_LIFE));
        Ok(AppToken { token: minted.token, expires_at, installation })
    }

    /// The token with which the App identifies itself.
    fn identity(&self, now: Timestamp) -> Result<SecretString, Refusal> {
        let seconds = |at: Timestamp| at.0.div_euclid(1_000_000);
        let claims =
            Claims { iat: seconds(now.minus(JWT_SKEW)), exp: seconds(now.plus(JWT_LIFE)), iss: &self.app_id };
        sign(&claims, &self.key.get())
            .map(SecretString::from)
            .map_err(|_| Refusal::unusable("the private key of the GitHub App cannot sign"))
    }

    /// Sends a request up to 3 times: reading and minting can both be repeated.
    async fn call(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&Value>,
        identity: &SecretString,
    ) -> Result<Reply, Refusal> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let mut tries = 0;
        loop {
            let mut request = self.github.request(method.clone(), url.clone(), identity)?;
            if let Some(body) = body {
                request = request.json(body);
            }
            let refusal = match request.send().await {
                Ok(reply) if reply.is_success() => return Ok(reply),
                // A renamed repository.
                Ok(reply) => match reply.redirect().filter(|target| *target != url && method == Method::GET) {
                    Some(target) if tries < TRIES => {
                        (url, tries) = (target, tries + 1);
                        continue;
                    }
                    _ => reply.refusal(),
                },
                Err(refusal) => refusal,
            };
            tries += 1;
            if tries >= TRIES || refusal.cause != Cause::Unavailable {
                return Err(refusal);
            }
            tokio::time::sleep(FIRST_WAIT * 2_u32.saturating_pow(tries - 1)).await;
        }
    }
}

/// The wanted permissions that an installation grants. Nothing is left out of an installation that does not list them,
/// except for those that few grant.
fn granted_of(wanted: BTreeMap<String, String>, granted: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let grants = |name: &str, level: &str| match granted.get(name).map(String::as_str) {
        Some("write" | "admin") => true,
        Some(given) => given == level,
        None => granted.is_empty() && !["workflows", OPTIONAL].contains(&name),
    };
    wanted.into_iter().filter(|(name, level)| grants(name, level)).collect()
}

/// The id of a repository, to which GitHub redirected because it was renamed: `/repositories/{id}/installation`.
fn id_of_renamed(url: &Url) -> Option<u64> {
    let mut segments = url.path_segments()?.rev();
    let is_redirected = segments.next() == Some("installation");
    let id = segments.next()?.parse().ok()?;
    (is_redirected && segments.next() == Some("repositories")).then_some(id)
}

fn words_of(permissions: Option<BTreeMap<String, Value>>) -> BTreeMap<String, String> {
    let word = |(name, level): (String, Value)| Some((name, level.as_str()?.to_owned()));
    permissions.into_iter().flatten().filter_map(word).collect()
}

fn no_installation(message: &str) -> StepFailure {
    let detail = SkipDetail::NoInstallation;
    let (code, message) = (detail.as_str().to_owned(), message.to_owned());
    StepFailure { code, message, skip: Some(detail), remedy: Remedy::Never, retry_at: None }
}

/// The failure for a repository that no installation of the tenant reaches.
pub(crate) fn unbound(repository: &RepositoryName) -> StepFailure {
    no_installation(&format!(
        "The GitHub App is not installed on {repository}, or the installation is not bound to this tenant. Install it \
         there, and ask an administrator to bind the installation"
    ))
}

fn without_contents(level: &str) -> StepFailure {
    let detail = SkipDetail::TokenRefused;
    let message = format!(
        "The GitHub App lacks the permission {CONTENTS}={level}. Grant it, and accept it in the installation"
    );
    let code = detail.as_str().to_owned();
    StepFailure { code, message, skip: Some(detail), remedy: Remedy::Never, retry_at: None }
}

fn misconfigured(refusal: &Refusal) -> StepFailure {
    let failure = refusal.failure(true);
    let message = format!("{}. Check app_id, private key and clock of the service", refusal.message);
    StepFailure { message, remedy: Remedy::Never, ..failure }
}

#[cfg(test)]
mod tests;
