//! Notifications: their texts, their streams and cursors, and how operators' webhooks are retried.

pub(crate) mod notice;
pub(crate) mod notification;
pub(crate) mod reading;
pub(crate) mod subscription;
pub(crate) mod webhook;
