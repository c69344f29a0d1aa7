//! Thin shells over `domain/`: they hold state, carry messages and own timers.
//!
//! Invariant: actors do not import each other, they import [`messages`] and hold recipients; only parent →
//! child is an import (workspaces → workspace_supervisor → session). A session never heals itself: its
//! supervisor starts it again, and [`keeper`] the parts that there is one of, by the same rule.

pub mod adoption;
pub mod capacity_guard;
pub mod capacity_watch;
pub mod event_feed;
pub mod expiry;
pub mod flip_record;
pub mod handshake_record;
pub mod keeper;
pub mod live_child;
pub mod liveness;
pub mod messages;
pub mod migrations;
pub mod notifications;
pub mod parts;
pub mod permission_desk;
pub mod protocol_router;
pub mod retention;
pub mod route_gate;
pub mod route_probe;
pub mod session;
pub mod session_end;
pub mod session_index;
pub mod session_shared;
pub mod session_telemetry;
pub mod skip_record;
pub mod storm;
pub mod success_window;
#[cfg(test)]
mod supervision_tests;
pub mod telling;
pub mod tenant_protocol;
pub mod toast_hub;
pub mod toast_pipe;
pub mod toast_wakes;
pub mod turn_automation;
pub mod turn_log;
pub mod turn_ticket;
#[cfg(test)]
mod turn_ticket_tests;
pub mod webhooks;
pub mod workspace_folders;
pub mod workspace_pace;
pub mod workspace_routing;
pub mod workspace_supervisor;
pub mod workspaces;
