//! Reads Rust as tokens: which paths a file names, what it defines, and which text is in its comments and literals.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::lexer::{Lexed, Token, end_of_block, lex, literal_text, tokens};

/// The sources of one crate.
pub(crate) struct Tree {
    /// Below `src/`; paths are relative to `src/`.
    pub(crate) files: Vec<File>,
    /// Below `tests/`; paths start with `tests/`.
    pub(crate) tests: Vec<File>,
    /// Text of `Cargo.toml`.
    pub(crate) manifest: String,
}

/// One source file.
pub(crate) struct File {
    pub(crate) path: String,
    /// All code, tests included. Comments and the contents of literals are blank; byte offsets are those of the file.
    pub(crate) all: String,
    /// `all` without tests; empty for a file of tests.
    pub(crate) code: String,
    /// Lines that are not tests.
    pub(crate) lines: usize,
    /// Lines that hold code and are not tests.
    pub(crate) code_lines: usize,
    pub(crate) literals: Vec<Text>,
    pub(crate) comments: Vec<Comment>,
    /// Paths that production code names, in `use` declarations and in place.
    pub(crate) paths: Vec<NamedPath>,
    /// Items that production code defines.
    pub(crate) items: Vec<Item>,
    /// Functions under a test attribute: line and name.
    pub(crate) test_names: Vec<(usize, String)>,
    starts: Vec<usize>,
}

/// The content of a string literal.
pub(crate) struct Text {
    pub(crate) line: usize,
    pub(crate) text: String,
    pub(crate) in_test: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommentKind {
    /// `///`
    Outer,
    /// `//!`
    Inner,
    Plain,
}

/// Adjacent comment lines of one kind.
pub(crate) struct Comment {
    pub(crate) kind: CommentKind,
    /// Line number and text of each line, without the slashes.
    pub(crate) lines: Vec<(usize, String)>,
    pub(crate) in_test: bool,
}

impl Comment {
    pub(crate) fn is_doc(&self) -> bool {
        self.kind != CommentKind::Plain
    }
}

/// A path such as `crate::domain::text::cut`.
#[derive(Debug, Clone)]
pub(crate) struct NamedPath {
    pub(crate) line: usize,
    pub(crate) parts: Vec<String>,
    /// The name that a `use` declaration binds; `None` for a path in place.
    pub(crate) binds: Option<String>,
    /// Whether it comes from a `pub use`.
    pub(crate) reexport: bool,
}

impl NamedPath {
    pub(crate) fn text(&self) -> String {
        self.parts.join("::")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visibility {
    Private,
    /// `pub(crate)`, `pub(super)`, `pub(in …)`.
    Restricted,
    Public,
}

/// A definition.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) line: usize,
    /// `fn`, `struct`, `mod`, …
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) visibility: Visibility,
    /// Lines from the keyword to the end of the body; 1 for an item other than a function.
    pub(crate) length: usize,
}

impl Tree {
    /// The crate that the tests belong to, or the one that the environment variable `ARCHITECTURE_TREE` names.
    pub(crate) fn load() -> Self {
        #[expect(clippy::disallowed_methods, reason = "it names the tree to inspect, not a setting of the product")]
        let root =
            std::env::var_os("ARCHITECTURE_TREE").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        Self::new(read(&root, "src"), read(&root, "tests"), fs::read_to_string(root.join("Cargo.toml")).unwrap())
    }

    /// `files` are relative to `src/`, `tests` to the root of the crate.
    pub(crate) fn new(files: Vec<(String, String)>, tests: Vec<(String, String)>, manifest: String) -> Self {
        let mut files: Vec<_> = files.iter().map(|(path, text)| File::new(path, text, is_test_path(path))).collect();
        let test_modules = test_modules(&files);
        for file in &mut files {
            let module = file.module();
            if (1..=module.len()).any(|length| test_modules.contains(&module[..length])) {
                file.make_test();
            }
        }
        let tests = tests.iter().map(|(path, text)| File::new(path, text, true)).collect();
        Self { files, tests, manifest }
    }

    /// Files of `src/` that are more than tests.
    pub(crate) fn product(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.is_product())
    }
}

