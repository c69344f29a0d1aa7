//! Thin shells over `domain/`: they hold state, carry messages and own timers.
//!
//! Invariant: actors do not import each other; they import [`handles::messages`] and hold recipients. Only parent →
//! child is an import (workspaces → supervisor → session). A session never restarts itself: its supervisor does, and
//! [`upkeep::keeper`] restarts singleton actors by the same rule.
//!
//! # Who talks to whom
//!
//! `send` waits for room in the receiver's mailbox, whose capacity is listed once per receiver. "Own slot" is a sender
//! that one turn or one guard owns: actix always accepts one message from each sender, so that sender never waits.
//!
//! | sender | message | receiver (mailbox) | reply | when full |
//! |---|---|---|---|---|
//! | http | `RunPrompt` | session (16) | once the turn is on disk: accepted, joined, ended, or refused | the caller waits |
//! | http | `CancelTurn` | session | once the request is on disk, or after 1 s: `true` if a turn was running | the caller waits |
//! | http | `AnswerPermission` | session | once the agent has the answer, or an error | the caller waits |
//! | http | `ChangeSetting` | session | the agent's answer | the caller waits |
//! | workspaces | `ChangeServers` | session | once a fresh agent has the servers; at once while the agent works | the caller waits |
//! | supervisor | `EndSession` | session | none; `SessionEnded` follows | a task waits |
//! | supervisor | `Probe` | session | empty; a missing reply means that the session is stuck | waits; the wait counts as silence |
//! | session's guard | `SessionEnded` | supervisor (64) | none | own slot |
//! | workspaces | `StartSession` | supervisor | the agent's facts, or an error | the caller waits |
//! | workspaces | `CloseSession` | supervisor | once the agent is released and the row says `closed`, or an error | the caller waits |
//! | workspaces | `DrainSessions` | supervisor | once every session has ended | the caller waits |
//! | supervisor | `Proven` | itself | none | a task waits |
//! | turn ticket, session | `OutcomeObserved` | success window (64) | none | own slot |
//! | success window | `WindowBreached` | protocol router (64) | once the verdict is on disk | a task waits |
//! | success window | `TurnObserved` | protocol router | none | a task waits |
//! | routing | `StopRouting` | success window, protocol router | none; the actor stops | own slot; an erasure waits |
//! | http | `ReadWindow` | success window | its figures | the caller waits |
//! | http | `ReadRoute` | protocol router | the route | the caller waits |
//! | migrations | `ProbeRoute` | protocol router | once the handshake ended | the caller waits |
//! | http, migrations | `ChangeRoute` | protocol router | once the change is on disk | the caller waits |
//! | store's writer | `StreamGrew` | notification hub (1,024) | none | a stream, which merges pending wake-ups |
//! | notification socket | `Subscribe` | notification hub | joined or behind | the socket waits |
//! | app | `CloseSubscribers` | notification hub | once every subscriber is disconnected | the caller waits |
//!
//! Each `MAILBOX` constant documents the reason for its number. All other shared state is a handle in [`handles`] and
//! costs no hop.

pub(crate) mod automation;
pub(crate) mod erasure;
pub(crate) mod handles;
pub(crate) mod migrations;
pub(crate) mod notifications;
pub(crate) mod routing;
pub(crate) mod services;
pub(crate) mod session;
pub(crate) mod triggers;
pub(crate) mod upkeep;
pub(crate) mod workspaces;
