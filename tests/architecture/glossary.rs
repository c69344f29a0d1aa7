//! The rules about words: plain English in comments and texts, and one word for each concept in names.

use std::{collections::HashMap, sync::LazyLock};

use regex::{Regex, RegexBuilder};

use crate::{
    lexer::{Token, tokens},
    rules::is_sql,
    source::{Comment, File, Tree},
};

/// Whether the dialect in comments, texts and test names fails the test. While it is `false`, the test only prints.
pub(crate) const DIALECT_FAILS: bool = true;

/// Whether a dropped word in the name of a file or in an identifier fails the test.
pub(crate) const NAMES_FAIL: bool = true;

/// Characters of a test name, at most.
pub(crate) const MAX_TEST_NAME: usize = 80;

/// Phrases that readers have to translate, as regular expressions without regard to case, and what to write instead.
/// A phrase is found as whole words.
pub(crate) const DIALECT: &[(&str, &str)] = &[
    ("told|tells?|telling", "report, notify, announce, log"),
    ("stands?|stood|standing still", "is, remains, is up; stall for `stand still`"),
    ("(?:goes|gone|went|going|go) on", "continue, resume"),
    ("whoever", "name the caller, reader or process"),
    ("let(?:s|ting)? go", "release, close, evict"),
    ("(?:is|are|was|were) (?-i:none)", "is malformed, is missing, is not a …"),
    ("unasked", "pushed, unsolicited"),
    ("how (?:manieth|many-?eth)", "interval: one in `n`"),
    ("(?:who|that|which|what) (?:is|are|was|were) gone", "disconnected, closed, exited, evicted"),
    ("(?:is|was|counts as) (?:not )?well", "has recovered, is healthy, is degraded"),
    ("way to (?:the|an) agent", "agent connection"),
    ("(?:came|comes|come) to be", "was created"),
    ("doors?", "client, requests, listener"),
    ("cables?", "connection"),
    ("wish(?:es|ed)?", "initiator, request"),
];

/// Phrases that contain a word of the dialect and are plain English.
const PLAIN: &[&str] = &[
    "there (?:is|are|was|were) none",
    "(?:is|are|was|were) none of",
    "stands? (?:for|in the way)",
    "stand-ins?",
    "stand-alone",
    "(?:is|was) well[- ](?:formed|known|defined|tested|under|over|above|below|within)",
];

/// First words of a documentation block that leave the reader without a subject, and how to start instead.
const DOC_STARTS: &[(&str, &str)] = &[
    ("Who|Whom|Whose|Whoever", "name the person, process or part"),
    ("What", "name the thing"),
    ("That|Those|It", "name the thing; nothing precedes the word"),
    ("How", "start with the quantity and its unit, or with a verb"),
    ("Whether", "start with `True if`, or with the condition"),
    ("So (?:many|much|often|long)", "start with the quantity and its unit"),
];

/// Words that are worth a look and never fail a test.
pub(crate) const WATCHED: &[&str] = &[
    "nobody|everybody|somebody",
    "(?:is|are) gone",
    "says?|said",
    "hears?|heard",
    "for good",
    "has to|have to",
    "toasts?",
    "lines?",
];

/// Words that the glossary of `src/lib.rs` drops from names, in the singular, and the words to use.
pub(crate) const DROPPED: &[(&str, &str)] = &[
    ("door", "client, requests or listener"),
    ("telling", "notice or notification"),
    ("wish", "initiator"),
    ("cable", "connection"),
    ("toast", "notification"),
    ("tell", "notify, report or record"),
    ("told", "notified, reported or sent"),
    ("let_go", "release, detach or close"),
    ("left_out", "dropped, omitted or excluded"),
    ("shake", "handshake"),
    ("farewell", "close"),
    ("unhealed", "not resumed"),
];

/// Names that contain a dropped word because a wire name does, with the start of the paths where they are allowed.
pub(crate) const WIRE_NAMES: &[(&str, &str)] =
    &[("toast_message", ""), ("Toast", "contract/notifications/notification.rs")];

