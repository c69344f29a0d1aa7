//! Signatures of commits: when one is made, and by whom.

use crate::domain::{text, words::words};

words! {
    /// When commits are signed.
    SigningMode {
        /// If a rule of the repository demands it.
        Auto = "auto",
        /// Always; a run that cannot sign is skipped.
        Always = "always",
        /// Never; a run whose branch demands it is skipped.
        Never = "never",
    }
}

words! {
    /// The signer of a commit.
    SigningWay {
        /// The service, with its SSH key.
        Key = "key",
        /// GitHub, which makes the commit itself.
        Api = "api",
    }
}

#[expect(clippy::derivable_impls, reason = "the list is made by a macro")]
impl Default for SigningMode {
    fn default() -> Self {
        Self::Auto
    }
}

/// The service's means to sign, as the configuration has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Signer {
    pub mode: SigningMode,
    /// True if there is an SSH key.
    pub has_key: bool,
}

/// The rules that demand a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    Nothing,
    /// The rules of the branch that a pull request proposes to change: the push succeeds, and the merge does not.
    OfBase,
    /// The rules of the branch that is pushed.
    OfBranch,
}

/// Everything that decides about a signature.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub signer: Signer,
    /// True for the token of an App.
    pub is_app: bool,
    /// As [`api_obstacle`].
    pub api_obstacle: Option<&'a str>,
}

impl Asked<'_> {
    /// The way in which a commit of this run can be signed.
    pub(crate) fn possible(&self) -> Option<SigningWay> {
        match (self.signer.mode, self.signer.has_key) {
            (SigningMode::Never, _) => None,
            (_, true) => Some(SigningWay::Key),
            (_, false) => (self.is_app && self.api_obstacle.is_none()).then_some(SigningWay::Api),
        }
    }

    /// The way in which the commit is signed; `None` if it is not. A commit that only the base of its pull request demands
    /// to be signed is pushed without a signature if it cannot have one: people can still merge it by a squash.
    ///
    /// # Errors
    /// The commit cannot be delivered, and advice, in two sentences.
    pub(crate) fn decide(&self, demand: Demand) -> Result<Option<SigningWay>, String> {
        let mode = self.signer.mode;
        let is_wanted = mode == SigningMode::Always || (mode == SigningMode::Auto && demand != Demand::Nothing);
        let is_needed = mode == SigningMode::Always || demand == Demand::OfBranch;
        match (self.possible().filter(|_| is_wanted), is_needed) {
            (None, true) => Err(self.advice(demand)),
            (way, _) => Ok(way),
        }
    }

    fn advice(&self, demand: Demand) -> String {
        let cause = match demand {
            Demand::OfBranch => "A rule demands signed commits",
            _ => "`github.signing` is `always`",
        };
        match (self.signer.mode, self.api_obstacle) {
            (SigningMode::Never, _) => format!("{cause}, and `github.signing` is `never`. Change one of them"),
            (_, Some(why)) if self.is_app => {
                format!("{cause}, and GitHub cannot make this commit: {why}. Set `github.signing_key_file`")
            }
            _ => format!("{cause}. Set `github.signing_key_file`, or use the GitHub App instead of a token"),
        }
    }
}

/// Mode of a regular file without the executable bit.
const REGULAR: u32 = 0o100_644;
/// The largest content of all files that GitHub makes a commit of, in bytes: a request has 4 bytes for 3 of them.
pub(crate) const MAX_API_BYTES: u64 = 10 * 1024 * 1024;
/// The most files of such a commit.
pub(crate) const MAX_API_FILES: usize = 1000;

/// The longest path in an obstacle, in characters.
const MAX_PATH_CHARS: usize = 100;

fn shown(path: &[u8]) -> String {
    text::plain(&String::from_utf8_lossy(path), MAX_PATH_CHARS)
}

/// A changed file of a commit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChangedFile<'a> {
    pub path: &'a [u8],
    /// Mode in the parent; `None` for a new file.
    pub old_mode: Option<u32>,
    /// `None` for a deleted file.
    pub mode: Option<u32>,
    pub bytes: u64,
}