/// Modules declared as `#[cfg(test)] mod name;`.
fn test_modules(files: &[File]) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for file in files {
        for (at, mark) in file.all.match_indices("#[cfg(test)]") {
            let declaration = file.all[at + mark.len()..].split([';', '{']).next().unwrap_or_default();
            if let [.., "mod", name] = declaration.split_whitespace().collect::<Vec<_>>()[..] {
                found.insert([&file.module()[..], &[name.to_owned()]].concat());
            }
        }
    }
    found
}

/// Paths and texts of the Rust files below a folder of the crate. Paths below `src` are relative to it.
fn read(root: &Path, folder: &str) -> Vec<(String, String)> {
    let base = if folder == "src" { root.join("src") } else { root.to_owned() };
    let mut found = Vec::new();
    walk(&root.join(folder), &mut |path| {
        let name = path.strip_prefix(&base).unwrap().to_string_lossy().replace('\\', "/");
        found.push((name, fs::read_to_string(path).unwrap()));
    });
    found.sort();
    found
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("node_modules") && !path.ends_with("target") {
                walk(&path, visit);
            }
        } else if path.extension().is_some_and(|it| it == "rs") {
            visit(&path);
        }
    }
}

fn is_test_path(path: &str) -> bool {
    path.ends_with("_tests.rs")
        || path.ends_with("/tests.rs")
        || path.ends_with("/fake.rs")
        || path.contains("/tests/")
        || path.starts_with("tests/")
}

impl File {
    pub(crate) fn new(path: &str, text: &str, is_test: bool) -> Self {
        let lexed = lex(text);
        let starts: Vec<usize> =
            [0].into_iter().chain(text.bytes().enumerate().filter(|it| it.1 == b'\n').map(|it| it.0 + 1)).collect();
        let tests = if is_test { vec![(0, text.len())] } else { test_blocks(&lexed.code) };
        let in_test = |at: usize| tests.iter().any(|(from, to)| (*from..*to).contains(&at));
        let line_of = |at: usize| starts.partition_point(|start| *start <= at);
        let mut code = lexed.code.clone().into_bytes();
        let mut lines = text.lines().count();
        for &(from, to) in &tests {
            code[from..to].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
            lines = lines.saturating_sub(line_of(to.saturating_sub(1)) - line_of(from) + 1);
        }
        let code = if is_test { String::new() } else { String::from_utf8(code).unwrap() };
        let literals = lexed.literals.iter().map(|&(from, to)| Text {
            line: line_of(from),
            text: literal_text(&text[from..to]),
            in_test: in_test(from),
        });
        let literals = literals.collect();
        let comments = group_comments(text, &lexed, &line_of, &in_test);
        let production = scan(&code, &line_of);
        let test_names = scan_test_names(&lexed.code, &line_of);
        Self {
            path: path.to_owned(),
            lines: if is_test { 0 } else { lines },
            code_lines: code.lines().filter(|line| !line.trim().is_empty()).count(),
            all: lexed.code,
            code,
            literals,
            comments,
            paths: production.0,
            items: production.1,
            test_names,
            starts,
        }
    }

    fn make_test(&mut self) {
        self.code = String::new();
        self.lines = 0;
        self.code_lines = 0;
        self.paths.clear();
        self.items.clear();
        self.literals.iter_mut().for_each(|it| it.in_test = true);
        self.comments.iter_mut().for_each(|it| it.in_test = true);
    }

    pub(crate) fn is_product(&self) -> bool {
        self.lines > 0
    }

    /// Module path: `a/b.rs` and `a/b/mod.rs` are `a::b`; `lib.rs` and `main.rs` are the root.
    pub(crate) fn module(&self) -> Vec<String> {
        let path = self.path.trim_end_matches(".rs").trim_end_matches("/mod");
        if path == "lib" || path == "main" { vec![] } else { path.split('/').map(str::to_owned).collect() }
    }

    /// The folder or file below `src/` that it belongs to.
    pub(crate) fn unit(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    pub(crate) fn line_of(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at)
    }

    /// Paths into this crate, from its root, with `crate::`, `super::` and `self::` resolved.
    pub(crate) fn inner_paths(&self) -> impl Iterator<Item = NamedPath> {
        let module = self.module();
        self.paths.iter().filter_map(move |path| {
            Some(NamedPath { parts: from_root(&module, &path.parts, self.path == "main.rs")?, ..path.clone() })
        })
    }
}

