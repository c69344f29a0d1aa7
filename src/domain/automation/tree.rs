//! Rules on the tree of a change: what cannot or must not be pushed. They read paths, modes, sizes and contents of blobs,
//! never the text of a patch, which parsers read differently.

use std::collections::{HashMap, HashSet};

use icu_normalizer::ComposingNormalizerBorrowed;

use super::{
    skip::SkipDetail,
    step::{ChangedPath, Finding, MAX_CHANGED_PATHS, RefusedPath},
};
use crate::domain::redaction;

/// Largest file that GitHub accepts, in bytes.
pub(crate) const MAX_FILE_BYTES: u64 = 100 * 1024 * 1024;
/// Largest change, in bytes of all new contents: GitHub's limit of a push.
pub(crate) const MAX_CHANGE_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// The most files of a change. More are a folder of packages that was not ignored.
pub(crate) const MAX_CHANGE_FILES: usize = 100_000;
/// Largest file that is searched for secrets, in bytes.
pub(crate) const MAX_SEARCHED_BYTES: u64 = 1024 * 1024;
/// The most findings of one kind; the first ones show what is wrong.
const MAX_FINDINGS: usize = 20;
/// Longest path in a finding, in characters.
const MAX_PATH_CHARS: usize = 200;
/// Largest pointer of Git LFS, in bytes, by its specification.
pub(crate) const MAX_POINTER_BYTES: u64 = 1024;

/// Mode of a symbolic link in a tree.
pub(crate) const LINK: u32 = 0o120_000;
/// Mode of a commit of another repository in a tree.
pub(crate) const GITLINK: u32 = 0o160_000;

/// One path of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeChange {
    pub path: Vec<u8>,
    /// The new mode; `None` for a deleted path.
    pub mode: Option<u32>,
    /// Bytes of the new content.
    pub bytes: u64,
    /// True if the parent has no such path.
    pub is_added: bool,
}

impl TreeChange {
    fn shown(&self) -> String {
        shown(&self.path)
    }
}

/// A path as text, without invalid UTF-8 and control characters, cut.
pub(crate) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let plain: String = text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect();
    crate::domain::text::cut(&plain, MAX_PATH_CHARS)
}

/// Sizes that GitHub refuses.
pub(crate) fn too_large(changes: &[TreeChange]) -> Vec<Finding> {
    let finding = |path: String, rule: String| Finding { detail: SkipDetail::TooLarge, path, line: None, rule };
    let mut found = Vec::new();
    let total = changes.iter().fold(0_u64, |sum, change| sum.saturating_add(change.bytes));
    if changes.len() > MAX_CHANGE_FILES {
        let rule = format!("{} files changed; at most {MAX_CHANGE_FILES} are pushed", changes.len());
        found.push(finding(String::new(), rule));
    }
    if total > MAX_CHANGE_BYTES {
        found.push(finding(String::new(), format!("{total} bytes in all; the limit is {MAX_CHANGE_BYTES}")));
    }
    let large = changes.iter().filter(|change| change.bytes > MAX_FILE_BYTES);
    let of_file = |change: &TreeChange| {
        finding(change.shown(), format!("{} bytes; GitHub's limit is {MAX_FILE_BYTES}", change.bytes))
    };
    found.extend(large.take(MAX_FINDINGS).map(of_file));
    found
}

/// The finding for a path that Git LFS stores, whose new content is no pointer.
pub(crate) fn lfs(path: &[u8]) -> Finding {
    let rule = "filter=lfs in .gitattributes: commit its pointer with git-lfs".to_owned();
    Finding { detail: SkipDetail::Lfs, path: shown(path), line: None, rule }
}

/// True for the pointer of a file that Git LFS stores.
pub(crate) fn is_lfs_pointer(content: &[u8]) -> bool {
    content.len() as u64 <= MAX_POINTER_BYTES && content.starts_with(b"version https://git-lfs.github.com/spec/v")
}

