//! The part of the tour in which a workspace falls back to HTTP and comes back.

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use super::{STEP, Tour, check, failed, say};
use crate::{
    app::AppError,
    client::{ApiClient, NewSession, clean::clean_line},
    contract::result::ACPSessionResult,
};

/// Crashes after which the workspace has to be rolled back; with the demo's settings two are enough.
const MOST_CRASHES: usize = 6;
/// Turns after which it has to be restored; with the demo's settings three are enough.
const MOST_TURNS: usize = 12;

/// Lets an agent crash until its workspace is rolled back, continues over the fallback, and on until ACP is restored.
pub(super) async fn show(client: &ApiClient) -> Result<(), AppError> {
    say("5. Crash the agent repeatedly: its workspace falls back to HTTP and is restored.");
    let workspace = format!("fallback-{}", Uuid::new_v4().simple());
    let request =
        NewSession { workspace_id: workspace.clone(), installation_id: Some("demo".into()), ..NewSession::default() };
    let opened = client.new_session(&request).await.map_err(failed("new session"))?;
    let tour = Tour { client: client.clone(), session: opened.session_id };
    tour.turn("echo the word is maple", false).await?;
    for _ in 0..MOST_CRASHES {
        tour.turn("crash", false).await?;
        if tour.falls_back(&workspace).await? {
            break;
        }
    }
    let route = tour.route(&workspace).await?;
    check(route["route"] == "http", "the workspace did not fall back")?;
    say(&format!("   rolled back: {}", text(&route["rollback"]["reason"])));
    let result = tour.turn("context", false).await?;
    check(carrier(&result) == "http", "the fallback did not carry the turn")?;
    check(message(&result).contains("maple"), "the fallback did not know the conversation")?;

    tour.wait_for(&workspace, "a probe", |route| route["recovery"]["stage"] == "recovering").await?;
    say("   the cool-down is over and a probe succeeded; every other turn is now a canary over ACP");
    for _ in 0..MOST_TURNS {
        tour.turn("echo still here", false).await?;
        if tour.route(&workspace).await?["route"] == "acp" {
            break;
        }
    }
    let route = tour.wait_for(&workspace, "the restore", |route| route["route"] == "acp").await?;
    say(&format!("   restored in epoch {}; `lumilink session explain` shows the whole story:", route["epoch"]));
    let story = client.explain(&tour.session).await.map_err(failed("explain"))?;
    say(&format!("   {}", text(&story["answer"])));
    for entry in story["timeline"].as_array().into_iter().flatten() {
        say(&format!("   {}  {}", text(&entry["at"]), text(&entry["summary"])));
    }
    say("");
    client.close(&tour.session).await.map_err(failed("close"))
}

fn text(value: &Value) -> String {
    clean_line(value.as_str().unwrap_or_default())
}

fn carrier(result: &ACPSessionResult) -> &str {
    result.meta.as_ref().map_or("", |meta| &meta.protocol)
}

fn message(result: &ACPSessionResult) -> &str {
    result.meta.as_ref().map_or("", |meta| &meta.message)
}

impl Tour {
    async fn route(&self, workspace: &str) -> Result<Value, AppError> {
        self.client.protocol(workspace, Some("demo")).await.map_err(failed("protocol"))
    }

    /// Waits until the fresh agent is there; whether the workspace was rolled back by then.
    async fn falls_back(&self, workspace: &str) -> Result<bool, AppError> {
        let looking = async {
            let mut look = tokio::time::interval(Duration::from_millis(20));
            loop {
                look.tick().await;
                let session = self.client.session(&self.session).await.map_err(failed("session"))?;
                if session["state"] == "idle" {
                    return Ok(self.route(workspace).await?["route"] == "http");
                }
            }
        };
        let limit = tokio::time::timeout(STEP, looking);
        limit.await.map_err(|_| AppError::Demo("the session did not come back".into()))?
    }

    async fn wait_for(&self, workspace: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value, AppError> {
        let looking = async {
            let mut look = tokio::time::interval(Duration::from_millis(50));
            loop {
                look.tick().await;
                let route = self.route(workspace).await?;
                if holds(&route) {
                    return Ok(route);
                }
            }
        };
        let limit = tokio::time::timeout(STEP, looking);
        limit.await.map_err(|_| AppError::Demo(format!("timed out waiting for {what}")))?
    }
}