/// Names in which a line is a connection; a line of text keeps its name. With the folders where it is one of text.
pub(crate) const LINES: &[(&str, &[&str])] = &[
    ("Line", &["process/", "transport/stdio.rs"]),
    ("AgentLine", &[]),
    ("agent_line", &[]),
    ("LineState", &[]),
    ("change_line", &[]),
    ("drop_line", &[]),
];

/// A hit of [`DIALECT`] or of one of the other lists.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    pub(crate) path: String,
    pub(crate) line: usize,
    /// Where it was found: `comment`, `text`, `test name`, `name` or `file`.
    pub(crate) place: &'static str,
    /// The rule that it breaks: a phrase of a list, or a word.
    pub(crate) rule: String,
    pub(crate) what: String,
    pub(crate) instead: String,
}

impl Hit {
    /// Whether the gate of its list is open.
    pub(crate) fn fails(&self) -> bool {
        if matches!(self.place, "name" | "file") { NAMES_FAIL } else { DIALECT_FAILS }
    }
}

impl std::fmt::Display for Hit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, line, place, what, instead, .. } = self;
        write!(f, "{path}:{line}: {place}: `{what}`: {instead}")
    }
}

fn regex(pattern: &str) -> Regex {
    RegexBuilder::new(pattern).case_insensitive(true).build().unwrap()
}

/// Alternatives as whole words. ASCII boundaries keep the search fast.
fn words_of<'a>(alternatives: impl Iterator<Item = &'a str>) -> String {
    let alternatives: Vec<_> = alternatives.map(|it| format!("(?:{it})")).collect();
    format!(r"(?-u:\b)(?:{})(?-u:\b)", alternatives.join("|"))
}

struct Patterns {
    dialect: Regex,
    each: Vec<Regex>,
    plain: Regex,
    doc_starts: Vec<Regex>,
    sentence_start: Regex,
    code_span: Regex,
}

static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| Patterns {
    dialect: regex(&words_of(DIALECT.iter().map(|it| it.0))),
    each: DIALECT.iter().map(|it| regex(&format!("^(?:{})$", it.0))).collect(),
    plain: regex(&words_of(PLAIN.iter().copied())),
    doc_starts: DOC_STARTS.iter().map(|it| Regex::new(&format!(r"^(?:{})\b", it.0)).unwrap()).collect(),
    sentence_start: Regex::new(r"[.!?;:] ((?:Who|Whoever|What) [^.?!]*)([.?!]|$)").unwrap(),
    code_span: Regex::new("`[^`]*`").unwrap(),
});

/// Everything that breaks a rule about words.
pub(crate) fn hits(tree: &Tree) -> Vec<Hit> {
    let mut found = Vec::new();
    for file in &tree.files {
        for comment in &file.comments {
            comment_hits(file, comment, &mut found);
        }
        for literal in file.literals.iter().filter(|it| is_prose(&it.text)) {
            let text = Prose::new([(literal.line, literal.text.as_str())]);
            phrase_hits(file, "text", &text, &mut found);
        }
    }
    for file in tree.files.iter().chain(&tree.tests) {
        name_hits(file, &mut found);
        test_name_hits(file, &mut found);
    }
    found
}

/// Whether a literal is text for people: several words that are no statement for the database.
fn is_prose(literal: &str) -> bool {
    literal.trim().contains(' ') && !is_sql(literal)
}

/// Text of several lines as one, with code spans blanked.
struct Prose {
    text: String,
    /// Offset at which a line starts, and its number.
    lines: Vec<(usize, usize)>,
}