/// Secrets in the lines of `new` that `old` does not have.
pub(crate) fn secrets(path: &[u8], old: &[u8], new: &[u8]) -> Vec<Finding> {
    let text = String::from_utf8_lossy(new);
    let found = redaction::secrets(&text);
    if found.is_empty() {
        return Vec::new();
    }
    let old = String::from_utf8_lossy(old);
    let known: HashSet<&str> = old.lines().collect();
    let mut findings = Vec::new();
    for (at, rule) in found {
        let (before, rest) = text.split_at(at);
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        let line = text[start..].lines().next().unwrap_or(rest);
        if known.contains(line) {
            continue;
        }
        let number = before.bytes().filter(|byte| *byte == b'\n').count() as u64 + 1;
        let detail = SkipDetail::PushProtection;
        findings.push(Finding { detail, path: shown(path), line: Some(number), rule: rule.to_owned() });
        if findings.len() == MAX_FINDINGS {
            break;
        }
    }
    findings
}

/// The reason that a path must not be in a commit, if there is one. Checkouts on other systems read some names as `.git`,
/// or as a place outside of the tree.
pub(crate) fn unsafe_path(path: &[u8], mode: Option<u32>) -> Option<&'static str> {
    let text = String::from_utf8_lossy(path);
    if text.chars().any(char::is_control) {
        return Some("its name has a control character; rename or remove it");
    }
    let parts = || text.split(['/', '\\']);
    if text.split('/').any(str::is_empty) || parts().any(|part| matches!(part, "." | "..")) {
        return Some("its name leads out of its folder; rename or remove it");
    }
    if parts().any(is_git_folder) {
        return Some("a part of its name is a form of `.git`; rename or remove it");
    }
    // git reads this file before a checkout, so a link could name any other file.
    let is_modules = || parts().next_back().is_some_and(|name| name.eq_ignore_ascii_case(".gitmodules"));
    if mode == Some(LINK) && is_modules() {
        return Some("`.gitmodules` is a symbolic link; remove it, or put a file in its place");
    }
    None
}

/// True for `.git` in the forms that NTFS and HFS+ read as the same name.
fn is_git_folder(part: &str) -> bool {
    // HFS+ ignores these characters.
    let is_ignored = |c: char| matches!(c, '\u{200C}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{206A}'..='\u{206F}' | '\u{FEFF}');
    let name: String = part.chars().filter(|c| !is_ignored(*c)).collect();
    // NTFS ignores dots and spaces at the end, and reads what follows a colon as the name of a stream.
    let name = name.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    name.eq_ignore_ascii_case(".git") || name.eq_ignore_ascii_case("git~1")
}

/// The reason that a symbolic link must not be in a commit, if there is one.
pub(crate) fn unsafe_link(path: &[u8], target: &[u8]) -> Option<&'static str> {
    let (path, target) = (String::from_utf8_lossy(path), String::from_utf8_lossy(target));
    let has_drive = target.as_bytes().get(1) == Some(&b':');
    if target.is_empty() || target.starts_with(['/', '\\']) || has_drive {
        return Some(
            "a symbolic link with an absolute target; remove it, or give it a relative target in the repository",
        );
    }
    let mut depth = path.split('/').count() - 1;
    for part in target.split(['/', '\\']) {
        match part {
            "" | "." => {}
            ".." => match depth.checked_sub(1) {
                Some(above) => depth = above,
                None => {
                    return Some(
                        "a symbolic link that leads out of the repository; remove it, or give it a target in the repository",
                    );
                }
            },
            part if is_git_folder(part) => {
                return Some("a symbolic link into `.git`; remove it, or give it another target");
            }
            _ => depth += 1,
        }
    }
    None
}

/// The form of a name in which file systems compare names without regard to case and composition.
fn folded(name: &str) -> String {
    let nfc = ComposingNormalizerBorrowed::new_nfc();
    if name.is_ascii() {
        name.to_ascii_lowercase()
    } else {
        nfc.normalize(&nfc.normalize(name).to_lowercase()).into()
    }
}

