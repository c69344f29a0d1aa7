//! Reads Rust as text: enough to know what a file imports, says in strings, and how long it is.

use std::{fs, path::Path};

use regex::Regex;

/// The crate's source.
pub struct Tree {
    pub files: Vec<File>,
    pub manifest: String,
}

/// One file.
pub struct File {
    /// Below `src/`.
    pub path: String,
    /// All code, tests included; comments and the contents of literals are blank.
    pub all: String,
    /// The same without tests. Lines stay where they are.
    pub code: String,
    /// Lines that are not tests.
    pub lines: usize,
    /// String literals outside of tests.
    pub literals: Vec<(usize, String)>,
    /// Paths that the code names, outside of tests: from `use`, and in place.
    pub paths: Vec<NamedPath>,
}

/// A path such as `crate::domain::text::cut`, and where it stands.
#[derive(Debug, Clone)]
pub struct NamedPath {
    pub line: usize,
    pub parts: Vec<String>,
    /// From a `pub use`.
    pub reexport: bool,
}

impl NamedPath {
    pub fn text(&self) -> String {
        self.parts.join("::")
    }
}

impl Tree {
    /// The real one.
    pub fn of_this_crate() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        walk(&root.join("src"), &mut |path| {
            let name = path.strip_prefix(root.join("src")).unwrap().to_string_lossy().replace('\\', "/");
            files.push(File::new(&name, &fs::read_to_string(path).unwrap()));
        });
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Self { files, manifest: fs::read_to_string(root.join("Cargo.toml")).unwrap() }
    }
}

pub fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, visit);
        } else if path.extension().is_some_and(|it| it == "rs") {
            visit(&path);
        }
    }
}

impl File {
    pub fn new(path: &str, text: &str) -> Self {
        let (all, literals) = blank(text);
        let is_test = path.ends_with("_tests.rs")
            || path.ends_with("/tests.rs")
            || path.ends_with("/fake.rs")
            || path.contains("/tests/");
        let (code, test_lines) = if is_test { (String::new(), all.lines().count()) } else { without_tests(&all) };
        let literals = literals.into_iter().filter(|(line, _)| !test_lines_contain(&all, &code, *line)).collect();
        let lines = all.lines().count() - test_lines;
        let paths = named_paths(&code);
        Self { path: path.to_owned(), all, code, lines, literals, paths }
    }

    /// Its module path: `a/b.rs` and `a/b/mod.rs` are `a::b`.
    pub fn module(&self) -> Vec<String> {
        let path = self.path.trim_end_matches(".rs").trim_end_matches("/mod");
        if path == "lib" || path == "main" { vec![] } else { path.split('/').map(str::to_owned).collect() }
    }

