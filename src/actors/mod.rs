//! Thin shells over `domain/`: they hold state, carry messages and own timers.
//!
//! Invariant: actors do not import each other, they import [`messages`] and hold recipients; only parent →
//! child is an import (workspaces → workspace_supervisor → session). A session never heals itself: its
//! supervisor starts it again, and [`keeper`] the parts that there is one of, by the same rule.

pub mod handles;
pub mod migrations;
pub mod notifications;
pub mod routing;
pub mod services;
pub mod session;
pub mod upkeep;
pub mod workspaces;
