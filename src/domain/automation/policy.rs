//! The policy of automation, which the configuration sets for all tenants, and a tenant for itself.

use serde::{Deserialize, Serialize};

use super::{
    branch::check_template,
    order::DEFAULT_LABELS,
    plan::Protection,
    wanted::{MAX_LABEL_CHARS, MAX_LABELS},
};
use crate::domain::text;

/// The most installations of a tenant.
pub(crate) const MAX_INSTALLATIONS: usize = 100;
/// The largest id of an installation: JSON numbers are exact up to it everywhere.
pub(crate) const MAX_INSTALLATION: u64 = (1 << 53) - 1;
/// The most assignees of an issue at GitHub.
pub(crate) const MAX_ASSIGNEES: usize = 10;
/// The most reviewers of a pull request at GitHub.
pub(crate) const MAX_REVIEWERS: usize = 15;
/// The longest login of a user or team at GitHub, in characters.
pub(crate) const MAX_LOGIN_CHARS: usize = 100;
/// The longest template of names of branches, in characters.
pub(crate) const MAX_TEMPLATE_CHARS: usize = 200;
/// The most patterns of protected paths.
pub(crate) const MAX_PROTECTED_PATHS: usize = 200;
/// The longest pattern of protected paths, in characters.
pub(crate) const MAX_PROTECTED_CHARS: usize = 255;

/// The policy of the runs of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    /// True to open pull requests as drafts.
    pub is_draft: bool,
    /// Labels of issues and pull requests.
    pub labels: Vec<String>,
    pub assignees: Vec<String>,
    /// Logins of people, and teams as `owner/team`.
    pub reviewers: Vec<String>,
    /// As [`NewBranch::template`](super::branch::NewBranch::template).
    pub branch_template: String,
    /// As [`Plan::protected_paths`](super::plan::Plan::protected_paths).
    pub protected_paths: Vec<String>,
    pub protection: Protection,
}

/// A tenant's settings of automation; `None` for the value of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct AutomationSettings {
    /// Installations of the GitHub App whose repositories runs of the tenant may use. Without one the App is not used.
    pub installations: Vec<u64>,
    pub draft: Option<bool>,
    pub labels: Option<Vec<String>>,
    pub assignees: Option<Vec<String>>,
    pub reviewers: Option<Vec<String>>,
    pub branch_template: Option<String>,
    pub protected_paths: Option<Vec<String>>,
    pub protection: Option<Protection>,
}

impl AutomationSettings {
    /// True if an administrator bound the installation to the tenant.
    pub(crate) fn binds(&self, installation: u64) -> bool {
        self.installations.contains(&installation)
    }

    /// The policy of the tenant, with `defaults` for what it does not set.
    pub(crate) fn over(&self, defaults: Policy) -> Policy {
        let of = self.clone();
        Policy {
            is_draft: of.draft.unwrap_or(defaults.is_draft),
            labels: of.labels.unwrap_or(defaults.labels),
            assignees: of.assignees.unwrap_or(defaults.assignees),
            reviewers: of.reviewers.unwrap_or(defaults.reviewers),
            branch_template: of.branch_template.unwrap_or(defaults.branch_template),
            protected_paths: of.protected_paths.unwrap_or(defaults.protected_paths),
            protection: of.protection.unwrap_or(defaults.protection),
        }
    }

    /// Checks settings that a caller gives.
    ///
    /// # Errors
    /// The member and what it must be.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self { installations, labels, assignees, reviewers, branch_template, protected_paths, .. } = self;
        let is_id = |id: &u64| (1..=MAX_INSTALLATION).contains(id);
        if installations.len() > MAX_INSTALLATIONS || !installations.iter().all(is_id) {
            return Err(format!(
                "automation.installations: at most {MAX_INSTALLATIONS} ids of 1 to {MAX_INSTALLATION}"
            ));
        }
        let all = |list: &Option<Vec<String>>, most: usize, fits: &dyn Fn(&str) -> bool| {
            list.as_ref().is_none_or(|list| list.len() <= most && list.iter().all(|entry| fits(entry)))
        };
        if !all(labels, MAX_LABELS, &is_label) {
            return Err(format!(
                "automation.labels: at most {MAX_LABELS} texts of 1 to {MAX_LABEL_CHARS} characters on one line"
            ));
        }
        if !all(assignees, MAX_ASSIGNEES, &is_login) {
            return Err(format!("automation.assignees: at most {MAX_ASSIGNEES} logins"));
        }
        if !all(reviewers, MAX_REVIEWERS, &is_reviewer) {
            return Err(format!("automation.reviewers: at most {MAX_REVIEWERS} logins, or teams such as owner/team"));
        }
        if let Some(why) = branch_template.as_deref().and_then(problem_of_template) {
            return Err(format!("automation.branchTemplate: {why}"));
        }
        match protected_paths.as_deref().and_then(problem_of_protected) {
            Some(why) => Err(format!("automation.protectedPaths: {why}")),
            None => Ok(()),
        }
    }
}