impl Prose {
    fn new<'a>(lines: impl IntoIterator<Item = (usize, &'a str)>) -> Self {
        let mut prose = Self { text: String::new(), lines: Vec::new() };
        for (line, text) in lines {
            prose.lines.push((prose.text.len(), line));
            prose.text.push_str(text);
            prose.text.push(' ');
        }
        if prose.text.contains('`') {
            let blank = |span: &regex::Captures<'_>| "x".repeat(span[0].len());
            prose.text = PATTERNS.code_span.replace_all(&prose.text, blank).into_owned();
        }
        prose.text = prose.text.replace('\n', " ");
        prose
    }

    /// A hit with a few words on both sides.
    fn around(&self, hit: std::ops::Range<usize>) -> String {
        const BYTES: usize = 24;
        let from = self.text[..hit.start].char_indices().map(|it| it.0).find(|at| at + BYTES >= hit.start);
        let to = self.text[hit.end..].char_indices().map(|it| hit.end + it.0).find(|at| *at >= hit.end + BYTES);
        let around = &self.text[from.unwrap_or(hit.start)..to.unwrap_or(self.text.len())];
        around.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn line_of(&self, at: usize) -> usize {
        self.lines[self.lines.partition_point(|line| line.0 <= at).saturating_sub(1)].1
    }
}

/// The lines of a comment without what is fenced as code.
fn unfenced(comment: &Comment) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    comment.lines.iter().filter_map(move |(line, text)| {
        let fence = text.starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((*line, text.as_str()))
    })
}

fn comment_hits(file: &File, comment: &Comment, found: &mut Vec<Hit>) {
    let prose = Prose::new(unfenced(comment));
    if prose.lines.is_empty() {
        return;
    }
    phrase_hits(file, "comment", &prose, found);
    let mut report = |at: usize, rule: &str, what: &str, instead: &str| {
        let (path, line) = (file.path.clone(), prose.line_of(at));
        let (rule, what, instead) = (rule.to_owned(), what.to_owned(), instead.to_owned());
        found.push(Hit { path, line, place: "comment", rule, what, instead });
    };
    let start = || prose.text.chars().take(40).collect::<String>();
    if comment.is_doc() {
        for (pattern, (rule, instead)) in PATTERNS.doc_starts.iter().zip(DOC_STARTS) {
            if pattern.is_match(&prose.text) && !prose.text.trim_end().ends_with('?') {
                report(0, &format!("^{rule}"), start().trim_end(), instead);
            }
        }
    }
    if prose.text.contains(" Who") || prose.text.contains(" What") {
        for hit in PATTERNS.sentence_start.captures_iter(&prose.text).filter(|hit| &hit[2] != "?") {
            let what: String = hit[1].chars().take(40).collect();
            report(hit.get(1).unwrap().start(), ". Who|What", &what, "start the sentence with its subject");
        }
    }
}

fn phrase_hits(file: &File, place: &'static str, prose: &Prose, found: &mut Vec<Hit>) {
    let mut hits = PATTERNS.dialect.find_iter(&prose.text).peekable();
    if hits.peek().is_none() {
        return;
    }
    let plain: Vec<_> = PATTERNS.plain.find_iter(&prose.text).map(|it| it.range()).collect();
    for hit in hits.filter(|hit| !plain.iter().any(|range| range.start <= hit.start() && hit.end() <= range.end)) {
        let Some(index) = PATTERNS.each.iter().position(|it| it.is_match(hit.as_str())) else { continue };
        let (path, line) = (file.path.clone(), prose.line_of(hit.start()));
        let (rule, instead) = (DIALECT[index].0.to_owned(), DIALECT[index].1.to_owned());
        found.push(Hit { path, line, place, rule, what: prose.around(hit.range()), instead });
    }
}

