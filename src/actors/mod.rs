//! Thin shells over `domain/`: they hold state, carry messages and own timers.
//!
//! Invariant: actors do not import each other, they import [`messages`] and hold recipients; only parent →
//! child is an import (workspaces → workspace_supervisor → session). A session never heals itself: its
//! supervisor starts it again, and [`keeper`] the parts that there is one of, by the same rule.

pub(crate) mod handles;
pub(crate) mod migrations;
pub(crate) mod notifications;
pub(crate) mod routing;
pub(crate) mod services;
pub(crate) mod session;
pub(crate) mod upkeep;
pub(crate) mod workspaces;
