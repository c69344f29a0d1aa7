//! The graph of imports between the files of the product, and its rooms.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::source::{File, NamedPath, Tree, from_root};

/// Re-exports that are followed from one file to the next, at most.
const MAX_REEXPORTS: usize = 8;

/// The room that a folder's own `mod.rs` is.
const FACE: &str = "mod";

/// Which file names which.
pub(crate) struct Imports<'a> {
    pub(crate) files: Vec<&'a File>,
    modules: HashMap<String, usize>,
    pub(crate) edges: BTreeSet<Edge>,
}

/// One file names another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edge {
    /// Index into [`Imports::files`].
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// Whether `from` only passes the name on.
    pub(crate) reexport: bool,
}

impl<'a> Imports<'a> {
    pub(crate) fn of(tree: &'a Tree) -> Self {
        let files: Vec<_> = tree.product().collect();
        let modules = files.iter().enumerate().filter(|it| !matches!(it.1.path.as_str(), "lib.rs" | "main.rs"));
        let modules = modules.map(|(index, file)| (file.module().join("::"), index)).collect();
        let mut imports = Self { files, modules, edges: BTreeSet::new() };
        let mut edges = BTreeSet::new();
        for (from, file) in imports.files.iter().enumerate() {
            let module = file.module();
            let bound = imports.bound_names(file, &module);
            for path in &file.paths {
                let absolute = imports.absolute(file, &module, &bound, path);
                let target = absolute.and_then(|parts| imports.target(&parts, MAX_REEXPORTS));
                if let Some(to) = target.filter(|to| *to != from) {
                    edges.insert(Edge { from, to, reexport: path.reexport });
                }
            }
        }
        imports.edges = edges;
        imports
    }

    /// What the `use` declarations of a file bind, as paths from the root.
    fn bound_names(&self, file: &File, module: &[String]) -> HashMap<String, Vec<String>> {
        let declared = file.paths.iter().filter_map(|path| Some((path.binds.clone()?, path)));
        declared
            .filter_map(|(name, path)| Some((name, self.absolute(file, module, &HashMap::new(), path)?)))
            .filter(|(name, _)| name != "*")
            .collect()
    }

    fn absolute(
        &self,
        file: &File,
        module: &[String],
        bound: &HashMap<String, Vec<String>>,
        path: &NamedPath,
    ) -> Option<Vec<String>> {
        if let Some(parts) = from_root(module, &path.parts, file.path == "main.rs") {
            return Some(parts);
        }
        let first = path.parts.first()?;
        if let Some(start) = bound.get(first) {
            return Some([start, &path.parts[1..]].concat());
        }
        let child = [module, &path.parts[..1]].concat();
        self.modules.contains_key(&child.join("::")).then(|| [module, &path.parts[..]].concat())
    }

    /// The file that a path from the root leads to. A name that a file only passes on leads to where it is defined.
    fn target(&self, parts: &[String], reexports_left: usize) -> Option<usize> {
        let length =
            (1..=parts.len()).rev().find(|length| self.modules.contains_key(&parts[..*length].join("::")))?;
        let index = self.modules[&parts[..length].join("::")];
        let Some(name) = parts.get(length).filter(|_| reexports_left > 0) else { return Some(index) };
        let file = self.files[index];
        if file.items.iter().any(|item| item.name == *name && item.kind != "mod") {
            return Some(index);
        }
        let module = &parts[..length];
        let resolve = |path: &NamedPath, rest: &[String]| {
            let start = self.absolute(file, module, &HashMap::new(), path)?;
            self.target(&[&start, rest].concat(), reexports_left - 1)
        };
        let reexports = || file.paths.iter().filter(|path| path.reexport);
        if let Some(path) = reexports().find(|path| path.binds.as_ref() == Some(name)) {
            return resolve(path, &parts[length + 1..]).or(Some(index));
        }
        let globs = reexports().filter(|path| path.parts.last().is_some_and(|last| last == "*"));
        let defined = globs.filter_map(|path| {
            let whole = NamedPath { parts: path.parts[..path.parts.len() - 1].to_vec(), ..path.clone() };
            resolve(&whole, &parts[length..])
        });
        let defines = |to: &usize| self.files[*to].items.iter().any(|item| item.name == *name);
        Some(defined.into_iter().find(defines).unwrap_or(index))
    }

    /// Files that import a file other than to pass its names on.
    pub(crate) fn importers(&self, file: usize) -> usize {
        let edges = self.edges.iter().filter(|edge| edge.to == file && !edge.reexport);
        edges.map(|edge| edge.from).collect::<BTreeSet<_>>().len()
    }

    /// A cycle between files. A file and the `mod.rs` files above it are one thing: the face of a folder may use its
    /// parts, and they may use what it defines.
    pub(crate) fn file_cycles(&self) -> Vec<Vec<String>> {
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for edge in self.edges.iter().filter(|edge| !edge.reexport) {
            let (from, to) = (self.files[edge.from].module(), self.files[edge.to].module());
            if !from.starts_with(&to) {
                edges.entry(from.join("::")).or_default().insert(to.join("::"));
            }
        }
        cycles(&edges)
    }

