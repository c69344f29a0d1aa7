//! LumiLink
pub mod acp;
pub mod client;
pub mod commands;
pub mod config;
pub mod contract;
pub mod domain;
pub mod telemetry;
pub mod transport;
