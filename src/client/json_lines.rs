//! Output for scripts: one JSON object per line.

use serde::Serialize;
use serde_json::{Value, json};

use super::{clean::escape_json, stream::TurnEvent};

/// One line without its end. Characters that a terminal would act on are escaped.
pub(crate) fn json_line(value: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(escape_json(&serde_json::to_string(value)?))
}

/// An event as an object with a `type`.
pub(crate) fn event_object(event: &TurnEvent) -> Result<Value, serde_json::Error> {
    Ok(match event {
        TurnEvent::Accepted(accepted) => {
            let mut object = serde_json::to_value(accepted)?;
            object["type"] = "accepted".into();
            object
        }
        TurnEvent::Happened(happened) => serde_json::to_value(happened)?,
        TurnEvent::Result(result) => json!({"type": "result", "result": result}),
        TurnEvent::Problem(problem) => json!({"type": "problem", "problem": problem}),
    })
}