/// A path as seen from the root of the crate; `None` for a path that does not say where it starts.
pub(crate) fn from_root(module: &[String], parts: &[String], in_main: bool) -> Option<Vec<String>> {
    let supers = parts.iter().take_while(|part| *part == "super").count();
    let (base, rest) = match parts.first()?.as_str() {
        "crate" => (&[][..], &parts[1..]),
        "lumilink" if in_main => (&[][..], &parts[1..]),
        "self" => (module, &parts[1..]),
        "super" => (&module[..module.len().saturating_sub(supers)], &parts[supers..]),
        _ => return None,
    };
    Some([base, rest].concat())
}

fn group_comments(
    text: &str,
    lexed: &Lexed,
    line_of: &impl Fn(usize) -> usize,
    in_test: &impl Fn(usize) -> bool,
) -> Vec<Comment> {
    let mut groups: Vec<Comment> = Vec::new();
    let mut last_own_line = false;
    for &(from, to) in &lexed.comments {
        let token = &text[from..to];
        let line = line_of(from);
        let own_line = text[..from].rsplit('\n').next().is_some_and(|before| before.trim().is_empty());
        let (kind, content) = if let Some(content) = token.strip_prefix("//!") {
            (CommentKind::Inner, content)
        } else if token.starts_with("///") && !token.starts_with("////") {
            (CommentKind::Outer, &token[3..])
        } else {
            (CommentKind::Plain, token.trim_start_matches('/').trim_start_matches('*').trim_end_matches("*/"))
        };
        let content = content.lines().enumerate().map(|(index, it)| (line + index, it.trim().to_owned()));
        let joins = groups.last().is_some_and(|last| {
            last_own_line && own_line && last.kind == kind && last.lines.last().is_some_and(|it| it.0 + 1 == line)
        });
        match groups.last_mut() {
            Some(last) if joins => last.lines.extend(content),
            _ => groups.push(Comment { kind, lines: content.collect(), in_test: in_test(from) }),
        }
        last_own_line = own_line;
    }
    groups
}

/// Byte ranges under `#[cfg(test)]`.
fn test_blocks(code: &str) -> Vec<(usize, usize)> {
    let mut blocks: Vec<(usize, usize)> = Vec::new();
    for (start, _) in code.match_indices("#[cfg(test)]") {
        if blocks.last().is_some_and(|last| start < last.1) {
            continue;
        }
        let rest = &code[start..];
        let brace = rest.find('{').unwrap_or(rest.len());
        let semicolon = rest.find(';').unwrap_or(rest.len());
        let length = if semicolon < brace { semicolon + 1 } else { end_of_block(rest, brace) };
        blocks.push((start, (start + length).min(code.len())));
    }
    blocks
}

/// The paths that code names, and the items that it defines.
fn scan(code: &str, line_of: &impl Fn(usize) -> usize) -> (Vec<NamedPath>, Vec<Item>) {
    let tokens = tokens(code);
    let (mut paths, mut items) = (Vec::new(), Vec::new());
    let mut visibility = Visibility::Private;
    let mut at = 0;
    while at < tokens.len() {
        let (offset, token) = tokens[at];
        let Token::Word(word) = token else {
            if !matches!(token, Token::Mark(b'"')) {
                visibility = Visibility::Private;
            }
            at += 1;
            continue;
        };
        match word {
            "pub" => {
                visibility = Visibility::Public;
                at += 1;
                if matches!(tokens.get(at), Some((_, Token::Mark(b'(')))) {
                    visibility = Visibility::Restricted;
                    while at < tokens.len() && !matches!(tokens[at].1, Token::Mark(b')')) {
                        at += 1;
                    }
                    at += 1;
                }
                continue;
            }
            "async" | "unsafe" | "extern" => {
                at += 1;
                continue;
            }
            "use" if !matches!(tokens.get(at + 1), Some((_, Token::Mark(b'<')))) => {
                let reexport = visibility != Visibility::Private;
                at = expand(&tokens, at + 1, &[], &mut |offset, parts, binds| {
                    paths.push(NamedPath { line: line_of(offset), parts, binds: Some(binds), reexport });
                });
            }
            "fn" | "struct" | "enum" | "trait" | "type" | "const" | "static" | "mod" | "macro_rules" => {
                let name = tokens[at + 1..]
                    .iter()
                    .map(|it| it.1)
                    .find(|it| !matches!(it, Token::Mark(b'!') | Token::Word("mut")));
                match name {
                    Some(Token::Word("fn" | "async" | "unsafe" | "extern")) if word == "const" => {
                        at += 1;
                        continue;
                    }
                    Some(Token::Word(name))
                        if !matches!(at.checked_sub(1).map(|at| tokens[at].1), Some(Token::Mark(b'*'))) =>
                    {
                        let length = if word == "fn" { body_lines(code, offset, line_of) } else { 1 };
                        let (line, kind, name) = (line_of(offset), word.to_owned(), name.to_owned());
                        items.push(Item { line, kind, name, visibility, length });
                    }
                    _ => {}
                }
                at += 1;
            }
            _ => {
                let mut parts = vec![word.to_owned()];
                while let (Some((_, Token::Separator)), Some((_, Token::Word(next)))) =
                    (tokens.get(at + 1), tokens.get(at + 2))
                {
                    parts.push((*next).to_owned());
                    at += 2;
                }
                if parts.len() > 1 {
                    paths.push(NamedPath { line: line_of(offset), parts, binds: None, reexport: false });
                }
                at += 1;
            }
        }
        visibility = Visibility::Private;
    }
    (paths, items)
}

