use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::flags::{CommandError, ServerFlags, print_pages, show};
use crate::client::clean::clean_line;

#[derive(Debug, Args)]
pub(crate) struct WebhookArgs {
    #[command(flatten)]
    server: ServerFlags,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lists deliveries, the newest first.
    List {
        /// Only deliveries in this state: pending, delivered or dead.
        #[arg(long, value_name = "STATE")]
        state: Option<String>,
    },
    /// Posts a delivery again, or all deliveries that were given up.
    Replay(ReplayArgs),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct ReplayArgs {
    /// Id of the delivery.
    delivery: Option<String>,
    /// All deliveries that were given up.
    #[arg(long)]
    dead: bool,
}

pub(crate) fn run(arguments: WebhookArgs) -> Result<ExitCode, CommandError> {
    let json = arguments.server.json;
    arguments.server.with_client(async move |client| {
        match arguments.action {
            Action::List { state } => {
                let read = async |cursor| client.webhook_deliveries(&json!({"state": state, "cursor": cursor})).await;
                print_pages(json, row, read).await?;
            }
            Action::Replay(ReplayArgs { delivery: Some(id), .. }) => show(&client.replay_delivery(&id).await?, json)?,
            Action::Replay(_) => show(&client.replay_dead_deliveries().await?, json)?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// One line of a list.
fn row(delivery: &Value) -> String {
    let text = |name: &str| delivery[name].as_str().unwrap_or_default();
    let last = match (&delivery["lastStatus"], text("lastError")) {
        (Value::Null, "") => String::new(),
        (Value::Null, error) => error.to_owned(),
        (status, _) => format!("status {status}"),
    };
    let line = format!(
        "{}  {}  {}  {} tries  {}  {last}",
        text("deliveryId"),
        text("state"),
        text("createdAt"),
        delivery["attempts"],
        text("endpoint"),
    );
    clean_line(&line).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_one_line() {
        let mut delivery = json!({"deliveryId": "d", "state": "dead", "createdAt": "t", "attempts": 3,
            "endpoint": "https://h", "lastStatus": 410});
        assert_eq!(row(&delivery), "d  dead  t  3 tries  https://h  status 410");
        delivery["lastStatus"] = Value::Null;
        assert_eq!(row(&delivery), "d  dead  t  3 tries  https://h");
        delivery["lastError"] = json!("no answer\nwithin 1 s");
        assert_eq!(row(&delivery), "d  dead  t  3 tries  https://h  no answer within 1 s");
    }
}