    /// The rooms of a folder, which is a module path.
    pub(crate) fn rooms(&self, folder: &[String]) -> Rooms {
        let room = |file: usize| {
            let module = self.files[file].module();
            let inside = module.starts_with(folder) && !folder.is_empty();
            inside.then(|| module.get(folder.len()).map_or_else(|| FACE.to_owned(), Clone::clone))
        };
        let mut rooms = Rooms::default();
        for file in 0..self.files.len() {
            let Some(name) = room(file) else { continue };
            let folder_of = self.files[file].module().len() > folder.len() + 1;
            rooms.names.insert(name.clone());
            if folder_of {
                rooms.folders.insert(name);
            }
        }
        for edge in &self.edges {
            let (Some(from), Some(to)) = (room(edge.from), room(edge.to)) else { continue };
            if from == to {
                continue;
            }
            if to == FACE {
                rooms.back_up.insert(from);
            } else if from == FACE {
                if !edge.reexport {
                    rooms.from_face.insert(to);
                }
            } else {
                rooms.examples.entry((from.clone(), to.clone())).or_insert((edge.from, edge.to));
                rooms.arrows.entry(from).or_default().insert(to);
            }
        }
        rooms
    }

    /// Every folder below `src/`, as module paths.
    pub(crate) fn folders(&self) -> BTreeSet<Vec<String>> {
        let modules: Vec<_> = self.files.iter().map(|file| file.module()).collect();
        modules.iter().flat_map(|module| (1..module.len()).map(|length| module[..length].to_vec())).collect()
    }
}

/// What is directly in a folder: files and sub-folders, and who imports whom among them.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    /// All rooms, `mod` included.
    pub(crate) names: BTreeSet<String>,
    /// Rooms that are sub-folders.
    pub(crate) folders: BTreeSet<String>,
    /// Imports between rooms other than `mod`.
    pub(crate) arrows: BTreeMap<String, BTreeSet<String>>,
    /// One import between files for each arrow, as indexes into [`Imports::files`].
    pub(crate) examples: BTreeMap<(String, String), (usize, usize)>,
    /// Rooms that import `mod`.
    pub(crate) back_up: BTreeSet<String>,
    /// Rooms that `mod` imports, other than to pass names on.
    pub(crate) from_face: BTreeSet<String>,
}

impl Rooms {
    pub(crate) fn count_of_arrows(&self) -> usize {
        self.arrows.values().map(BTreeSet::len).sum::<usize>() + self.back_up.len() + self.from_face.len()
    }

    /// All rooms; `mod` is one if it imports others or they import it.
    pub(crate) fn count(&self) -> usize {
        let has_face = !self.back_up.is_empty() || !self.from_face.is_empty();
        self.names.iter().filter(|name| has_face || *name != FACE).count()
    }

    /// Rooms on the longest chain of imports, with `mod` on top. A room on a cycle counts once.
    pub(crate) fn levels(&self) -> usize {
        let mut known = HashMap::new();
        let mut depth_of = |room: &String| self.depth(room, &mut known);
        let below_face = self.from_face.iter().map(&mut depth_of).max().map_or(0, |depth| depth + 1);
        self.names.iter().map(&mut depth_of).max().unwrap_or_default().max(below_face)
    }

    fn depth(&self, room: &str, known: &mut HashMap<String, usize>) -> usize {
        if let Some(depth) = known.get(room) {
            return *depth;
        }
        known.insert(room.to_owned(), 0);
        let below = self.arrows.get(room).into_iter().flatten();
        let depth = 1 + below.map(|next| self.depth(next, known)).max().unwrap_or_default();
        known.insert(room.to_owned(), depth);
        depth
    }

    /// Cycles in which at least one room is a sub-folder; `file_cycles` finds those between files.
    pub(crate) fn cycles(&self) -> Vec<Vec<String>> {
        let with_folder = |cycle: &Vec<String>| cycle.iter().any(|room| self.folders.contains(room));
        cycles(&self.arrows).into_iter().filter(with_folder).collect()
    }
}

/// One cycle for each group of names that reach each other, as a walk that ends where it began.
fn cycles(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let mut seen = BTreeSet::new();
    edges.keys().filter_map(|start| cycle_from(start, edges, &mut seen, &mut Vec::new())).collect()
}

fn cycle_from(
    at: &str,
    edges: &BTreeMap<String, BTreeSet<String>>,
    seen: &mut BTreeSet<String>,
    walk: &mut Vec<String>,
) -> Option<Vec<String>> {
    if let Some(from) = walk.iter().position(|before| before == at) {
        return Some(walk[from..].iter().map(String::as_str).chain([at]).map(str::to_owned).collect());
    }
    if !seen.insert(at.to_owned()) {
        return None;
    }
    walk.push(at.to_owned());
    let cycle = edges.get(at).into_iter().flatten().find_map(|next| cycle_from(next, edges, seen, walk));
    walk.pop();
    cycle
}