/// Lines of a function with a body, from `fn` on; 0 for one without.
fn body_lines(code: &str, start: usize, line_of: &impl Fn(usize) -> usize) -> usize {
    // The body opens at the first brace outside of parentheses; a semicolon there means that there is no body.
    let mut depth = 0i32;
    let open = code.as_bytes()[start..].iter().position(|byte| {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            _ => {}
        }
        depth == 0 && matches!(byte, b'{' | b';')
    });
    let Some(open) = open.map(|at| start + at).filter(|at| code.as_bytes()[*at] == b'{') else { return 0 };
    line_of(end_of_block(code, open) - 1) - line_of(start) + 1
}

/// `a::{b, c::{d, self}}` becomes `a::b`, `a::c::d`, `a::c`. Returns the index of the token behind the tree.
fn expand(
    tokens: &[(usize, Token)],
    mut at: usize,
    above: &[String],
    found: &mut impl FnMut(usize, Vec<String>, String),
) -> usize {
    let mut parts = above.to_vec();
    let offset = tokens.get(at).map_or(0, |it| it.0);
    let mut binds = None;
    while let Some((_, token)) = tokens.get(at) {
        match token {
            Token::Word("as") => {
                if let Some((_, Token::Word(name))) = tokens.get(at + 1) {
                    binds = Some((*name).to_owned());
                }
                at += 1;
            }
            Token::Word("self") if parts.len() == above.len() && !above.is_empty() => {}
            Token::Word(word) => parts.push((*word).to_owned()),
            Token::Mark(b'*') => parts.push("*".to_owned()),
            Token::Mark(b'{') => {
                at += 1;
                while !matches!(tokens.get(at), None | Some((_, Token::Mark(b'}')))) {
                    let end = expand(tokens, at, &parts, found);
                    // Skips the comma, or a token that no `use` declaration has.
                    let skips = end == at || matches!(tokens.get(end), Some((_, Token::Mark(b','))));
                    at = end + usize::from(skips);
                }
                return at + 1;
            }
            Token::Separator => {}
            Token::Mark(_) => break,
        }
        at += 1;
    }
    if let Some(last) = parts.last().cloned() {
        found(offset, parts, binds.unwrap_or(last));
    }
    at
}

/// Functions under `#[test]`, `#[tokio::test]` and the like.
fn scan_test_names(code: &str, line_of: &impl Fn(usize) -> usize) -> Vec<(usize, String)> {
    if !code.contains("test") {
        return Vec::new();
    }
    let tokens = tokens(code);
    let mut names = Vec::new();
    let mut pending = false;
    for (at, (offset, token)) in tokens.iter().enumerate() {
        match token {
            Token::Word("test") => {
                let opens = tokens[..at].iter().rev().find(|it| !matches!(it.1, Token::Separator | Token::Word(_)));
                let ends = tokens.get(at + 1).map(|it| it.1);
                pending |=
                    matches!(opens, Some((_, Token::Mark(b'[')))) && matches!(ends, Some(Token::Mark(b']' | b'(')));
            }
            Token::Word("fn") if pending => {
                if let Some((_, Token::Word(name))) = tokens.get(at + 1) {
                    names.push((line_of(*offset), (*name).to_owned()));
                }
                pending = false;
            }
            _ => {}
        }
    }
    names
}
