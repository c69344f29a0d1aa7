//! Figures that show where the house drifts. A figure has an aim and never fails a test.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
};

use crate::{
    glossary,
    imports::Imports,
    source::{File, Tree, Visibility},
};

/// Words of a documentation block that can hardly say more than the name it documents, at most.
const FEW_WORDS: usize = 4;
/// Lines under which a file is hard to find among its neighbours.
const SMALL_FILE: usize = 60;
/// Lines up to which a file with one importer could live with that importer.
const HELPER_FILE: usize = 160;

/// All figures as a text for a terminal.
pub(crate) fn figures(tree: &Tree) -> String {
    let mut out = String::new();
    let imports = Imports::of(tree);
    row(&mut out, "figure", "now", "aim");
    files(&mut out, &imports);
    comments(&mut out, tree);
    names(&mut out, tree);
    rooms(&mut out, &imports);
    words(&mut out, tree);
    out
}

fn row(out: &mut String, name: &str, now: impl Display, aim: &str) {
    writeln!(out, "{name:<58} {:>22}   {aim}", now.to_string()).unwrap();
}

/// Median, 90th percentile and largest.
fn spread(mut values: Vec<usize>) -> String {
    values.sort_unstable();
    let at =
        |share: f64| values.get(((values.len() - 1) as f64 * share).round() as usize).copied().unwrap_or_default();
    if values.is_empty() { "–".into() } else { format!("{} / {} / {}", at(0.5), at(0.9), at(1.0)) }
}

fn files(out: &mut String, imports: &Imports) {
    let sizes: Vec<usize> = imports.files.iter().map(|file| file.lines).collect();
    let small = sizes.iter().filter(|lines| **lines < SMALL_FILE).count();
    let is_helper = |index: &usize| imports.files[*index].lines <= HELPER_FILE && imports.importers(*index) <= 1;
    let root = |index: &usize| imports.files[*index].module().is_empty();
    let helpers = (0..sizes.len()).filter(|index| !root(index) && is_helper(index)).count();
    let mut folders: BTreeMap<&str, usize> = BTreeMap::new();
    for file in &imports.files {
        *folders.entry(file.path.rsplit_once('/').map_or("", |it| it.0)).or_default() += 1;
    }
    let over = |most: usize| {
        let over: Vec<_> = folders.iter().filter(|it| *it.1 > most).map(|it| format!("{} {}", it.0, it.1)).collect();
        if over.is_empty() { "0".to_owned() } else { format!("{} ({})", over.len(), over.join(", ")) }
    };
    let functions = imports.files.iter().flat_map(|file| &file.items).filter(|item| item.kind == "fn");
    let functions = functions.map(|item| item.length).filter(|length| *length > 0).collect();
    row(out, "product lines", sizes.iter().sum::<usize>(), "~46500");
    row(out, "product files", sizes.len(), "~270");
    row(out, "lines of a file: median / p90 / largest", spread(sizes), "~150 / 340 / 543");
    row(out, "files under 60 lines", small, "at most 35");
    row(out, "files with at most one importer and at most 160 lines", helpers, "at most 40");
    row(out, "folders with more than 15 files", over(15), "0");
    row(out, "folders with more than 25 files", over(25), "0");
    row(out, "lines of a function: median / p90 / longest", spread(functions), "8 / 24 / 70");
}

fn comments(out: &mut String, tree: &Tree) {
    let production = || tree.files.iter().flat_map(|file| &file.comments).filter(|comment| !comment.in_test);
    let is_short = |comment: &&crate::source::Comment| {
        comment.lines.iter().map(|line| line.1.split_whitespace().count()).sum::<usize>() <= FEW_WORDS
    };
    let docs = production().filter(|comment| comment.is_doc()).count();
    let short = production().filter(|comment| comment.is_doc()).filter(is_short).count();
    let plain: usize = production().filter(|comment| !comment.is_doc()).map(|comment| comment.lines.len()).sum();
    let code: usize = tree.product().map(|file| file.code_lines).sum();
    row(out, "documentation blocks", docs, "");
    row(out, "documentation blocks of at most 4 words", percent(short, docs), "under 8 %");
    row(out, "comment lines inside code, per 100 lines of code", format!("{:.1}", per_100(plain, code)), "3");
}

