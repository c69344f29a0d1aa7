use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::flags::{CommandError, ServerFlags, print, print_json, print_pages, show};
use crate::{
    client::{ApiClient, clean::clean_line},
    domain::clock::{Clock, Timestamp},
    telemetry::SystemClock,
};

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    server: ServerFlags,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Makes a token and prints it. It is shown only now.
    Create(CreateArgs),
    /// Lists tokens, newest first, revoked and expired ones included.
    List {
        /// Only tokens of this tenant.
        #[arg(long, value_name = "NAME", visible_alias = "installation")]
        tenant: Option<String>,
    },
    /// Revokes a token: requests with it are refused at once.
    Revoke {
        /// Id of the token.
        #[arg(value_name = "TOKEN_ID")]
        token_id: String,
    },
}

/// Roles: reader reads sessions; user also uses them and rolls workspaces back; auditor reads the audit, no transcripts;
/// operator changes routes, limits and migrations; admin may do everything.
#[derive(Debug, Args)]
struct CreateArgs {
    /// Name of the person or program that gets the token; the actor of its changes in the audit.
    #[arg(long, value_name = "NAME")]
    subject: String,
    /// Role: reader, user, auditor, operator or admin.
    #[arg(long, value_name = "ROLE")]
    role: String,
    /// The only tenant that the token reaches; all tenants if not given.
    #[arg(long, value_name = "NAME", visible_alias = "installation")]
    tenant: Option<String>,
    /// The only workspace of the tenant that the token reaches.
    #[arg(long, value_name = "NAME", requires = "tenant")]
    workspace: Option<String>,
    /// The only user of the tenant whose sessions the token reaches.
    #[arg(long, value_name = "NAME", requires = "tenant")]
    user: Option<String>,
    /// When the token expires: a time (RFC 3339), or a duration such as 12h or 90d; never if not given.
    #[arg(long, value_name = "WHEN", value_parser = expiry)]
    expires: Option<Timestamp>,
    /// Live sessions that it may open at the same time.
    #[arg(long, value_name = "N")]
    sessions: Option<u32>,
    /// Turns that it may run at the same time.
    #[arg(long, value_name = "N")]
    turns: Option<u32>,
    /// Prompts that are accepted within a minute.
    #[arg(long, value_name = "N")]
    prompts_per_minute: Option<u32>,
}

/// A time, or a duration from now in hours or days.
fn expiry(text: &str) -> Result<Timestamp, String> {
    let now = SystemClock.now();
    let hours = |count: &str, each: u64| count.parse::<u64>().ok().and_then(|count| count.checked_mul(each * 3600));
    let seconds = match (text.strip_suffix('h'), text.strip_suffix('d')) {
        (Some(count), _) => hours(count, 1),
        (_, Some(count)) => hours(count, 24),
        _ => None,
    };
    match seconds {
        Some(seconds) => Ok(now.plus(std::time::Duration::from_secs(seconds))),
        None => {
            Timestamp::parse(text).ok_or_else(|| "give a time such as 2027-06-01T00:00:00Z, or 12h or 90d".to_owned())
        }
    }
}

impl CreateArgs {
    fn body(self) -> Value {
        json!({
            "installationId": self.tenant,
            "workspaceId": self.workspace,
            "userId": self.user,
            "subject": self.subject,
            "role": self.role,
            "expiresAt": self.expires.map(|at| at.to_string()),
            "limits": {
                "sessions": self.sessions, "turns": self.turns, "promptsPerMinute": self.prompts_per_minute,
            },
        })
    }
}

pub(crate) fn run(arguments: TokenArgs) -> Result<ExitCode, CommandError> {
    let json = arguments.server.json;
    arguments.server.with_client(async move |client| {
        match arguments.action {
            Action::Create(arguments) => create(&client, arguments, json).await?,
            Action::List { tenant } => {
                let read = async |cursor| client.tokens(&json!({"installationId": tenant, "cursor": cursor})).await;
                print_pages(json, row, read).await?;
            }
            Action::Revoke { token_id } => show(&client.revoke_token(&token_id).await?, json)?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn create(client: &ApiClient, arguments: CreateArgs, json: bool) -> Result<(), CommandError> {
    let made = client.create_token(&arguments.body()).await?;
    if json { print_json(&made) } else { print(&clean_line(made["token"].as_str().unwrap_or_default())) }
}

/// One line of a list.
fn row(token: &Value) -> String {
    let text = |name: &str| token[name].as_str().unwrap_or_default();
    let scope: Vec<_> =
        ["installationId", "workspaceId", "userId"].into_iter().map(text).filter(|it| !it.is_empty()).collect();
    let scope = if scope.is_empty() { "all tenants".to_owned() } else { scope.join("/") };
    let end = match (text("revokedAt"), text("expiresAt")) {
        ("", "") => "does not expire".to_owned(),
        ("", at) => format!("expires {at}"),
        (at, _) => format!("revoked {at}"),
    };
    let used = match text("lastUsedAt") {
        "" => "never used".to_owned(),
        at => format!("used {at}"),
    };
    clean_line(&format!("{}  {}  {}  {scope}  {end}  {used}", text("tokenId"), text("role"), text("subject")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_line_with_its_scope_and_end() {
        let mut token = json!({"tokenId": "t", "role": "user", "subject": "ann", "installationId": "acme"});
        assert_eq!(row(&token), "t  user  ann  acme  does not expire  never used");
        token["expiresAt"] = json!("later");
        token["lastUsedAt"] = json!("today");
        token["workspaceId"] = json!("web");
        assert_eq!(row(&token), "t  user  ann  acme/web  expires later  used today");
        token["revokedAt"] = json!("now");
        assert_eq!(row(&token), "t  user  ann  acme/web  revoked now  used today");
    }

    #[test]
    fn token_expires_at_a_time_or_after_a_duration() {
        assert_eq!(expiry("2027-06-01T00:00:00Z"), Ok(Timestamp::parse("2027-06-01T00:00:00Z").unwrap()));
        let (now, day) = (SystemClock.now(), std::time::Duration::from_secs(24 * 3600));
        assert!(
            expiry("1d").is_ok_and(|at| at >= now.plus(day)) && expiry("24h").is_ok_and(|at| at >= now.plus(day))
        );
        assert!(expiry("soon").is_err() && expiry("d").is_err() && expiry("99999999999999999999d").is_err());
    }
}
