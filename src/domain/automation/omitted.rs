//! Paths of a workspace that git cannot read: they are in no commit and no diff, and are named instead.

use super::step::RefusedPath;

/// The most paths of one answer that are named; the first ones show what is wrong.
pub(crate) const MAX_OMITTED: usize = 20;
/// The most paths that a log or a pull request names.
const MAX_NAMED: usize = 10;

/// Why git cannot read a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// A repository inside the workspace, with or without a commit.
    Repository,
    /// The modes of the file or folder exclude the agent's user.
    Unreadable,
    /// A pipe, a socket or a device in the place of a file.
    Special,
    /// A link called `.gitmodules`.
    ModulesLink,
}

impl Obstacle {
    /// The reason and advice, as a part of a sentence whose subject is the path.
    pub(crate) fn why(self) -> &'static str {
        match self {
            Self::Repository => "it is a repository of its own; remove its `.git` to have its files included",
            Self::Unreadable => "the agent's user may not read it; change its mode or its owner",
            Self::Special => "it is a pipe, a socket or a device; remove it, or put a file in its place",
            Self::ModulesLink => "it is a symbolic link, which git does not accept under this name",
        }
    }
}

/// One sentence for each of the first paths, and one for the others. They are no Markdown yet.
pub(crate) fn sentences(omitted: &[RefusedPath], total: u64) -> Vec<String> {
    let named = omitted.iter().take(MAX_NAMED);
    let mut lines: Vec<_> = named.map(|it| format!("{} is not in the commit: {}.", it.name(), it.why)).collect();
    let others = total.saturating_sub(lines.len() as u64);
    if others > 0 {
        lines.push(format!("{others} more paths are not in the commit, for such reasons."));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_paths_are_named_and_the_others_are_counted() {
        let path = |n: usize| RefusedPath { path: format!("p{n}"), why: Obstacle::Unreadable.why().to_owned() };
        assert_eq!(sentences(&[], 0), Vec::<String>::new());
        let one = sentences(&[path(1)], 1);
        assert!(one.len() == 1 && one[0].starts_with("\"p1\" is not in the commit: the agent's user"), "{one:?}");
        let many = sentences(&(0..MAX_OMITTED).map(path).collect::<Vec<_>>(), 700);
        assert_eq!(many.len(), MAX_NAMED + 1);
        assert!(many[MAX_NAMED].starts_with("690 more"), "{many:?}");
    }
}
