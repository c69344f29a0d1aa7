//! Frames of the server, as far as a subscriber reads them: unknown members and types are ignored.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// A notification, in a frame and in the inbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReceivedNotification {
    pub id: Uuid,
    /// Number in its stream.
    pub seq: u64,
    /// All other members.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A frame of the server.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub(crate) enum Incoming {
    Welcome {
        epoch: String,
        cursor: u64,
        #[serde(default)]
        unread: u64,
    },
    #[serde(rename = "toast")]
    Notification(ReceivedNotification),
    Telemetry(Map<String, Value>),
    Gap {
        telemetry: u64,
    },
    Reset {
        reason: String,
        epoch: String,
        cursor: u64,
    },
    Pong {
        cursor: u64,
    },
    Bye {
        code: u16,
        reason: String,
    },
    /// A frame that is not needed, or of a later version.
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::contract::notifications::frames::ServerFrame;

    #[test]
    fn frames_of_the_contract_are_read_and_unknown_ones_ignored() {
        let id = Uuid::from_u128(7);
        let notification = json!({"type": "toast", "id": id, "seq": 4, "title": "t", "body": "b", "severity": "info",
            "trigger": "capacity", "autoDismissMs": 10_000, "causeId": "c", "createdAt": "2026-01-01T00:00:00Z"});
        for (frame, is_known) in [
            (json!({"type": "welcome", "version": 1, "epoch": "e", "cursor": 1, "head": 2, "unread": 3}), true),
            (notification.clone(), true),
            (json!({"type": "gap", "telemetry": 3}), true),
            (json!({"type": "reset", "reason": "tooOld", "epoch": "e", "cursor": 9}), true),
            (json!({"type": "ack", "id": id, "found": true, "unread": 0}), false),
            (json!({"type": "pong", "cursor": 3}), true),
            (json!({"type": "bye", "code": 4008, "reason": "r", "cursor": 3}), true),
        ] {
            serde_json::from_value::<ServerFrame>(frame.clone()).unwrap();
            let mut later = frame.clone();
            later["later"] = json!({"than": "this"});
            for frame in [frame, later] {
                let read: Incoming = serde_json::from_value(frame).unwrap();
                assert_eq!(read != Incoming::Other, is_known, "{read:?}");
            }
        }
        let read: Incoming = serde_json::from_value(json!({"type": "fireworks", "at": "midnight"})).unwrap();
        assert_eq!(read, Incoming::Other);
        let Incoming::Notification(read) = serde_json::from_value(notification.clone()).unwrap() else {
            panic!("no notification")
        };
        let mut without_type = notification;
        without_type.as_object_mut().unwrap().remove("type");
        assert_eq!(serde_json::to_value(&read).unwrap(), without_type, "no member is lost");
        assert!(serde_json::from_value::<Incoming>(json!({"type": "toast", "id": "no id", "seq": 1})).is_err());
    }
}
