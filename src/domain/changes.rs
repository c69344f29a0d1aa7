//! Administrative changes, as the audit keeps them: settings of tenants, blocked repositories, tokens.

use serde_json::{Map, Value};

use super::words::words;

words! {
    /// Kind of an administrative change.
    ChangeKind {
        /// Limits, ceilings and automation of a tenant.
        TenantSettings = "tenantSettings",
        /// Route defaults of a tenant, and the repositories that automation must not touch.
        TenantProtocol = "tenantProtocol",
        TokenCreated = "tokenCreated",
        TokenRevoked = "tokenRevoked",
    }
}

/// Entries of a list that are kept; one last text counts the others. Ceilings may have a thousand patterns.
const MAX_ENTRIES: usize = 100;

/// The members of two states that differ, at any depth. A member that one state lacks is null in it.
pub(crate) fn difference(before: &Value, after: &Value) -> (Value, Value) {
    let (Value::Object(old), Value::Object(new)) = (before, after) else {
        return (shortened(before), shortened(after));
    };
    let (mut earlier, mut later) = (Map::new(), Map::new());
    for name in old.keys().chain(new.keys().filter(|name| !old.contains_key(*name))) {
        let member = |of: &Map<String, Value>| of.get(name).cloned().unwrap_or_default();
        let (one, other) = (member(old), member(new));
        if one != other {
            let (one, other) = difference(&one, &other);
            earlier.insert(name.clone(), one);
            later.insert(name.clone(), other);
        }
    }
    (Value::Object(earlier), Value::Object(later))
}

fn shortened(value: &Value) -> Value {
    match value {
        Value::Array(entries) if entries.len() > MAX_ENTRIES => {
            let rest = Value::from(format!("and {} more", entries.len() - MAX_ENTRIES));
            entries[..MAX_ENTRIES].iter().cloned().chain([rest]).collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn difference_has_only_the_members_that_changed() {
        let before = json!({"limits": {"sessions": 1, "turns": 2}, "ceilings": {"agents": null}, "same": [1]});
        let after = json!({"limits": {"sessions": 3, "turns": 2}, "ceilings": {"agents": ["a"]}, "same": [1]});
        assert_eq!(
            difference(&before, &after),
            (
                json!({"limits": {"sessions": 1}, "ceilings": {"agents": null}}),
                json!({"limits": {"sessions": 3}, "ceilings": {"agents": ["a"]}})
            )
        );
        assert_eq!(difference(&after, &after), (json!({}), json!({})));
        assert_eq!(
            difference(&json!({"a": 1}), &json!({"b": 2})),
            (json!({"a": 1, "b": null}), json!({"a": null, "b": 2}))
        );
        assert_eq!(difference(&Value::Null, &json!({"b": 2})), (Value::Null, json!({"b": 2})));
    }

    #[test]
    fn long_lists_are_shortened() {
        let many: Value = (0..1000).collect();
        let (_, after) = difference(&json!({"a": []}), &json!({"a": many}));
        assert_eq!(after["a"].as_array().map(Vec::len), Some(101));
        assert_eq!(after["a"][100], "and 900 more");
    }
}
