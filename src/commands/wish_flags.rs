//! The flags of commands that change something in somebody's name.

use clap::Args;
use serde_json::{Value, json};

/// Who wants something, and why.
#[derive(Debug, Args)]
pub struct Wish {
    /// Who wants it.
    #[arg(long, value_name = "NAME")]
    actor: String,
    /// Why.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// In the name of a user, not of an operator.
    #[arg(long)]
    as_user: bool,
}

impl Wish {
    /// The members of a request.
    pub fn body(self) -> Value {
        let initiator = if self.as_user { "user" } else { "operator" };
        json!({"actor": self.actor, "reason": self.reason, "initiatedBy": initiator})
    }

    /// The same with one more.
    pub fn with(self, name: &str, value: Value) -> Value {
        let mut body = self.body();
        body[name] = value;
        body
    }
}
