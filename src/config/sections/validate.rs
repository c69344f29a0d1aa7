//! Rules beyond types.

use std::net::SocketAddr;

use secrecy::{ExposeSecret, SecretString};

use super::{Agent, webhook::origin};
use crate::{
    config::{
        Config,
        error::{BadSetting, ConfigError, Origin},
        sources::{DEFAULT_AGENT, Listener, sqlite_path},
    },
    domain::{
        automation::repository_pattern::{MAX_PATTERNS, is_pattern},
        notify::webhook::{MIN_SECRET_BYTES, key_of},
        share::FULL_BP,
    },
};

/// The smallest frame limit, in bytes: the handshake of an agent that offers many models and modes takes
/// about 20 KiB.
const MIN_FRAME_BYTES: usize = 64 * 1024;
/// The largest frame limit, in bytes: a frame is held in memory several times on its way.
const MAX_FRAME_BYTES: usize = 1024 * 1024 * 1024;
/// The longest time that a setting may name, in seconds: ten years. Longer ones are slips, and sums of them
/// have to fit.
const MAX_SECONDS: u64 = 10 * 366 * 24 * 3600;
/// Buckets of a window; each takes 24 bytes in each workspace.
const MAX_BUCKETS: u64 = 1440;

/// The longest that one post to a webhook may take, in seconds: as long as its place of four is taken.
const MAX_WEBHOOK_TIMEOUT_S: u64 = 60;
/// The longest wait between two posts, in seconds: a day.
const MAX_WEBHOOK_RETRY_S: u64 = 24 * 3600;

struct Check<'a, O> {
    origin_of: O,
    config: &'a Config,
    problems: Vec<BadSetting>,
}

/// Checks every rule, and reports everything that breaks one.
pub(crate) fn validate(
    config: &Config,
    listeners: &[Listener],
    origin_of: impl Fn(&str) -> Origin,
) -> Result<(), ConfigError> {
    let mut check = Check { origin_of, config, problems: Vec::new() };
    check.listeners(listeners);
    check.addresses();
    check.agents();
    check.times();
    check.limits();
    check.window();
    check.recovery();
    check.capacity();
    check.migration();
    check.notifications();
    check.github();
    check.webhook();
    check.log_level();
    if check.problems.is_empty() { Ok(()) } else { Err(ConfigError { problems: check.problems }) }
}

