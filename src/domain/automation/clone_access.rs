//! Failures of clones that a credential may cure, and the advice about them.

use super::{skip::SkipDetail, step::StepFailure};
use crate::domain::turn::outcome::{ErrorCode, Failure};

/// Texts that git and ssh print, in the locale C, when the host does not show a repository to a client without a credential, or
/// with one that does not reach it. A host answers alike for a private repository and for none.
const SIGNS: [&str; 8] = [
    "could not read Username",
    "could not read Password",
    "Authentication failed",
    "Repository not found",
    "The requested URL returned error: 401",
    "The requested URL returned error: 403",
    "The requested URL returned error: 404",
    "Permission denied (publickey",
];

/// True if the clone failed for lack of access to the repository.
pub(crate) fn is_lacking(failure: &Failure) -> bool {
    let is_not_found = failure.detail.contains("fatal: repository '") && failure.detail.contains("' not found");
    failure.code == ErrorCode::WorkspaceUnavailable
        && (is_not_found || SIGNS.iter().any(|sign| failure.detail.contains(sign)))
}

/// The failure of a clone without access, with the advice. `refusal` is the reason why the service's own credential does not
/// reach the repository; absent without such a credential.
pub(crate) fn with_advice(failure: Failure, refusal: Option<&StepFailure>) -> Failure {
    let advice = match refusal {
        None => "The repository may be private: give `githubToken`".to_owned(),
        Some(refusal) if refusal.skip == Some(SkipDetail::NoInstallation) => {
            let code = SkipDetail::NoInstallation.as_str();
            format!("The repository may be private ({code}): {}, or give `githubToken`", refusal.message)
        }
        Some(refusal) => format!("The GitHub App gave no token for it ({}): {}", refusal.code, refusal.message),
    };
    let detail = format!("{}. {advice}", failure.detail.trim_end_matches('.'));
    Failure::new(failure.code, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::automation::step::Remedy;

    fn failed(detail: &str) -> Failure {
        Failure::new(ErrorCode::WorkspaceUnavailable, detail)
    }

    #[test]
    fn only_a_clone_that_lacks_access_gets_a_credential() {
        for detail in [
            "git: fatal: could not read Username for 'https://github.com': terminal prompts disabled",
            "git: remote: Repository not found.\nfatal: repository 'https://github.com/a/b.git/' not found",
            "git: fatal: unable to access 'https://h/a/b.git/': The requested URL returned error: 403",
            "git: git@github.com: Permission denied (publickey).",
        ] {
            assert!(is_lacking(&failed(detail)), "{detail}");
        }
        for detail in [
            "git: fatal: Remote branch none not found in upstream origin",
            "git: did not finish within 300 s",
            "workspace: No space left on device",
        ] {
            assert!(!is_lacking(&failed(detail)), "{detail}");
        }
        assert!(!is_lacking(&Failure::new(ErrorCode::InvalidRequest, "Repository not found")));
    }

    #[test]
    fn advice_names_the_binding_or_the_token() {
        let none = with_advice(failed("git: no."), None);
        assert_eq!(none.detail, "git: no. The repository may be private: give `githubToken`");
        let refusal = |skip, code: &str| StepFailure {
            code: code.to_owned(),
            message: "Ask an administrator".to_owned(),
            skip,
            remedy: Remedy::Never,
            retry_at: None,
        };
        let unbound = with_advice(failed("git: no"), Some(&refusal(Some(SkipDetail::NoInstallation), "x")));
        assert!(unbound.detail.contains("(no-installation): Ask an administrator, or give"), "{}", unbound.detail);
        let other = with_advice(failed("git: no"), Some(&refusal(None, "github-unavailable")));
        assert!(other.detail.ends_with("(github-unavailable): Ask an administrator"), "{}", other.detail);
    }
}
