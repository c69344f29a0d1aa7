//! The effective configuration as TOML, with the source of each value beside it and every secret hidden.

use std::fmt::Write;

use secrecy::ExposeSecret;
use serde_json::{Map, Value};

use super::{
    error::Origin,
    layers::is_secret,
    load::Loaded,
    sections::{HIDDEN, sqlite_path},
};

/// Sections that are part of another one.
const SECTIONS_BELOW: [&str; 1] = ["github.triggers"];

/// Renders the configuration. Secrets are hidden, so a configuration with secrets cannot be loaded from the output.
pub(crate) fn render(loaded: &Loaded) -> String {
    let mut out = String::new();
    let data_dir = loaded.data_dir.display();
    let _ = writeln!(out, "# data folder: {data_dir}  ({})", loaded.data_dir_origin);
    // A struct always serialises to an object.
    if let Ok(Value::Object(sections)) = serde_json::to_value(&loaded.config) {
        for (name, section) in &sections {
            match (name.as_str(), section) {
                ("agents" | "secrets", Value::Object(named)) => {
                    for (below, settings) in named {
                        render_section(&mut out, loaded, &format!("{name}.{below}"), settings);
                    }
                }
                _ => render_section(&mut out, loaded, name, section),
            }
        }
    }
    out
}

fn render_section(out: &mut String, loaded: &Loaded, section: &str, settings: &Value) {
    let Value::Object(settings) = settings else { return };
    let _ = write!(out, "\n[{section}]\n");
    let is_below = |key: &str| SECTIONS_BELOW.contains(&format!("{section}.{key}").as_str());
    for (key, value) in settings.iter().filter(|(key, _)| !is_below(key)) {
        let setting = format!("{section}.{key}");
        let origin = origin_of(loaded, &setting, value);
        let _ = match shown(loaded, &setting, value) {
            Some(text) => writeln!(out, "{key} = {text}  # {origin}"),
            None => writeln!(out, "# {key} is not set  # {origin}"),
        };
    }
    for (key, value) in settings.iter().filter(|(key, _)| is_below(key)) {
        render_section(out, loaded, &format!("{section}.{key}"), value);
    }
}

/// The origin of a value; all origins of a table, because its entries may have different ones.
fn origin_of(loaded: &Loaded, setting: &str, value: &Value) -> String {
    if let Some(origin) = loaded.origins.get(setting) {
        return origin.to_string();
    }
    let mut origins: Vec<String> = match value {
        Value::Object(entries) => entries
            .keys()
            .filter_map(|name| loaded.origins.get(&format!("{setting}.{name}")))
            .map(Origin::to_string)
            .collect(),
        _ => Vec::new(),
    };
    origins.sort();
    origins.dedup();
    if origins.is_empty() { Origin::Default.to_string() } else { origins.join(", ") }
}

fn shown(loaded: &Loaded, setting: &str, value: &Value) -> Option<String> {
    if setting == "database.url" {
        let url = loaded.config.database.url.as_ref()?.expose_secret();
        return Some(toml_text(&database_shown(url)));
    }
    if setting == "webhook.url" {
        // Path and query may be secrets.
        return loaded.config.webhook.endpoint().map(|origin| toml_text(&format!("{origin}/{HIDDEN}")));
    }
    match value {
        Value::Null => None,
        // Secret types hide themselves when serialised; this also covers a setting of a plain type.
        Value::String(_) if is_secret(setting) => Some(toml_text(HIDDEN)),
        other => Some(toml_value(other)),
    }
}

/// The address without password and options, which may contain one too.
fn database_shown(url: &str) -> String {
    if sqlite_path(url).is_some() {
        return url.to_owned();
    }
    match url::Url::parse(url) {
        Ok(mut parsed) => {
            if parsed.password().is_some() && parsed.set_password(Some("hidden")).is_err() {
                return HIDDEN.to_owned();
            }
            if parsed.query().is_some() {
                parsed.set_query(Some("hidden"));
            }
            parsed.to_string()
        }
        Err(_) => HIDDEN.to_owned(),
    }
}

fn toml_text(text: &str) -> String {
    toml::Value::from(text).to_string()
}

pub(crate) fn toml_value(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(toml_value).collect::<Vec<_>>().join(", ")),
        Value::Object(entries) => toml_table(entries),
        Value::String(text) => toml_text(text),
        other => other.to_string(),
    }
}

fn toml_table(entries: &Map<String, Value>) -> String {
    let entries: Vec<_> =
        entries.iter().map(|(name, value)| format!("{} = {}", toml_text(name), toml_value(value))).collect();
    if entries.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", entries.join(", ")) }
}