/// Added paths, or folders of theirs, whose names equal those of another path in the tree but for case or composition: a
/// checkout on many file systems has only one of them. `tree` has all paths of the new tree.
pub(crate) fn collisions<'a>(tree: impl IntoIterator<Item = &'a [u8]>, changes: &[TreeChange]) -> Vec<RefusedPath> {
    let added = changes.iter().filter(|change| change.is_added && change.mode.is_some());
    let mut wanted: HashMap<String, Vec<(String, &TreeChange)>> = HashMap::new();
    for change in added {
        let path = String::from_utf8_lossy(&change.path).into_owned();
        for name in prefixes(&path) {
            wanted.entry(folded(name)).or_default().push((name.to_owned(), change));
        }
    }
    let mut found: Vec<RefusedPath> = Vec::new();
    let mut seen = HashSet::new();
    if wanted.is_empty() {
        return found;
    }
    for path in tree {
        let path = String::from_utf8_lossy(path);
        for name in prefixes(&path) {
            if !seen.insert(name.to_owned()) {
                continue;
            }
            let others = wanted.get(&folded(name)).into_iter().flatten();
            for (_, change) in others.filter(|(spelled, _)| spelled != name) {
                let path = change.shown();
                if found.len() < MAX_FINDINGS && found.iter().all(|it| it.path != path) {
                    let why = format!(
                        "its name equals {:?} but for case or accents; rename or remove one of them",
                        shown(name.as_bytes())
                    );
                    found.push(RefusedPath { path, why });
                }
            }
        }
    }
    found
}

/// The folders of a path, and the path itself.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).chain(std::iter::once(path))
}

/// The changed paths for a list, protected ones first, so that a cut list has them.
pub(crate) fn listed(changes: &[TreeChange]) -> Vec<ChangedPath> {
    let mut sorted: Vec<_> = changes.iter().map(|change| (!looks_protected(&change.path), change)).collect();
    sorted.sort_by(|a, b| (a.0, &a.1.path).cmp(&(b.0, &b.1.path)));
    let to_listed = |change: &TreeChange| ChangedPath {
        path: String::from_utf8_lossy(&change.path).into_owned(),
        bytes: change.bytes,
        is_deleted: change.mode.is_none(),
    };
    sorted.into_iter().take(MAX_CHANGED_PATHS).map(|(_, change)| to_listed(change)).collect()
}

