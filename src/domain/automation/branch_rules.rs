//! The rules of a repository for one branch, as GitHub lists them, and which of them refuse a push.

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use super::skip::SkipDetail;
use crate::domain::text::plain;

/// The longest part of a rule that a message shows, in characters.
const MAX_SHOWN: usize = 80;

/// Kind of the rule that demands signed commits.
pub(crate) const REQUIRED_SIGNATURES: &str = "required_signatures";

/// One rule of `GET /repos/{owner}/{repo}/rules/branches/{branch}`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct BranchRule {
    /// Kind of the rule, such as `creation`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The ruleset that contains the rule; an unknown form reads as `None`.
    pub ruleset_id: Value,
    /// Depends on the kind.
    pub parameters: Value,
}

/// A rule that refuses the push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Obstacle {
    pub detail: SkipDetail,
    /// A sentence without a full stop that names the rule.
    pub rule: String,
    /// The ruleset, which may exempt the holder of the token.
    pub ruleset: Option<u64>,
}

/// The rules that refuse a push of commits without signatures to `branch`, in their order. `exists` is true if the branch
/// exists. Rules about merges do not matter, and rules about the content of commits are left to the push.
pub(crate) fn obstacles(rules: &[BranchRule], branch: &str, exists: bool) -> Vec<Obstacle> {
    rules.iter().filter_map(|rule| obstacle(rule, branch, exists)).collect()
}

fn obstacle(rule: &BranchRule, branch: &str, exists: bool) -> Option<Obstacle> {
    let (detail, text) = match rule.kind.as_str() {
        "creation" if !exists => (SkipDetail::Ruleset, "a rule forbids the creation of this branch".to_owned()),
        "update" if exists => (SkipDetail::Ruleset, "a rule forbids updates of this branch".to_owned()),
        REQUIRED_SIGNATURES => (SkipDetail::SigningRequired, "a rule demands signed commits".to_owned()),
        "branch_name_pattern" if !exists && !is_permitted_name(&rule.parameters, branch) => {
            let word = |name: &str| plain(rule.parameters[name].as_str().unwrap_or_default(), MAX_SHOWN);
            let negation = if is_negated(&rule.parameters) { "not " } else { "" };
            let (operator, pattern) = (word("operator"), word("pattern"));
            (SkipDetail::Ruleset, format!("a rule demands that names of branches are {negation}{operator} {pattern}"))
        }
        _ => return None,
    };
    Some(Obstacle { detail, rule: text, ruleset: rule.ruleset_id.as_u64() })
}

fn is_negated(parameters: &Value) -> bool {
    parameters["negate"].as_bool().unwrap_or(false)
}

/// True if the name has the pattern. GitHub decides on patterns that this service cannot read.
fn is_permitted_name(parameters: &Value, branch: &str) -> bool {
    let Some(pattern) = parameters["pattern"].as_str() else { return true };
    let matches = match parameters["operator"].as_str() {
        Some("starts_with") => branch.starts_with(pattern),
        Some("ends_with") => branch.ends_with(pattern),
        Some("contains") => branch.contains(pattern),
        Some("regex") => match Regex::new(pattern) {
            Ok(regex) => regex.is_match(branch),
            Err(_) => return true,
        },
        _ => return true,
    };
    matches != is_negated(parameters)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(rules: Value, branch: &str, exists: bool) -> Vec<(SkipDetail, Option<u64>)> {
        let rules: Vec<BranchRule> = serde_json::from_value(rules).unwrap();
        obstacles(&rules, branch, exists).into_iter().map(|it| (it.detail, it.ruleset)).collect()
    }

    #[test]
    fn creation_rule_refuses_a_new_branch_and_update_rule_an_existing_one() {
        let rules = json!([
            {"type": "creation", "ruleset_source_type": "Repository", "ruleset_id": 42},
            {"type": "update", "parameters": {"update_allows_fetch_and_merge": true}, "ruleset_id": 43},
            {"type": "deletion"}, {"type": "non_fast_forward"}, {"type": "required_linear_history"}, {"type": "made-up"},
        ]);
        assert_eq!(found(rules.clone(), "a/b", false), [(SkipDetail::Ruleset, Some(42))]);
        assert_eq!(found(rules, "a/b", true), [(SkipDetail::Ruleset, Some(43))]);
        assert_eq!(
            found(json!([{"type": "creation", "ruleset_id": "x"}]), "a", false),
            [(SkipDetail::Ruleset, None)]
        );
    }

    #[test]
    fn signature_rule_refuses_unsigned_commits() {
        let rules = json!([{"type": "required_signatures"}, {"parameters": null}]);
        assert_eq!(found(rules, "a", true), [(SkipDetail::SigningRequired, None)]);
    }

    #[test]
    fn name_pattern_refuses_other_names_and_unreadable_patterns_are_left_to_the_push() {
        for (operator, pattern, negate, branch, refuses) in [
            ("starts_with", "feature/", false, "feature/x", false),
            ("starts_with", "feature/", false, "claude-code/x", true),
            ("starts_with", "feature/", true, "feature/x", true),
            ("ends_with", "-x", false, "a-x", false),
            ("contains", "bot", false, "a", true),
            ("regex", "^[a-z]+/\\d+$", false, "abc/12", false),
            ("regex", "^[a-z]+/\\d+$", false, "abc/x", true),
            ("regex", "(?=x)", false, "anything", false),
            ("looks_like", "x", false, "anything", false),
        ] {
            let parameters = json!({"operator": operator, "pattern": pattern, "negate": negate, "name": ""});
            let rules = json!([{"type": "branch_name_pattern", "parameters": parameters}]);
            assert_eq!(!found(rules, branch, false).is_empty(), refuses, "{operator} {pattern} {negate} {branch}");
        }
        let unknown = json!([{"type": "branch_name_pattern"}, {"type": "branch_name_pattern", "parameters": 7}]);
        assert!(found(unknown, "a", false).is_empty());
    }
}