impl<O: Fn(&str) -> Origin> Check<'_, O> {
    fn require(&mut self, holds: bool, setting: impl Into<String>, what: impl Into<String>) {
        if !holds {
            let setting = setting.into();
            let origin = (self.origin_of)(&setting);
            self.problems.push(BadSetting { setting, origin, what: what.into() });
        }
    }

    fn listeners(&mut self, listeners: &[Listener]) {
        let (server, runtime) = (&self.config.server, &self.config.runtime);
        for (listener, section, listen, token) in [
            (Listener::Server, "server", server.listen, &server.token),
            (Listener::Runtime, "runtime", runtime.listen, &runtime.token),
        ] {
            self.token(section, token.as_ref());
            let open = listeners.contains(&listener) && is_open_to_others(listen) && token.is_none();
            let upper = section.to_ascii_uppercase();
            let way_out = format!(
                "{listen} is reachable from other machines and no token is configured; set {section}.token \
                 (LUMILINK_{upper}__TOKEN) or listen on 127.0.0.1"
            );
            self.require(!open, format!("{section}.listen"), way_out);
        }
        for (index, origin) in server.allowed_origins.iter().enumerate() {
            let exact = url::Url::parse(origin).is_ok_and(|url| {
                matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == *origin
            });
            let what = format!("{origin:?} must be an exact origin such as https://app.example.com, without a path");
            self.require(exact, format!("server.allowed_origins.{index}"), what);
        }
        for (index, host) in server.allowed_hosts.iter().enumerate() {
            let what = format!("{host:?} must be a host name such as lumilink.example.com, without scheme and port");
            self.require(is_host(host), format!("server.allowed_hosts.{index}"), what);
        }
    }

    fn token(&mut self, section: &str, token: Option<&SecretString>) {
        // What a header cannot carry would lock everybody out.
        let usable = token.is_none_or(|token| {
            let token = token.expose_secret();
            !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
        });
        let what = "must be one or more visible ASCII characters without spaces; leave it out for no token";
        self.require(usable, format!("{section}.token"), what);
    }

    fn addresses(&mut self) {
        if let Some(text) = &self.config.runtime.url {
            let fine = url::Url::parse(text).is_ok_and(|url| {
                matches!(url.scheme(), "ws" | "wss")
                    && url.has_host()
                    && url.username().is_empty()
                    && url.password().is_none()
            });
            self.require(
                fine,
                "runtime.url",
                "must be ws://host:port/acp or wss://host/acp, without user or password",
            );
        }
        if let Some(url) = &self.config.database.url {
            let url = url.expose_secret();
            let postgres = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
            let sqlite = sqlite_path(url).is_some_and(|path| !path.is_empty() && path != ":memory:");
            let fine = sqlite || (postgres && url::Url::parse(url).is_ok());
            self.require(fine, "database.url", "must be sqlite:PATH (a file) or postgres://user:password@host/name");
        }
        let hosts = &self.config.workspaces.git_hosts;
        self.require(!hosts.is_empty(), "workspaces.git_hosts", "must name at least one host, such as github.com");
        for (index, host) in hosts.iter().enumerate() {
            let what =
                format!("{host:?} must be a host name such as github.com or host:port, without scheme and path");
            let name = match host.rsplit_once(':') {
                Some((name, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => name,
                _ => host,
            };
            self.require(is_host(name), format!("workspaces.git_hosts.{index}"), what);
        }
    }

    fn agents(&mut self) {
        self.agent("agent", &self.config.agent);
        for (name, agent) in &self.config.agents {
            let setting = format!("agents.{name}");
            self.require(name != DEFAULT_AGENT, &setting, "the name is taken: the default agent stands in [agent]");
            let what = "the name must be of a-z 0-9 _ - and begin with a letter or digit, at most 64 characters";
            self.require(is_agent_name(name), &setting, what);
            self.agent(&setting, agent);
        }
    }

    fn agent(&mut self, section: &str, agent: &Agent) {
        let program = agent.command.first();
        let what = "its first element must be a program, such as [\"goose\", \"acp\"]";
        self.require(program.is_none_or(|it| !it.trim().is_empty()), format!("{section}.command"), what);
        let no_nul = agent.command.iter().all(|part| !part.contains('\0'));
        self.require(no_nul, format!("{section}.command"), "must not contain a NUL character");
        let oneshot = agent.oneshot.first().is_none_or(|it| !it.trim().is_empty());
        let fine = oneshot && agent.oneshot.iter().all(|part| !part.contains('\0'));
        let what = "its first element must be a program, and none may contain a NUL character";
        self.require(fine, format!("{section}.oneshot"), what);
        let user = agent.run_as.as_ref().is_none_or(|user| !user.trim().is_empty());
        self.require(
            user,
            format!("{section}.run_as"),
            "must be the name or number of a user; leave it out for none",
        );
        for (name, value) in &agent.env {
            let fine = is_variable(name) && !value.expose_secret().contains('\0');
            let what = "must be the name of a variable with a value without NUL characters";
            self.require(fine, format!("{section}.env.{name}"), what);
        }
        let names = agent.inherit_env.iter().all(|name| is_variable(name));
        self.require(
            names,
            format!("{section}.inherit_env"),
            "must be names of variables, such as [\"HTTPS_PROXY\"]",
        );
    }

    fn times(&mut self) {
        let config = self.config;
        for (setting, seconds) in [
            ("database.patience_s", config.database.patience_s),
            ("workspaces.clone_timeout_s", config.workspaces.clone_timeout_s),
            ("runtime.handshake_timeout_s", config.runtime.handshake_timeout_s),
            ("session.idle_timeout_s", config.session.idle_timeout_s),
            ("session.max_age_s", config.session.max_age_s),
            ("turn.inactivity_timeout_s", config.turn.inactivity_timeout_s),
            ("turn.cancel_grace_s", config.turn.cancel_grace_s),
            ("supervision.within_s", config.supervision.within_s),
            ("permission.timeout_s", config.permission.timeout_s),
            ("window.length_s", config.window.length_s),
            ("window.bucket_s", config.window.bucket_s),
            ("recovery.probe_timeout_s", config.recovery.probe_timeout_s),
        ] {
            let fine = (1..=MAX_SECONDS).contains(&seconds);
            self.require(fine, setting, format!("is {seconds}, must be 1 to {MAX_SECONDS} seconds"));
        }
        let drain = config.drain.timeout_s;
        self.require(drain <= MAX_SECONDS, "drain.timeout_s", format!("must be 0 to {MAX_SECONDS} seconds"));
        let grace = config.runtime.reconnect_grace_s;
        self.require(
            grace <= MAX_SECONDS,
            "runtime.reconnect_grace_s",
            format!("must be 0 to {MAX_SECONDS} seconds"),
        );
        let kill = config.runtime.kill_grace_ms;
        self.require(kill <= 60_000, "runtime.kill_grace_ms", format!("is {kill}, must be 0 to 60000 milliseconds"));
    }

    fn limits(&mut self) {
        let limits = &self.config.limits;
        for (setting, value, least, most) in [
            ("capacity.max_sessions", self.config.capacity.max_sessions, 1, 1_000_000),
            ("limits.body_bytes", limits.body_bytes, 1024, MAX_FRAME_BYTES),
            ("limits.frame_bytes", limits.frame_bytes, MIN_FRAME_BYTES, MAX_FRAME_BYTES),
            ("limits.queue_frames", limits.queue_frames, 1, 1_000_000),
            ("limits.queue_bytes", limits.queue_bytes, 1024, MAX_FRAME_BYTES),
            ("limits.replay_events", limits.replay_events, 1, 1_000_000),
            ("limits.replay_bytes", limits.replay_bytes, 1024, MAX_FRAME_BYTES),
            ("limits.page_entries", limits.page_entries, 1, 10_000),
            ("limits.write_queue", limits.write_queue, 2, 10_000_000),
            ("limits.diff_bytes", limits.diff_bytes, 1024, MAX_FRAME_BYTES),
            ("limits.terminals", limits.terminals, 1, 10_000),
            // Fewer than these, and either end could wait for what the other says only after more.
            ("runtime.replay_frames", self.config.runtime.replay_frames, 64, 1_000_000),
            ("runtime.replay_bytes", self.config.runtime.replay_bytes, 64 * 1024, MAX_FRAME_BYTES),
            ("runtime.max_agents", self.config.runtime.max_agents, 1, 1_000_000),
            ("server.workers", self.config.server.workers, 0, 1024),
        ] {
            let fine = (least..=most).contains(&value);
            self.require(fine, setting, format!("is {value}, must be {least} to {most}"));
        }
        let what = format!(
            "is {}, must be more than capacity.max_sessions ({}): every running turn holds one place for its end",
            limits.write_queue, self.config.capacity.max_sessions
        );
        self.require(limits.write_queue > self.config.capacity.max_sessions, "limits.write_queue", what);
    }

    fn window(&mut self) {
        let window = &self.config.window;
        let buckets = window.length_s.checked_div(window.bucket_s).unwrap_or(0);
        let whole = window.length_s.checked_rem(window.bucket_s) == Some(0);
        let what = format!(
            "is {}, must be a whole number of buckets of {} s, at most {MAX_BUCKETS}",
            window.length_s, window.bucket_s
        );
        self.require(whole && buckets <= MAX_BUCKETS, "window.length_s", what);
        self.share("window.threshold_bp", window.threshold_bp);
        for (setting, value) in
            [("window.min_samples", window.min_samples), ("window.min_failures", window.min_failures)]
        {
            let fine = (1..=1_000_000).contains(&value);
            self.require(fine, setting, format!("is {value}, must be 1 to 1000000"));
        }
    }

    fn recovery(&mut self) {
        let recovery = &self.config.recovery;
        let most = recovery.max_cooldown_s;
        let fine = recovery.cooldown_s <= most && most <= MAX_SECONDS;
        let what = format!("is {}, must be 0 to recovery.max_cooldown_s ({most})", recovery.cooldown_s);
        self.require(fine, "recovery.cooldown_s", what);
        self.share("recovery.jitter_bp", recovery.jitter_bp);
        let steps = &recovery.canary_steps_bp;
        let rises = steps.iter().all(|step| (1..=FULL_BP).contains(step)) && steps.is_sorted();
        let what = format!("is {steps:?}, must be 1 to 16 rising shares from 1 to {FULL_BP}");
        self.require(rises && (1..=16).contains(&steps.len()), "recovery.canary_steps_bp", what);
        for (setting, value) in [
            ("recovery.close_after_successes", recovery.close_after_successes),
            ("recovery.reopen_failures", recovery.reopen_failures),
            ("recovery.reopen_within", recovery.reopen_within),
        ] {
            let fine = (1..=1_000_000).contains(&value);
            self.require(fine, setting, format!("is {value}, must be 1 to 1000000"));
        }
    }

    fn capacity(&mut self) {
        let capacity = &self.config.capacity;
        for (setting, value) in [
            ("capacity.tenant_share_bp", capacity.tenant_share_bp),
            ("capacity.warn_bp", capacity.warn_bp),
            ("capacity.critical_bp", capacity.critical_bp),
            ("capacity.resolve_bp", capacity.resolve_bp),
        ] {
            self.share(setting, value);
        }
        let rises = capacity.resolve_bp <= capacity.warn_bp && capacity.warn_bp <= capacity.critical_bp;
        let what = "must be resolve_bp <= warn_bp <= critical_bp";
        self.require(rises, "capacity.warn_bp", what);
        let fine = capacity.resolve_after_s <= MAX_SECONDS;
        self.require(fine, "capacity.resolve_after_s", format!("must be 0 to {MAX_SECONDS} seconds"));
    }

    fn migration(&mut self) {
        let seconds = self.config.migration.auto_look_s;
        let fine = (1..=MAX_SECONDS).contains(&seconds);
        self.require(fine, "migration.auto_look_s", format!("is {seconds}, must be 1 to {MAX_SECONDS} seconds"));
    }

    fn notifications(&mut self) {
        let asked = &self.config.notifications;
        let (ttl, session) = (asked.ticket_ttl_s, asked.ticket_session_s);
        for (setting, seconds, most) in [("ticket_ttl_s", ttl, 300), ("ticket_session_s", session, MAX_SECONDS)] {
            let what = format!("is {seconds}, must be 1 to {most} seconds");
            self.require((1..=most).contains(&seconds), format!("notifications.{setting}"), what);
        }
    }

    fn github(&mut self) {
        let patterns = &self.config.github.blocked_repositories;
        let setting = "github.blocked_repositories";
        self.require(patterns.len() <= MAX_PATTERNS, setting, format!("must be at most {MAX_PATTERNS} patterns"));
        for pattern in patterns {
            self.require(is_pattern(pattern), setting, format!("{pattern:?} must be like owner/name or owner/*"));
        }
    }

    fn webhook(&mut self) {
        let webhook = &self.config.webhook;
        let url = webhook.url.as_ref();
        let fine = url.is_none_or(|url| origin(url.expose_secret()).is_some());
        self.require(fine, "webhook.url", "must be https://…, or http://… on 127.0.0.1, [::1] or localhost");
        let what = format!(
            "must be {MIN_SECRET_BYTES} or more visible ASCII characters without spaces, or whsec_ and base64 of as many \
             bytes: openssl rand -base64 32"
        );
        for (setting, secret) in
            [("webhook.secret", &webhook.secret), ("webhook.previous_secret", &webhook.previous_secret)]
        {
            let fine = secret.as_ref().is_none_or(|secret| key_of(secret.expose_secret()).is_some());
            self.require(fine, setting, &what);
        }
        let signs = url.is_none() || webhook.secret.is_some();
        self.require(
            signs,
            "webhook.secret",
            "is not set, and what is posted to webhook.url has to be signed; set it in LUMILINK_WEBHOOK__SECRET",
        );
        let (timeout, attempts) = (webhook.timeout_s, webhook.max_attempts);
        let fine = (1..=MAX_WEBHOOK_TIMEOUT_S).contains(&timeout);
        let what = format!("is {timeout}, must be 1 to {MAX_WEBHOOK_TIMEOUT_S} seconds");
        self.require(fine, "webhook.timeout_s", what);
        self.require(
            (1..=1000).contains(&attempts),
            "webhook.max_attempts",
            format!("is {attempts}, must be 1 to 1000"),
        );
        let (first, most) = (webhook.first_retry_s, webhook.max_retry_s);
        let what = format!("is {most}, must be 1 to {MAX_WEBHOOK_RETRY_S} seconds");
        self.require((1..=MAX_WEBHOOK_RETRY_S).contains(&most), "webhook.max_retry_s", what);
        let what = format!("is {first}, must be 1 to webhook.max_retry_s ({most})");
        self.require((1..=most.max(1)).contains(&first), "webhook.first_retry_s", what);
    }

    fn share(&mut self, setting: &str, value: u32) {
        let fine = value <= FULL_BP;
        self.require(fine, setting, format!("is {value}, must be 0 to {FULL_BP} hundredths of a percent"));
    }

    fn log_level(&mut self) {
        let level = &self.config.log.level;
        let fine = tracing_subscriber::EnvFilter::builder().parse(level).is_ok() && !level.trim().is_empty();
        let what = format!(
            "is {level:?}, must be off, error, warn, info, debug, trace, or a filter such as info,lumilink=debug"
        );
        self.require(fine, "log.level", what);
    }
}

fn is_open_to_others(listen: SocketAddr) -> bool {
    !listen.ip().to_canonical().is_loopback()
}

fn is_host(text: &str) -> bool {
    let labels_fine = text.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    });
    labels_fine && text.len() <= 253
}

fn is_agent_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let rest = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte));
    first && rest && name.len() <= 64
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}