/// True for paths that repositories commonly protect: what runs in workflows, who reviews, what agents obey, which packages
/// are installed.
fn looks_protected(path: &[u8]) -> bool {
    const NAMES: [&str; 22] = [
        "codeowners",
        "agents.md",
        "claude.md",
        "gemini.md",
        "copilot-instructions.md",
        ".cursorrules",
        "cargo.lock",
        "package-lock.json",
        "npm-shrinkwrap.json",
        "yarn.lock",
        "pnpm-lock.yaml",
        "bun.lock",
        "bun.lockb",
        "go.sum",
        "poetry.lock",
        "uv.lock",
        "pipfile.lock",
        "gemfile.lock",
        "composer.lock",
        "packages.lock.json",
        "flake.lock",
        "mix.lock",
    ];
    let path = String::from_utf8_lossy(path).to_lowercase();
    let name = path.rsplit('/').next().unwrap_or_default();
    let folders = [".github/", ".claude/", ".cursor/", ".gitlab/"];
    folders.iter().any(|folder| path.starts_with(folder)) || NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &str, bytes: u64) -> TreeChange {
        TreeChange { path: path.into(), mode: Some(0o100_644), bytes, is_added: true }
    }

    #[test]
    fn large_files_and_large_changes_are_found_by_their_sizes() {
        let changes = [change("a", MAX_FILE_BYTES), change("b/c", MAX_FILE_BYTES + 1)];
        let found = too_large(&changes);
        assert_eq!(found.iter().map(|it| it.path.as_str()).collect::<Vec<_>>(), ["b/c"]);
        assert_eq!(too_large(&[change("a", MAX_CHANGE_BYTES + 1)]).len(), 2);
        assert_eq!(too_large(&vec![change("a", 0); MAX_CHANGE_FILES + 1]).len(), 1);
        assert!(too_large(&vec![change("a", 0); MAX_CHANGE_FILES]).is_empty());
    }

    #[test]
    fn names_that_other_systems_read_as_git_folders_are_unsafe() {
        for path in [
            ".git",
            "a/.GIT/config",
            ".git./hooks",
            ".git /x",
            "git~1/x",
            "GIT~1",
            ".git::$INDEX_ALLOCATION/x",
            "a\\.git\\x",
            ".g\u{200c}it/x",
            "\u{feff}.git",
            "a/../b",
            "..",
            "a\nb",
            "tab\there",
            "a//b",
            "..\\x",
        ] {
            assert!(unsafe_path(path.as_bytes(), Some(0o100_644)).is_some(), "{path:?}");
        }
        for path in [
            ".github/x",
            ".gitignore",
            "a/.gitattributes",
            "-rf",
            "--upload-pack=x",
            "git",
            ".gitmodules",
            "ü/é x",
            "..a",
        ] {
            assert_eq!(unsafe_path(path.as_bytes(), Some(0o100_644)), None, "{path:?}");
        }
        assert!(unsafe_path(b".gitmodules", Some(LINK)).is_some());
    }

    #[test]
    fn links_are_safe_only_inside_of_the_repository() {
        for (path, target) in [("a", "b"), ("a/b/c", "../../d"), ("a/b", "./c/../../e"), ("a/b", "..")] {
            assert_eq!(unsafe_link(path.as_bytes(), target.as_bytes()), None, "{path} -> {target}");
        }
        for (path, target) in [
            ("a", "/etc/passwd"),
            ("a", "../b"),
            ("a/b", "../../c"),
            ("a/b", "c/../../../d"),
            ("a", ".git/config"),
            ("a", ""),
            ("a", "C:\\x"),
        ] {
            assert!(unsafe_link(path.as_bytes(), target.as_bytes()).is_some(), "{path} -> {target}");
        }
    }

    #[test]
    fn names_that_differ_by_case_or_composition_collide() {
        let tree = |paths: &[&str]| -> Vec<Vec<u8>> { paths.iter().map(|path| path.as_bytes().to_vec()).collect() };
        let colliding = |paths: &[&str], added: &[&str]| -> Vec<String> {
            let tree = tree(paths);
            let changes: Vec<_> = added.iter().map(|path| change(path, 1)).collect();
            collisions(tree.iter().map(Vec::as_slice), &changes).into_iter().map(|it| it.path).collect()
        };
        assert_eq!(colliding(&["README.md", "readme.md"], &["readme.md"]), ["readme.md"]);
        assert_eq!(colliding(&["src/a", "Src/b"], &["Src/b"]), ["Src/b"]);
        assert_eq!(colliding(&["caf\u{e9}", "cafe\u{301}"], &["cafe\u{301}"]), ["cafe\u{301}"]);
        assert_eq!(colliding(&["A", "a"], &["A", "a"]).len(), 2, "both are new");
        assert!(colliding(&["A", "a", "b"], &["b"]).is_empty(), "names that collided before");
        assert!(colliding(&["readme.md"], &["readme.md"]).is_empty(), "a renamed file");
    }

    #[test]
    fn secrets_in_added_lines_are_found_by_line_and_rule() {
        let token = format!("ghp_{}", "a1B2".repeat(9));
        let old = format!("one\nkept = {token}\n");
        let new = format!("one\nkept = {token}\ntwo\nnew: \"{token}\"\n");
        let found = secrets(b"src/x", old.as_bytes(), new.as_bytes());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].line, found[0].rule.as_str()), (Some(4), "github-token"));
        assert!(!format!("{found:?}").contains(&token), "the secret is not named");
        let key = format!("-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----\n", "Ab1/".repeat(16));
        assert_eq!(secrets(b"k", b"", key.as_bytes())[0].rule, "private-key");
        for innocent in ["AKIAIOSFODNN7EXAMPLE", "Authorization: Bearer abcdefghijklmnop1234", "task-list-item"] {
            assert!(secrets(b"x", b"", innocent.as_bytes()).is_empty(), "{innocent}");
        }
    }

    #[test]
    fn protected_paths_are_listed_before_a_cut() {
        let mut changes: Vec<_> = (0..2000).map(|n| change(&format!("a/{n:04}"), 1)).collect();
        changes.push(TreeChange { mode: None, ..change("z/CLAUDE.md", 0) });
        changes.push(change(".github/workflows/x.yml", 1));
        let listed = listed(&changes);
        assert_eq!(listed.len(), MAX_CHANGED_PATHS);
        assert_eq!((listed[0].path.as_str(), listed[1].path.as_str()), (".github/workflows/x.yml", "z/CLAUDE.md"));
        assert!(listed[1].is_deleted);
    }

    #[test]
    fn pointers_of_lfs_are_recognised() {
        assert!(is_lfs_pointer(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"));
        assert!(!is_lfs_pointer(b"PK\x03\x04"));
    }
}