/// Why GitHub cannot make a commit of these files by `createCommitOnBranch`, which writes regular files alone: a sentence
/// without a full stop. `None` if it can.
pub(crate) fn api_obstacle<'a>(files: impl Iterator<Item = ChangedFile<'a>>) -> Option<String> {
    let (mut count, mut bytes) = (0, 0);
    for file in files {
        (count, bytes) = (count + 1, bytes + file.bytes);
        let is_regular = file.mode.is_none_or(|mode| mode == REGULAR);
        let was_regular = file.mode.is_none() || file.old_mode.is_none_or(|mode| mode == REGULAR);
        if !is_regular || !was_regular {
            return Some(format!("{} is executable, or no regular file", shown(file.path)));
        }
        if std::str::from_utf8(file.path).is_err() {
            return Some(format!("the name {} is not UTF-8", shown(file.path)));
        }
    }
    if count > MAX_API_FILES {
        return Some(format!("it changes {count} files, more than {MAX_API_FILES}"));
    }
    (bytes > MAX_API_BYTES).then(|| format!("its files have {bytes} bytes, more than {MAX_API_BYTES}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXECUTABLE: u32 = 0o100_755;

    fn asked(mode: SigningMode, has_key: bool, is_app: bool, api_obstacle: Option<&str>) -> Asked<'_> {
        Asked { signer: Signer { mode, has_key }, is_app, api_obstacle }
    }

    #[test]
    fn commit_is_signed_by_the_key_else_by_github_and_only_where_a_rule_demands_it() {
        use Demand::{Nothing, OfBase, OfBranch};
        use SigningMode::{Always, Auto, Never};
        use SigningWay::{Api, Key};
        for (mode, has_key, is_app, obstacle, demand, way) in [
            (Auto, true, true, None, Nothing, Some(None)),
            (Auto, true, true, None, OfBranch, Some(Some(Key))),
            (Auto, false, true, None, OfBranch, Some(Some(Api))),
            (Auto, false, true, None, OfBase, Some(Some(Api))),
            (Auto, false, true, Some("x"), OfBranch, None),
            (Auto, false, true, Some("x"), OfBase, Some(None)),
            (Auto, true, true, Some("x"), OfBranch, Some(Some(Key))),
            (Auto, false, false, None, OfBranch, None),
            (Auto, false, false, None, OfBase, Some(None)),
            (Always, false, false, None, Nothing, None),
            (Always, true, false, None, Nothing, Some(Some(Key))),
            (Always, false, true, None, Nothing, Some(Some(Api))),
            (Never, true, true, None, OfBranch, None),
            (Never, true, true, None, OfBase, Some(None)),
            (Never, true, true, None, Nothing, Some(None)),
        ] {
            let decided = asked(mode, has_key, is_app, obstacle).decide(demand);
            assert_eq!(decided.clone().ok(), way, "{mode:?} {has_key} {is_app} {obstacle:?} {demand:?}: {decided:?}");
        }
        let advice = asked(Auto, false, true, Some("run.sh is executable")).decide(OfBranch).unwrap_err();
        assert!(advice.contains("run.sh is executable") && advice.contains("signing_key_file"), "{advice}");
        assert!(asked(Never, true, true, None).decide(OfBranch).unwrap_err().contains("`never`"));
    }

    #[test]
    fn commit_of_executables_links_submodules_or_much_content_is_not_made_by_github() {
        let file =
            |path: &'static str, old_mode, mode, bytes| ChangedFile { path: path.as_bytes(), old_mode, mode, bytes };
        let of = |file| api_obstacle(std::iter::once(file));
        let regular = Some(REGULAR);
        for fine in
            [file("a", None, regular, 1), file("a", regular, regular, 1), file("a", Some(EXECUTABLE), None, 0)]
        {
            assert_eq!(of(fine), None, "{fine:?}");
        }
        for mode in [EXECUTABLE, 0o120_000, 0o160_000] {
            assert!(of(file("a", None, Some(mode), 1)).unwrap().starts_with("a is executable"));
        }
        assert!(of(file("a", Some(EXECUTABLE), regular, 1)).is_some(), "a changed bit");
        assert!(of(file("a", None, regular, MAX_API_BYTES + 1)).unwrap().contains("bytes"));
        let latin = ChangedFile { path: b"\xfc", old_mode: None, mode: regular, bytes: 1 };
        assert!(of(latin).unwrap().contains("UTF-8"));
        let many = std::iter::repeat_n(file("a", None, regular, 0), MAX_API_FILES + 1);
        assert!(api_obstacle(many).unwrap().contains("1001 files"));
    }
}