    /// The folder or file below `src/` that it belongs to.
    pub fn unit(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// Paths into this crate, from its root: `crate::`, `super::` and `self::` resolved.
    pub fn inner_paths(&self) -> impl Iterator<Item = NamedPath> {
        let module = self.module();
        self.paths.iter().filter_map(move |path| {
            let mut parts = path.parts.clone();
            let mut base = match parts.first()?.as_str() {
                "crate" => Vec::new(),
                "lumilink" if self.path == "main.rs" => Vec::new(),
                "self" => module.clone(),
                "super" => {
                    let mut base = module.clone();
                    while parts.get(1).is_some_and(|part| part == "super") {
                        base.pop();
                        parts.remove(0);
                    }
                    base.pop();
                    base
                }
                _ => return None,
            };
            base.extend(parts.into_iter().skip(1));
            Some(NamedPath { parts: base, ..path.clone() })
        })
    }
}

fn test_lines_contain(all: &str, code: &str, line: usize) -> bool {
    let of = |text: &str| text.lines().nth(line - 1).unwrap_or_default().trim().to_owned();
    !of(all).is_empty() && of(code).is_empty()
}

/// Blanks comments and the contents of literals; gives the string literals with their lines.
pub fn blank(text: &str) -> (String, Vec<(usize, String)>) {
    // A regular expression cannot count, so raw strings are told apart up to five hashes.
    let raw: Vec<_> = (0..=5).rev().map(|count| "#".repeat(count)).map(|it| format!(r#"{it}".*?"{it}"#)).collect();
    let tokens = Regex::new(&format!(
        r#"(?s)//[^\n]*|/\*.*?\*/|\bb?r(?:{})|b?"(?:\\.|[^"\\])*"|b?'(?:\\(?:u\{{[^}}]*\}}|x..|.)|[^'\\\n])'"#,
        raw.join("|")
    ))
    .unwrap();
    let (mut out, mut literals, mut from) = (String::with_capacity(text.len()), Vec::new(), 0);
    for found in tokens.find_iter(text) {
        out.push_str(&text[from..found.start()]);
        let token = found.as_str();
        if !token.starts_with('/') && token.ends_with(['"', '#']) {
            literals.push((text[..found.start()].matches('\n').count() + 1, token.to_owned()));
        }
        let kept = if token.starts_with('/') { ' ' } else { '"' };
        out.push(kept);
        out.extend(token.chars().skip(1).map(|it| if it == '\n' { '\n' } else { ' ' }));
        from = found.end();
    }
    out.push_str(&text[from..]);
    (out, literals)
}

/// Blanks what stands under `#[cfg(test)]`; gives the number of its lines.
fn without_tests(code: &str) -> (String, usize) {
    let mut out = code.to_owned();
    let mut lines = 0;
    while let Some(start) = out.find("#[cfg(test)]") {
        let rest = &out[start..];
        let brace = rest.find('{').unwrap_or(rest.len());
        let semicolon = rest.find(';').unwrap_or(rest.len());
        let length = if semicolon < brace { semicolon + 1 } else { end_of_block(rest, brace) };
        let removed = &out[start..start + length];
        lines += removed.matches('\n').count() + 1;
        let blank: String = removed.chars().map(|it| if it == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(start..start + length, &blank);
    }
    (out, lines)
}

/// Where the block that opens at `open` ends.
pub fn end_of_block(code: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

fn named_paths(code: &str) -> Vec<NamedPath> {
    let uses = Regex::new(r"(?m)^\s*(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);").unwrap();
    let in_place = Regex::new(r"[A-Za-z_]\w*(?:\s*::\s*[A-Za-z_]\w*)+").unwrap();
    let mut paths = Vec::new();
    let mut rest = code.to_owned();
    for found in uses.captures_iter(code) {
        let tree = found.get(2).unwrap();
        let line = code[..tree.start()].matches('\n').count() + 1;
        let mut all = Vec::new();
        expand(tree.as_str(), &[], &mut all);
        let reexport = found.get(1).is_some();
        paths.extend(all.into_iter().map(|parts| NamedPath { line, parts, reexport }));
        let blank: String = found[0].chars().map(|it| if it == '\n' { '\n' } else { ' ' }).collect();
        rest.replace_range(found.get(0).unwrap().range(), &blank);
    }
    for found in in_place.find_iter(&rest) {
        let parts = found.as_str().split("::").map(|part| part.trim().to_owned()).collect();
        let line = rest[..found.start()].matches('\n').count() + 1;
        paths.push(NamedPath { line, parts, reexport: false });
    }
    paths
}

/// `a::{b, c::{d, self}}` becomes `a::b`, `a::c::d`, `a::c`.
fn expand(tree: &str, above: &[String], out: &mut Vec<Vec<String>>) {
    let tree = tree.trim();
    if let Some(open) = tree.find('{') {
        let mut prefix = above.to_vec();
        prefix.extend(tree[..open].split("::").map(str::trim).filter(|it| !it.is_empty()).map(str::to_owned));
        let inner = &tree[open + 1..end_of_block(tree, open) - 1];
        let (mut depth, mut from) = (0, 0);
        for (at, byte) in inner.bytes().enumerate() {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b',' if depth == 0 => {
                    expand(&inner[from..at], &prefix, out);
                    from = at + 1;
                }
                _ => {}
            }
        }
        expand(&inner[from..], &prefix, out);
    } else if !tree.is_empty() {
        let name = tree.split(" as ").next().unwrap_or(tree);
        let mut path = above.to_vec();
        path.extend(
            name.split("::").map(|part| part.trim().to_owned()).filter(|part| part != "self" || above.is_empty()),
        );
        out.push(path);
    }
}