/// Names of files, and identifiers. Texts, and with them wire names in `serde` attributes, are blank in the code.
/// The schema of the database keeps its column names.
fn name_hits(file: &File, found: &mut Vec<Hit>) {
    let mut report = |line: usize, place: &'static str, what: &str, (rule, instead): (&str, &str)| {
        let (path, rule, what, instead) = (file.path.clone(), rule.into(), what.into(), instead.into());
        found.push(Hit { path, line, place, rule, what, instead });
    };
    for part in file.path.trim_end_matches(".rs").split('/') {
        let name = if part == "line" { "Line" } else { part };
        if let Some(dropped) = dropped_word(name, &file.path) {
            report(1, "file", part, dropped);
        }
    }
    if file.path.ends_with("/schema.rs") && file.unit() == "store" {
        return;
    }
    let mut known = HashMap::new();
    for (at, token) in tokens(&file.all) {
        let Token::Word(name) = token else { continue };
        if let Some(dropped) = *known.entry(name).or_insert_with(|| dropped_word(name, &file.path)) {
            report(file.line_of(at), "name", name, dropped);
        }
    }
}

/// The word of a name that the glossary drops, and the one to use.
fn dropped_word(name: &str, path: &str) -> Option<(&'static str, &'static str)> {
    if let Some((_, of_text)) = LINES.iter().find(|it| it.0 == name) {
        return (!of_text.iter().any(|it| path.starts_with(it))).then_some(("line", "connection"));
    }
    if WIRE_NAMES.iter().any(|(wire, place)| *wire == name && path.starts_with(place)) {
        return None;
    }
    let lower = parts_of(name).map(str::to_ascii_lowercase).collect::<Vec<_>>().join("_");
    DROPPED.iter().copied().find(|(word, _)| {
        lower.match_indices(word).any(|(at, _)| {
            let starts = at == 0 || lower[..at].ends_with('_');
            let ending = lower[at + word.len()..].split('_').next().unwrap_or_default();
            starts && matches!(ending, "" | "s" | "es")
        })
    })
}

/// The words of `a_name`, `AName` or `A_NAME`.
fn parts_of(name: &str) -> impl Iterator<Item = &str> {
    let shouts = !name.contains(|it: char| it.is_ascii_lowercase());
    name.split('_').flat_map(move |part| {
        let starts = part.char_indices().filter(move |it| !shouts && it.0 > 0 && it.1.is_ascii_uppercase());
        let mut bounds: Vec<usize> = starts.map(|it| it.0).collect();
        bounds.insert(0, 0);
        bounds.push(part.len());
        bounds.windows(2).map(|it| &part[it[0]..it[1]]).collect::<Vec<_>>()
    })
}

fn test_name_hits(file: &File, found: &mut Vec<Hit>) {
    static STARTS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new("^(?:who|whom|whose|whoever|what|it|that|those|how|whether) ").unwrap());
    for (line, name) in &file.test_names {
        let prose = Prose::new([(*line, name.replace('_', " ").as_str())]);
        phrase_hits(file, "test name", &prose, found);
        let mut report = |rule: &str, instead: String| {
            let (path, rule, what) = (file.path.clone(), rule.to_owned(), name.clone());
            found.push(Hit { path, line: *line, place: "test name", rule, what, instead });
        };
        if STARTS.is_match(&prose.text) {
            report("^Who|What|It …", "start with the subject".into());
        }
        if name.len() > MAX_TEST_NAME {
            report("length", format!("{} characters, at most {MAX_TEST_NAME}", name.len()));
        }
    }
}

/// How often each phrase of [`WATCHED`] occurs in comments and texts.
pub(crate) fn watched(tree: &Tree) -> Vec<(&'static str, usize)> {
    let patterns: Vec<_> = WATCHED.iter().map(|it| regex(&words_of([*it].into_iter()))).collect();
    let mut counts = vec![0; WATCHED.len()];
    for file in &tree.files {
        let comments = file.comments.iter().map(|comment| Prose::new(unfenced(comment)));
        let literals = file.literals.iter().filter(|it| is_prose(&it.text));
        for prose in comments.chain(literals.map(|it| Prose::new([(it.line, it.text.as_str())]))) {
            for (pattern, count) in patterns.iter().zip(&mut counts) {
                *count += pattern.find_iter(&prose.text).count();
            }
        }
    }
    WATCHED.iter().copied().zip(counts).collect()
}
