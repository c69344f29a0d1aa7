//! LumiLink
pub mod acp;
pub mod actors;
pub mod client;
pub mod commands;
pub mod config;
pub mod contract;
pub mod demo_agent;
pub mod domain;
pub mod http;
pub mod store;
pub mod telemetry;
pub mod transport;
