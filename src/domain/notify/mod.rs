//! Notifications: their texts, their streams and cursors, and how operators' webhooks are retried.

pub mod notice;
pub mod reading;
pub mod subscription;
pub mod toast;
pub mod webhook;