/// The labels of issues and pull requests unless others are set.
pub(crate) fn default_labels() -> Vec<String> {
    DEFAULT_LABELS.map(String::from).to_vec()
}

/// The problem of a template of names of branches.
pub(crate) fn problem_of_template(template: &str) -> Option<String> {
    if template.chars().count() > MAX_TEMPLATE_CHARS {
        return Some(format!("must have at most {MAX_TEMPLATE_CHARS} characters"));
    }
    check_template(template).err().map(|cause| cause.to_string())
}

/// The problem of a list of patterns of protected paths.
pub(crate) fn problem_of_protected(patterns: &[String]) -> Option<String> {
    let is_pattern = |pattern: &String| {
        (1..=MAX_PROTECTED_CHARS).contains(&pattern.chars().count()) && !pattern.contains(char::is_control)
    };
    let fits = patterns.len() <= MAX_PROTECTED_PATHS && patterns.iter().all(is_pattern);
    (!fits).then(|| {
        format!("must be at most {MAX_PROTECTED_PATHS} patterns of 1 to {MAX_PROTECTED_CHARS} printable characters")
    })
}

fn is_label(label: &str) -> bool {
    (1..=MAX_LABEL_CHARS).contains(&label.chars().count()) && text::one_line(label) == label
}

/// True for the login of a person or a bot.
fn is_login(login: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.[]".contains(&byte);
    (1..=MAX_LOGIN_CHARS).contains(&login.len()) && login.bytes().all(is_part)
}

fn is_reviewer(name: &str) -> bool {
    match name.split_once('/') {
        Some((owner, team)) => is_login(owner) && is_login(team),
        None => is_login(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Policy {
        Policy {
            is_draft: true,
            labels: default_labels(),
            assignees: Vec::new(),
            reviewers: Vec::new(),
            branch_template: "claude-code/".into(),
            protected_paths: vec![".github/".into()],
            protection: Protection::Draft,
        }
    }

    #[test]
    fn tenant_policy_replaces_the_members_that_it_sets() {
        assert_eq!(AutomationSettings::default().over(defaults()), defaults());
        let of = AutomationSettings {
            draft: Some(false),
            protected_paths: Some(Vec::new()),
            protection: Some(Protection::Refuse),
            ..AutomationSettings::default()
        };
        let expected =
            Policy { is_draft: false, protected_paths: Vec::new(), protection: Protection::Refuse, ..defaults() };
        assert_eq!(of.over(defaults()), expected);
    }

    #[test]
    fn malformed_policy_is_rejected_by_name() {
        let of = |change: fn(&mut AutomationSettings)| {
            let mut settings = AutomationSettings::default();
            change(&mut settings);
            settings.check().err().unwrap_or_default()
        };
        let some = |text: &str| Some(vec![text.to_owned()]);
        assert_eq!(of(|_| ()), "");
        assert!(of(|it| it.installations = vec![0]).starts_with("automation.installations"));
        assert!(of(|it| it.installations = (1..=101).collect()).starts_with("automation.installations"));
        for bad in ["", "a\nb", &"a".repeat(51)] {
            let settings = AutomationSettings { labels: some(bad), ..AutomationSettings::default() };
            assert!(settings.check().unwrap_err().starts_with("automation.labels"), "{bad:?}");
        }
        for bad in ["", "a b", "@octocat", "a/b"] {
            let settings = AutomationSettings { assignees: some(bad), ..AutomationSettings::default() };
            assert!(settings.check().unwrap_err().starts_with("automation.assignees"), "{bad:?}");
        }
        for (name, is_good) in [("octo/core", true), ("lumi[bot]", true), ("a/b/c", false), ("/a", false)] {
            let settings = AutomationSettings { reviewers: some(name), ..AutomationSettings::default() };
            assert_eq!(settings.check().is_ok(), is_good, "{name}");
        }
        assert!(of(|it| it.branch_template = Some("{session}".into())).starts_with("automation.branchTemplate"));
        assert!(of(|it| it.branch_template = Some("a..b/".into())).starts_with("automation.branchTemplate"));
        assert_eq!(of(|it| it.branch_template = Some("bots/{name}".into())), "");
        assert!(of(|it| it.protected_paths = Some(vec![String::new()])).starts_with("automation.protectedPaths"));
    }
}
