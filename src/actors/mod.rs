//! Thin shells over `domain/`: they hold state, carry messages and own timers.
//!
//! Invariant: actors do not import each other, they import [`messages`] and hold recipients; only parent →
//! child is an import (workspaces → workspace_supervisor → session). A session never heals itself: its
//! supervisor starts it again, and [`keeper`] the parts that there is one of, by the same rule.

pub mod expiry;
pub mod flip_record;
pub mod handles;
pub mod live_child;
pub mod migrations;
pub mod notifications;
pub mod route_probe;
pub mod routing;
pub mod services;
pub mod session;
pub mod session_end;
pub mod skip_record;
pub mod toast_wakes;
pub mod turn_log;
pub mod upkeep;
pub mod workspace_pace;
pub mod workspaces;