fn per_100(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn percent(part: usize, whole: usize) -> String {
    format!("{part}, {:.1} %", per_100(part, whole))
}

fn names(out: &mut String, tree: &Tree) {
    let items = || tree.product().flat_map(|file| &file.items);
    let with = |visibility| items().filter(|item| item.visibility == visibility).count();
    row(out, "items that are `pub`", with(Visibility::Public), "~150");
    row(out, "items that are `pub(crate)` or `pub(super)`", with(Visibility::Restricted), "");
    let tests: Vec<_> = tree.files.iter().chain(&tree.tests).flat_map(|file| &file.test_names).collect();
    let lengths: Vec<_> = tests.iter().map(|test| test.1.len()).collect();
    row(out, "tests", tests.len(), "");
    row(out, "characters of a test name: median / p90 / longest", spread(lengths), "40 / 60 / 80");
}

/// The folders of `src/`, and what is directly in each.
fn rooms(out: &mut String, imports: &Imports) {
    const AIMS: [(&str, &str); 8] = [
        ("actors", "8 / 6 / 17"),
        ("store", "11 / 9 / 49 (10)"),
        ("domain", "14 / 6 / 35"),
        ("runtime", "8 / 6 / 18"),
        ("http", "10 / 5 / 25 (7)"),
        ("transport", "7 / 5 / 12"),
        ("process", "7 / 5 / 9"),
        ("", ""),
    ];
    writeln!(out).unwrap();
    row(out, "folder: files in it, all below", "rooms/levels/arrows", "aim; in brackets: arrows to `mod`");
    for folder in imports.folders() {
        let rooms = imports.rooms(&folder);
        let path = folder.join("/");
        let aim = AIMS.iter().find(|aim| aim.0 == path).map_or("", |aim| aim.1);
        let below = imports.files.iter().filter(|file| file.module().starts_with(&folder)).count();
        let direct = |file: &&&File| file.path.rsplit_once('/').is_some_and(|it| it.0 == path);
        let direct = imports.files.iter().filter(direct).count();
        let (names, levels) = (rooms.count(), rooms.levels());
        let now = format!("{names} / {levels} / {} ({})", rooms.count_of_arrows(), rooms.back_up.len());
        row(out, &format!("{path}: {direct}, {below}"), now, aim);
    }
}

/// Words of the private dialect and of the old glossary, by rule and by folder.
fn words(out: &mut String, tree: &Tree) {
    let hits = glossary::hits(tree);
    let mut by_rule: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut by_folder: BTreeMap<String, BTreeMap<&str, usize>> = BTreeMap::new();
    for hit in &hits {
        *by_rule.entry((hit.place, &hit.rule)).or_default() += 1;
        let mut parts = hit.path.split('/');
        let first = parts.next().unwrap_or_default();
        let folder =
            if first == "tests" { format!("tests/{}", parts.next().unwrap_or_default()) } else { first.into() };
        *by_folder.entry(folder).or_default().entry(hit.place).or_default() += 1;
    }
    writeln!(out).unwrap();
    row(out, "words that the glossary replaces", "hits", "aim");
    row(out, "all", hits.len(), "0");
    for ((place, rule), count) in by_rule {
        row(out, &format!("{place}: {rule}"), count, "0");
    }
    writeln!(out).unwrap();
    row(out, "the same by folder", "hits", "");
    for (folder, places) in by_folder {
        let places: Vec<_> = places.iter().map(|it| format!("{} {}", it.0, it.1)).collect();
        row(out, &folder, "", &places.join(", "));
    }
    writeln!(out).unwrap();
    row(out, "words worth a look", "hits", "");
    for (word, count) in glossary::watched(tree) {
        row(out, word, count, "");
    }
}
